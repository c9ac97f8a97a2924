"""Publishes a version: it passes the gates of its configuration, is copied under the base path, and may become a canary."""
