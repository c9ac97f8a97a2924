"""Who holds a lock: a process on a machine, as its record says, and whether that process has ended."""

import dataclasses
import functools
import json
import os
import secrets
import socket
from pathlib import Path

from tff_pipeline.artifacts import now

_MAX_COMMAND_LENGTH = 300
_LARGEST_PID = 2**31 - 1  # what the operating system's pid_t can hold


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a lock, as its file says. `started` is in clock ticks after the machine's boot."""

    token: str = ""
    command: str = "a command that has not written its name yet"
    host: str = "an unknown host"
    pid: int = 0
    started: int = 0
    boot: str = ""
    namespace: str = ""
    since: str = ""
    released: bool = False

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Holder":
        """An unknown holder where the text is empty: it was not written yet, or its process was killed before it was.

        A damaged record gives an unknown holder too, whose process cannot be looked up; so only its lease decides.
        """
        if not text:
            return cls()
        try:
            holder = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            return _DAMAGED
        is_valid = all(type(getattr(holder, field.name)) is type(field.default) for field in dataclasses.fields(cls))
        return holder if is_valid and 0 <= holder.pid <= _LARGEST_PID else _DAMAGED

    def __str__(self) -> str:
        return f"`{self.command}`, process {self.pid} on {self.host}, since {self.since or 'an unknown time'}"


NOBODY = Holder(released=True)
_DAMAGED = Holder(command="a command whose record in the lock's folder is damaged")


def this_process(command: str) -> Holder:
    """A holder with a new token."""
    boot, namespace = _machine()
    _, started = _process(os.getpid())
    return Holder(
        token=secrets.token_hex(8),
        command=command[:_MAX_COMMAND_LENGTH],
        host=socket.gethostname(),
        pid=os.getpid(),
        started=started,
        boot=boot,
        namespace=namespace,
        since=now(),
    )


def has_ended(holder: Holder) -> bool:
    """Whether the holder has certainly ended: it ran on this machine, and its process does not exist any more."""
    if not holder.boot or (holder.host, holder.boot, holder.namespace) != (socket.gethostname(), *_machine()):
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's, and alive; /proc may be hidden
    state, started = _process(holder.pid)
    return state in ("Z", "X") or (0 not in (started, holder.started) and started != holder.started)


@functools.cache
def _machine() -> tuple[str, str]:
    """Boot id and PID namespace; empty where there is no /proc, and then no process is taken for ended."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return boot, os.readlink("/proc/self/ns/pid")
    except OSError:
        return "", ""


def _process(pid: int) -> tuple[str, int]:
    """State and start time of a process, from /proc/PID/stat; ("", 0) where they cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[19])
    except (OSError, IndexError, ValueError):
        return "", 0
