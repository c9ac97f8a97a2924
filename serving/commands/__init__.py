"""The commands of `tff-pipeline` that lead to a model server: publish, canary, promote, rollback, list, serve."""
