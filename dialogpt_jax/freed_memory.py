"""Freed memory that stays with the process: nothing in, the C library's way with memory changed.

XLA for CPU takes a program's scratch memory at each call and frees it after. glibc gives large pieces back to the system,
so that the next call gets the same pages anew, zeroed, one fault for each 4 kB: a training step of the bundled size has
380,000 of them, up to a fifth of its time.

What replies does without: its pieces are small, and all threads would take turns at the one arena that is left. Two cores
of a Xeon, GPT-2 small, 64 tokens and 64 new, ms as usual and with it: int8 1 row 650 and 844, 8 rows 1,279 and 1,532;
float32 8 rows 3,337 and 3,691; bfloat16 8 rows 2,273 and 2,585.
"""

import sys

# malloc.h of glibc. A piece that is mapped, and one in any arena but the first, goes back however it is set.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
NEVER = -1  # as an unsigned number the largest


def keep_freed_memory() -> bool:
    """From now on what is freed is kept for what is wanted next. Whether it could be so set: only glibc has it.

    For a process of our own that trains, before there are threads: a library should not decide this for a program. There
    the same is `MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000` in the environment.
    """
    if not sys.platform.startswith("linux"):
        return False
    import ctypes  # which the help of a command need not wait for

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {M_ARENA_MAX: 1, M_MMAP_MAX: 0, M_TRIM_THRESHOLD: NEVER}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
