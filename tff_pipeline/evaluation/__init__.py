"""A run's model on the held-out split."""
