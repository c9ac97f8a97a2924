"""A run: its job, its secrets, its store, its loop."""
