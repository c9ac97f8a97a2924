"""How the C library hands out memory to a process that trains.

TensorFlow on a CPU takes every tensor from malloc. glibc maps a large block anew each time and gives it back when it is
freed, so that a BERT's tensors are pages the kernel clears over and over: a third of a round of the six-layer checkpoint
was that (benchmarks/README.md).
"""

import ctypes
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER, _STEP = 2**31 - 1, 64 * 2**20


def keep_freed_memory() -> bool:
    """From now on this process keeps the memory that it frees, to use it again: its size stays at its peak.

    Returns:
      Whether the C library took the settings; another one than glibc is left as it is.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _STEP))
    taken = [mallopt(name, value) == 1 for name, value in settings]  # all three, whatever the first one says
    return all(taken)
