"""Measurements, each a command that prints ratios or scores beside what it compares with. Not tests, and not run with them."""
