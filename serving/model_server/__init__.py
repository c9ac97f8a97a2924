"""What TensorFlow Serving defines, for everything here that speaks of it: the local server, the gates, the checks of files.

status         its errors: codes and words, as REST and gRPC carry them
models_config  models.config: which models, which of their versions, which labels
config_files   its other configuration files, which tensorflow-serving-api does not define
session        a version loaded from disk as it loads one
"""
