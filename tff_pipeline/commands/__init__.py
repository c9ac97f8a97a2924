"""The commands of `tff-pipeline`, one module each."""
