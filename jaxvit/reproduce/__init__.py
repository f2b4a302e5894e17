"""The documents' experiments: what each reports, its runs, and how these compare."""
