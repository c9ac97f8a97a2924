"""A lock on a folder that several machines share: one command at a time changes the contents of the folder.

    with hold(base_path / ".publish", command="tff-pipeline publish", wait_s=600.0, progress=progress) as lock:
        ...                                   # prepare under a name that contains lock.token
        lock.confirm()                        # raises if another process has taken over
        os.rename(prepared, final)            # commit

The lock is a folder of its own with files `lock-NUMBER` (`records`). Taking, renewing and releasing the lock all create
the next number exclusively (by a hard link, or O_EXCL), which one process can do, also on NFS; then all but the two newest
are removed. So the largest number only grows, and the process that created it holds the lock. A directory listing or an
attribute that a network file system has cached can delay a process, but cannot mislead it: the number that it would create
exists already, or it sees a larger one when it looks again. (The file before the newest stays because a listing need not
show what is created or removed while it is read.)

The process that holds the lock (`holder`) renews it every RENEW_S (`lease`). A waiter takes the lock over (`acquire`)

- at once, if the holder ran on this machine (host name, boot id, PID namespace) and its process has ended: there is no
  such process, or another one that started at another time;
- after it has seen the same number for LEASE_S of its own monotonic clock. No two machines' clocks are compared.

A holder that is paused for longer than that and then continues has lost the lock while it was alive. It notices at
`confirm`, which is a renewal. It can even be paused between `confirm` and its commit. Therefore the commit is a rename of
something whose name contains the holder's token, and the next holder begins by taking all such names away (`revoke`):
the rename of the former holder then finds nothing.

`filelock`, which other dependencies install, was considered: its leases never take over a dead holder's lock where the
file system cannot exchange two names in one step, which NFS and SMB cannot.
"""

from serving.lock.acquire import FOLDER, PREPARED, WAIT_S, hold, lock_base_path
from serving.lock.holder import Holder, has_ended, this_process
from serving.lock.lease import LEASE_S, REMOVING, Lock, LockedError, LockLostError, remove

__all__ = [
    "FOLDER",
    "LEASE_S",
    "PREPARED",
    "REMOVING",
    "WAIT_S",
    "Holder",
    "Lock",
    "LockLostError",
    "LockedError",
    "has_ended",
    "hold",
    "lock_base_path",
    "remove",
    "this_process",
]
