"""Output for people: an HTML page with all figures of a run, and a table that compares runs."""
