"""A run to a version directory that a model server loads."""
