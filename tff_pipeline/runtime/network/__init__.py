"""Silos that are elsewhere: how the coordinator asks them, in this process (tests) or over NVIDIA FLARE's network."""
