"""The errors of both clients, and when a call is tried again."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from tff_pipeline.errors import PipelineError

_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.05, 2.0
_Result = TypeVar("_Result")


class ServerError(PipelineError):
    """The server refused a request. `code` is its status ("NOT_FOUND", or "HTTP 404" over REST), `message` its words."""

    def __init__(self, address: str, code: str, message: str):
        super().__init__(f"{address}: the server answered {code}: {message or '(nothing)'}")
        self.code, self.message = code, message


class ServerUnavailable(ServerError):
    """The server was not reached, or said that it is not available, at every attempt until the time was over."""


class ServerTimeout(ServerError):
    """The server did not answer in time."""


def call_until_available(call: Callable[[float], _Result], timeout_s: float) -> _Result:
    """Calls until the server is available or `timeout_s` is over, with growing pauses of random length.

    `call` gets the seconds that are left; a ServerUnavailable from it is tried again, any other error is raised.
    """
    deadline, pause_s = time.monotonic() + timeout_s, _FIRST_PAUSE_S
    while True:
        try:
            return call(max(deadline - time.monotonic(), 0.001))
        except ServerUnavailable:
            wait_s = pause_s * random.uniform(0.5, 1.5)
            if time.monotonic() + wait_s >= deadline:
                raise
            time.sleep(wait_s)
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)
