"""Every error this project raises on purpose, and the exit code a scheduler sees for each.

    PipelineError                     1   anything below
    +-- ConfigError                   2   the configuration file, or a --set
    +-- InputError                    3   a silo's raw input: missing, unreadable, too many rejects
    +-- ArtifactError                 4   a manifest, snapshot, run or version is incomplete, damaged or does not match
    +-- PrivacyError                  5   a guarantee cannot be given: budget, ledger, plan
    |   +-- InsecureProcessError      5   a process would send something outside the secure sum
    |   +-- ProtocolError             5   a message or a request that the secure sum's protocol does not allow
    +-- TrainingError                 6   a round failed: non-finite weights, a device that is not there
    |   +-- RoundLost                 6   too few silos stayed to the end of a round
    +-- ExportError                   7   the exported model failed its verification
    +-- GateError                     8   a version does not reach what the configuration asks before it is published

A message says where, what was found, what was expected and what to do next. It never carries a silo's text.
"""


class PipelineError(Exception):
    """An expected failure; its message is written for the person who has to act on it."""

    exit_code = 1


class ConfigError(PipelineError):
    """The configuration is wrong."""

    exit_code = 2


class InputError(PipelineError):
    """A silo's raw input cannot be used."""

    exit_code = 3


class ArtifactError(PipelineError):
    """Something an earlier stage wrote is missing, incomplete, damaged or made from other things."""

    exit_code = 4


class PrivacyError(PipelineError):
    """A privacy guarantee cannot be given, or would be broken by going on."""

    exit_code = 5


class InsecureProcessError(PrivacyError):
    """A compiled process would send values to the server outside the secure sum."""


class ProtocolError(PrivacyError):
    """A party of the secure sum got, or was about to send, what the protocol does not allow. Nothing was sent."""


class TrainingError(PipelineError):
    """A round could not be run or its result cannot be used."""

    exit_code = 6


class RoundLost(TrainingError):
    """Too few silos stayed to the end of a round; nothing was released.

    Attributes:
      drawn_anew: whether the round has to be drawn and charged anew, since its sum over some silos may have been seen.
    """

    def __init__(self, message: str, *, drawn_anew: bool):
        super().__init__(message)
        self.drawn_anew = drawn_anew


class ExportError(PipelineError):
    """The exported model does not pass its verification."""

    exit_code = 7


class GateError(PipelineError):
    """A version does not pass a gate of its configuration, and is not published."""

    exit_code = 8


class Refused(PipelineError):
    """A silo refuses a request.

    Attributes:
      reason: what the coordinator is told.
      private: what only the silo's own log has; empty if there is nothing more to say.
    """

    def __init__(self, reason: str, *, private: str = ""):
        super().__init__(reason)
        self.reason, self.private = reason, private
