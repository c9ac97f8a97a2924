"""Mechanisms as TFF aggregators."""
