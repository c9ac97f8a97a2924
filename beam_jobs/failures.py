"""Errors of ours across a Beam runner: whatever goes wrong on a worker reaches the driver as text in an exception.

`reported` writes our own errors into that text such that `failure_in` finds them again, on any runner. The text of an
unexpected error is withheld: it could quote the silo's.
"""

import json
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tff_pipeline import errors

_FAILURE = re.compile(r"prepare-failure<(\{.*?\})>", re.DOTALL)


class StepFailed(Exception):
    """Carries an error of ours, as JSON, through whatever a runner makes of exceptions."""


@contextmanager
def reported(step: str) -> Iterator[None]:
    """Raises any error inside as a StepFailed."""
    try:
        yield
    except errors.PipelineError as error:
        kind, message = type(error).__name__, str(error)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        kind = "PipelineError"
        message = (
            f"prepare, step {step}: an unexpected {type(error).__name__} in {Path(frame.filename).name} line {frame.lineno} ({frame.name}). "
            "Its text is withheld because it may quote the silo's. This is a defect: please report it with this line."
        )
    else:
        return
    # From None: otherwise the original error would be printed, text and all, wherever a worker or a runner prints this one.
    raise StepFailed(f"prepare-failure<{json.dumps({'kind': kind, 'message': message})}>") from None


def failure_in(error: BaseException) -> errors.PipelineError | None:
    """Our own error inside an exception that a runner raised, if it has one."""
    for match in _FAILURE.finditer(str(error)):
        # The text may also hold the line of our source that raised it, which is no JSON.
        with suppress(ValueError, KeyError, AttributeError):
            failure = json.loads(match.group(1))
            return getattr(errors, failure["kind"])(failure["message"])
    return None
