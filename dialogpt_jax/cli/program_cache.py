"""Compiled programs that jax keeps on disk, so that the next start does not compile: a folder of the user's in or out."""

import contextlib
import os
import re
from pathlib import Path

OFF_VARIABLE = "DIALOGPT_NO_COMPILATION_CACHE"
MOST_BYTES = 1 << 30  # the oldest programs go beyond this
# What jax warns of (jax/_src/compiler.py); it names the program, or the whole key.
_TROUBLE = re.compile(r"Error (reading|writing) persistent compilation cache entry for '(.+?)': (.*)", re.DOTALL)


def keep_compiled_programs(*, whole: bool = False) -> Path | None:
    """Lets jax keep every compiled program on disk. `None` if it cannot, or the variable says that it should not.

    jax by default keeps only what took over a second to compile; ours are many and small.

    Args:
      whole: the program of a reply is kept by ourselves, whole, and the last one begins to be loaded.
    """
    if os.environ.get(OFF_VARIABLE):
        return None
    import jax
    import platformdirs

    folder = Path(platformdirs.user_cache_dir("dialogpt_jax")) / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only home: go on without
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    if whole:
        from dialogpt_jax import whole_programs

        whole_programs.keep_in(folder.with_name("whole"))
    return folder


def heal(warning: str) -> str | None:
    """What a person still has to be told of a warning: nothing for a damaged program, which is compiled anew.

    A process that is killed while it writes leaves a program without the time of its last use, which stands in a file of
    its own (jax/_src/lru_cache.py). While it is there jax writes no other, so it goes.

    A folder that can no longer be read or written is told once, and used no more by this process.
    """
    trouble = _TROUBLE.match(warning)
    if trouble is None:
        return warning
    import jax

    act, program, reason = trouble.groups()
    if not jax.config.values["jax_enable_compilation_cache"]:  # a first warning has turned it off
        return None
    folder, gone = Path(jax.config.values["jax_compilation_cache_dir"]), 0
    damaged: list[Path] = []
    if act == "reading":
        damaged = list(folder.glob(f"{program}*-cache"))
    elif reason.startswith("FileNotFoundError") and "-atime" in reason:
        damaged = [entry for entry in folder.glob("*-cache") if not _time_of_use(entry).exists()]
    for entry in damaged:
        with contextlib.suppress(OSError):
            entry.unlink()
            gone += 1
    if gone:
        return None
    jax.config.update("jax_enable_compilation_cache", False)
    return f"compiled programs are not kept in {folder}: {reason}"


def _time_of_use(entry: Path) -> Path:
    return entry.with_name(f"{entry.name.removesuffix('-cache')}-atime")
