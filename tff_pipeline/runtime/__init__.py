"""Machines that run one round of a compiled learning process; see base.Runtime."""
