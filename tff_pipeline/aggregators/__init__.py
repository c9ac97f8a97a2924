"""Mechanisms as TFF aggregators; `factory` maps one to the other."""
