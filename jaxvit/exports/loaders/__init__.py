"""What runs an exported file, a script for each format. But for hub's they know nothing of this package."""
