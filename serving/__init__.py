"""The way from an exported version to a model server. Imports only the ground floor of tff_pipeline."""
