"""What people look at: the figures of a run on one page, runs side by side in one table."""
