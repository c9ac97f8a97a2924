"""The lock of a base path: who may take it over and when, and that a holder who has lost it commits nothing."""

import dataclasses
import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from builders import environment

from serving import lock
from serving.base_path.folder import publish
from serving.lock import LockedError, LockLostError, acquire, lease, records
from tff_pipeline.artifacts import read_manifest, staged, version_numbers
from tff_pipeline.errors import ArtifactError
from tff_pipeline.progress import Progress

QUIET = Progress(interactive=False)


@pytest.fixture
def base(tmp_path):
    (tmp_path / "desk").mkdir()
    return tmp_path / "desk"


@pytest.fixture
def short(monkeypatch):
    """A lease of half a second, which nobody renews: what a holder is that is paused."""
    monkeypatch.setattr(lease, "LEASE_S", 0.5)
    monkeypatch.setattr(lease, "RENEW_S", 1000.0)


def changing(base, command="publish", wait_s=0.0):
    return lock.lock_base_path(base, command=command, wait_s=wait_s, progress=QUIET)


def forged(base, **changes):
    """A lock that is held by a process with other properties than this one's."""
    holder = dataclasses.replace(lock.this_process("tff-pipeline publish --to here"), **changes)
    (base / lock.FOLDER).mkdir()
    assert records.create(base / lock.FOLDER, 5, holder)
    return holder


def numbers(base):
    return records.numbers(base / lock.FOLDER)


def version(folder: Path, number: int, content: bytes = b"weights") -> Path:
    with staged(folder / str(number), lambda: {"kind": "model", "name": "desk", "version": number}) as aside:
        (aside / "variables").mkdir()
        for name in ("saved_model.pb", "variables/variables.index"):
            (aside / name).write_bytes(content)
    return folder / str(number)


def test_it_is_held_by_one_and_free_afterwards(base):
    with (
        changing(base),
        pytest.raises(LockedError, match=r"desk: another command is changing it: `publish`, process \d+ on"),
    ):
        with changing(base, "promote"):
            pass
    with changing(base, "promote") as held:
        held.confirm()
        assert len(numbers(base)) == 2, "older numbers are removed"
    assert [path.name for path in base.iterdir()] == [lock.FOLDER]


def test_the_error_says_who_holds_it_since_when_and_what_to_do(base):
    holder = forged(base)
    with pytest.raises(LockedError) as refused, changing(base):
        pass
    said = str(refused.value)
    for part in (holder.command, str(holder.pid), holder.host, holder.since, "waited 0 s", "--lock-wait-s"):
        assert part in said


def test_a_waiter_says_for_whom_it_waits(base):
    forged(base)
    said = io.StringIO()
    progress = Progress(said, interactive=False)
    with pytest.raises(LockedError), lock.lock_base_path(base, command="publish", wait_s=0.1, progress=progress):
        pass
    assert "waiting up to 0 s for `tff-pipeline publish --to here`, process" in said.getvalue()


@pytest.mark.parametrize(
    ("changes", "is_free"),
    [
        ({}, False),
        ({"started": 1}, True),  # the process id belongs to another process by now
        ({"pid": 2**22 + 1}, True),  # larger than any process id
        ({"pid": 2**22 + 1, "host": "elsewhere"}, False),  # nothing is known of another machine's processes
        ({"pid": 2**22 + 1, "boot": "before"}, False),
        ({"pid": 2**22 + 1, "namespace": "pid:[1]"}, False),
        ({"pid": 2**22 + 1, "boot": "", "namespace": ""}, False),
        ({"released": True, "host": "elsewhere"}, True),
    ],
)
def test_a_dead_holder_is_told_from_a_live_one(base, changes, is_free):
    forged(base, **changes)
    if is_free:
        with changing(base):
            assert numbers(base) == [5, 6]
    else:
        with pytest.raises(LockedError), changing(base):
            pass


def python(script, *arguments):
    """Another process, without what this one has imported."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], env=environment(), stderr=subprocess.PIPE, text=True
    )


KILLED = """
import os, signal, sys
from pathlib import Path
from serving import lock
from tff_pipeline.progress import Progress
with lock.lock_base_path(Path(sys.argv[1]), command="publish", progress=Progress()):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_is_dead_before_its_parent_has_noticed(base):
    child = python(KILLED, base)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert len(numbers(base)) == 1, "it was killed while it held the lock"
    with changing(base):
        pass
    child.communicate()


def test_another_machines_holder_is_waited_for_until_its_lease_ends(base, short):
    forged(base, host="elsewhere")
    with changing(base, wait_s=60.0) as held:
        held.confirm()


def test_a_holder_that_renews_keeps_it(base, short, monkeypatch):
    """However long: each renewal is a new number, and the waiter begins to count again. Here it renews at every look."""
    slept = time.sleep
    with changing(base) as held:

        def sleeping(seconds):
            held.confirm()
            slept(0.01)

        monkeypatch.setattr(time, "sleep", sleeping)
        with pytest.raises(LockedError), changing(base, wait_s=1.5):
            pass


def test_the_holder_renews_by_itself(base, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_S", 0.01)
    with changing(base):
        while max(numbers(base)) < 4:
            time.sleep(0.01)


def test_a_lock_that_cannot_be_renewed(base, monkeypatch):
    with changing(base) as held, monkeypatch.context() as patched:

        def refused(*_):
            raise OSError(errno.EIO, "Input/output error")

        patched.setattr(os, "link", refused)
        with pytest.raises(ArtifactError, match=r"the lock cannot be renewed \(Input/output error\)"):
            held.confirm()


def test_a_record_that_was_never_written_blocks_for_a_lease_only(base, short):
    (base / lock.FOLDER).mkdir()
    (base / lock.FOLDER / "lock-000000000003").touch()
    with pytest.raises(LockedError, match="has not written its name yet"), changing(base):
        pass
    with changing(base, wait_s=60.0):
        assert numbers(base) == [3, 4]


@pytest.mark.parametrize(
    "record",
    [
        {"pid": "abc"},
        {"pid": 2**70},
        {"pid": -1},
        {"pid": True},
        {"started": None},
        {"command": 5},
        {"host": ["a"]},
        {"since": 1},
        {"released": "no"},
        {"unknown": 1},
        [1],
        "text",
    ],
)
def test_a_damaged_record_blocks_for_a_lease_only(base, short, record):
    """Nothing is known of its process, as of one on another machine; so only its lease decides."""
    (base / lock.FOLDER).mkdir()
    whole = json.loads(lock.this_process("publish").to_json())
    text = json.dumps(whole | record if isinstance(record, dict) else record)
    (base / lock.FOLDER / "lock-000000000003").write_text(text)
    with pytest.raises(LockedError, match="whose record in the lock's folder is damaged"), changing(base):
        pass
    with changing(base, wait_s=60.0):
        assert numbers(base) == [3, 4]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_record_that_cannot_be_read_is_an_error_and_no_endless_wait(base, monkeypatch, number):
    """Every other error than that the file is gone says whose file it is and what to do."""
    forged(base)
    read = Path.read_bytes

    def refused(path):
        if path.name.startswith("lock-"):
            raise OSError(number, os.strerror(number))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(ArtifactError) as said, changing(base, wait_s=600.0):
        pass
    for part in ("lock-000000000005", os.strerror(number), f"user id {os.getuid()}", "chmod 644"):
        assert part in str(said.value)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
def test_a_record_that_is_gone_is_looked_for_again(base, monkeypatch, number):
    forged(base, released=True)
    read, failures = Path.read_bytes, [OSError(number, os.strerror(number))]

    def missing_once(path):
        if path.name.startswith("lock-") and failures:
            raise failures.pop()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", missing_once)
    with changing(base, wait_s=60.0):
        assert failures == []


@pytest.mark.parametrize("has_links", [True, False])
def test_other_users_may_read_who_holds_it_whatever_the_umask(base, monkeypatch, has_links):
    if not has_links:

        def refused(source, target):
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr(os, "link", refused)
    former = os.umask(0o077)
    try:
        with changing(base) as held:
            held.confirm()
            modes = {path.stat().st_mode & 0o777 for path in (base / lock.FOLDER).glob("lock-*")}
    finally:
        os.umask(former)
    assert modes == {0o644}


def test_a_winner_that_was_paused_before_it_clears_up_leaves_what_the_next_holder_creates(base, monkeypatch):
    """The next holder's record is named after a larger number; what is older than the winner's own is removed."""
    folder = base / lock.FOLDER
    forged(base, released=True)
    (folder / "new-000000000004-dead").touch()
    create = records.create

    def paused(folder, number, holder):
        created = create(folder, number, holder)
        (folder / f"new-{number + 1:012d}-next").touch()
        return created

    with monkeypatch.context() as patched:
        patched.setattr(records, "create", paused)
        acquire._acquire(folder, lock.this_process("paused"), 0.0, QUIET)
    assert [path.name for path in folder.glob("new-*")] == ["new-000000000007-next"]


def test_a_file_that_cannot_be_written_stays_as_it_was(base, monkeypatch):
    (base / "file").write_bytes(b"before")
    with changing(base) as held, monkeypatch.context() as patched:

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        patched.setattr(os, "fsync", full)
        with pytest.raises(
            ArtifactError, match=r"file: could not be written \(No space left on device\); it is as it was"
        ):
            held.write(base / "file", b"after", prefix=lock.PREPARED)
    assert (base / "file").read_bytes() == b"before"
    assert sorted(path.name for path in base.iterdir()) == [lock.FOLDER, "file"]


def test_who_has_lost_it_is_told_and_releases_nothing(base, short):
    with changing(base) as former, changing(base, "promote", wait_s=60.0) as held:
        with pytest.raises(LockLostError, match=r"paused, and did not renew .* taken it over \(`promote`, process"):
            former.confirm()
        with pytest.raises(LockLostError):
            former.write(base / "file", b"former", prefix=lock.PREPARED)
        former.release()
        held.confirm()
        held.write(base / "file", b"held", prefix=lock.PREPARED)
    assert (base / "file").read_bytes() == b"held"
    assert sorted(path.name for path in base.iterdir()) == [lock.FOLDER, "file"]


def test_a_late_number_below_the_largest_takes_nothing(base):
    """As after a directory listing that was out of date: the number is free again, and a larger one exists."""
    with changing(base) as held:
        for _ in range(3):
            held.confirm()
        assert not records.create(base / lock.FOLDER, 2, lock.this_process("late"))
        held.confirm()
        assert max(numbers(base)) == 5


def test_an_answer_that_was_lost_is_no_refusal(base, monkeypatch):
    """NFS may repeat a request that has succeeded, and then say that the name exists."""
    link = os.link

    def repeated(source, target):
        link(source, target)
        raise FileExistsError(errno.EEXIST, "exists")

    monkeypatch.setattr(os, "link", repeated)
    with changing(base) as held:
        held.confirm()


def test_without_hard_links_too(base, monkeypatch):
    def refused(source, target):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", refused)
    with changing(base) as held:
        held.confirm()
        with pytest.raises(LockedError), changing(base):
            pass


def test_a_folder_that_cannot_be_written_to(base):
    (base / lock.FOLDER).touch()
    with pytest.raises(ArtifactError, match=r"\.publish: the lock cannot be taken .* that this user may write to"):
        with changing(base):
            pass


def test_of_many_waiters_that_see_a_dead_holder_one_at_a_time_gets_it(base):
    forged(base, started=1)
    inside, most, errors = [], [], []

    def work():
        try:
            with changing(base, wait_s=60.0):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.002)
                inside.pop()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert most == [1] * 16


# -- a publisher that is paused while another takes over ---------------------------------------------------------------


PAUSED = """
import os, signal, sys
from pathlib import Path
from serving import lock
from serving.base_path.folder import publish
source, base, step = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
function = getattr(os, step)

def pausing(path, *arguments, **settings):
    if lock.PREPARED in str(path):
        setattr(os, step, function)
        os.kill(os.getpid(), signal.SIGSTOP)
    return function(path, *arguments, **settings)

setattr(os, step, pausing)
try:
    publish(source, base)
except lock.LockLostError:
    sys.exit(9)
"""


@pytest.mark.parametrize("step", ["mkdir", "rename"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_paused_publisher_that_continues_publishes_nothing(base, tmp_path, short, step, number):
    """Stopped as it begins, or between its last check and the rename; another publishes the same number or the next."""
    mine, other = version(tmp_path / "mine", 1), version(tmp_path / "other", number, b"other")
    child = python(PAUSED, mine, base, step)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    publish(other, base, wait_s=60.0, progress=QUIET)
    os.kill(child.pid, signal.SIGCONT)
    _, said = child.communicate()
    assert child.returncode == 9, f"it should have said that it has lost the lock, not {said}"
    assert version_numbers(base) == [number]
    assert read_manifest(base / str(number), check_files=True) == read_manifest(other)
    assert sorted(path.name for path in base.iterdir()) == [lock.FOLDER, str(number)]
