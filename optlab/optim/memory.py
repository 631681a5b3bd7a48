"""Keeps freed memory in the process, where an optimizer's step finds it again."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Tell glibc's malloc not to give blocks below 1 GB back to the system; whether it obeyed.

    Every step allocates and frees tensors of the model's size. By default their pages go back to
    the system each time, and faulting them in again costs as much as the arithmetic on them (a
    quarter of a Muon step at width 256). To be called once a process; other systems ignore it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # a C library without mallopt, such as musl
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _BYTES) and mallopt(_M_TRIM_THRESHOLD, _BYTES))
