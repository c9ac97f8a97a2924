"""The learning process that TFF compiles, and its optimizers."""
