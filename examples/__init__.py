"""Example code: data to try the pipeline with. Not a part of the package."""
