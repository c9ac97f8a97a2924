"""A run whose silos are in processes of their own: what the coordinator does, what a silo does, and what a silo agrees to."""
