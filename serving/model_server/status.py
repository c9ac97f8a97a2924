"""The errors of a model server: a code of TensorFlow's and a message, and how REST and gRPC carry them."""

from typing import Any

# In the order of their numbers, each with tensorflow_serving/model_servers/http_server.cc, ToHTTPStatusCode.
HTTP_STATUS = {
    "OK": 200,
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}
_NAMES = tuple(HTTP_STATUS)


class ServingError(Exception):
    """The error that a client receives: the name of a code, and the server's message."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        """As the server prints a status."""
        return f"{self.code}: {self.message}"

    @property
    def number(self) -> int:
        return _NAMES.index(self.code)

    @property
    def http_status(self) -> int:
        return HTTP_STATUS[self.code]

    @property
    def grpc_status(self) -> Any:
        import grpc

        return getattr(grpc.StatusCode, self.code)


def invalid(message: str) -> ServingError:
    return ServingError("INVALID_ARGUMENT", message)


def from_exception(error: Exception) -> ServingError:
    """Any exception as the status that a client receives: TensorFlow's code, or the one that the server would use."""
    import tensorflow as tf

    if isinstance(error, ServingError):
        return error
    if isinstance(error, tf.errors.OpError):
        return ServingError(_NAMES[error.error_code], error.message)
    if isinstance(error, OSError):
        return ServingError("NOT_FOUND", str(error))
    # Python's session refuses a value that does not fit before the graph sees it.
    if isinstance(error, ValueError | TypeError):
        return invalid(str(error))
    return ServingError("INTERNAL", f"{type(error).__name__}: {error}")
