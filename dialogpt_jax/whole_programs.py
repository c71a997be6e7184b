"""Compiled programs kept whole: what an earlier process has compiled is neither traced nor lowered, and loaded on the side.

    program, config, arrays ─their shapes; this package, jax, the machine→ a name ─a file→ an executable ─arrays→ results

jax's own cache spares a new process the compiler; but to find out which program is wanted it is traced and lowered, which
takes longer than a reply. Here the name of a program is made of all that it depends on: what it is called with, the files
of this package by their size and time, versions, jax's settings, the processor. A file is loaded by another thread from
`keep_in` on, while the model is read: the one that was used last.

On one CPU device alone. Elsewhere, for a function of the caller's, and where anything goes wrong, a call is jax's own. A
file holds machine code, as those of jax's cache do: the folder has to be the user's.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import platform
import re
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from dialogpt_jax.parallel.chips import usable_cores
from dialogpt_jax.token_arrays import is_traced
from dialogpt_jax.whole_writes import whole_file

MOST_FILES = 40  # of some 3 MB; those used longest ago go beyond this
LONG_AGO = 3600.0  # seconds: what was begun before then, nobody writes any more
_ENVIRONMENT = ("XLA_", "JAX_", "TF_", "NPROC")  # beginnings of variables that the compiler reads

Flat = Callable[..., Sequence[jax.Array]]  # leaves in, leaves out

_kept: "WholePrograms | None" = None


def keep_in(folder: Path) -> None:
    """From now on `call` keeps programs in a folder, and the one used last is being loaded."""
    global _kept
    _kept = WholePrograms(folder)


def call(program: Callable[..., Any], config: Any, params: Any, *arrays: Any) -> Any:
    """`program(params, config, *arrays)`, by a kept executable where there is a folder for them.

    Args:
      program: jitted, with its second argument static.
      config: a frozen dataclass, whose `repr` says all of it.
      params, arrays: pytrees.
    """
    if _kept is None:
        return program(params, config, *arrays)
    return _kept.call(program, config, (params, *arrays))


class WholePrograms:
    """The programs of a folder; used by one thread."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._known: dict[str, tuple[Flat, Any]] = {}  # by name: what runs, and the tree of its results
        self._loading = threading.Thread(target=self._load_newest)  # no daemon: Python ends after it, not under it
        self._loading.start()

    def call(self, program: Callable[..., Any], config: Any, arrays: tuple[Any, ...]) -> Any:
        leaves, tree = jax.tree.flatten(arrays)
        name = self._name_of(program, config, leaves, tree)
        if name is None:
            return program(arrays[0], config, *arrays[1:])
        if name not in self._known:
            self._loading.join()
        if name not in self._known:
            self._load(self._folder / name)
        if name not in self._known:
            self._make(name, program, config, leaves, tree)
        run, results = self._known[name]
        try:
            out = jax.block_until_ready(run(*leaves))
            return jax.tree.unflatten(pickle.loads(results) if isinstance(results, bytes) else results, out)
        except Exception:  # it does not fit what its name says; what is wrong with the call itself comes again
            self._forget(name)
            return program(arrays[0], config, *arrays[1:])

    def _name_of(self, program: Callable[..., Any], config: Any, leaves: list[Any], tree: Any) -> str | None:
        """The name of a call's program; `None` where it is left to jax."""
        if not _are_at_hand(leaves) or "0x" in str(tree):  # a function's address says nothing of it
            return None
        try:
            name = f"{_surroundings()}-{_digest(program.__qualname__, config, tree, [jax.typeof(leaf) for leaf in leaves])}"
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError:  # the package's files cannot be looked at, or the folder cannot be made
            return None
        place = self._folder / name  # a pipe that is opened waits for its other end
        return name if os.access(self._folder, os.W_OK) and (place.is_file() or not place.exists()) else None

    def _make(self, name: str, program: Callable[..., Any], config: Any, leaves: list[Any], tree: Any) -> None:
        """Compiles a program, and writes it."""

        found: list[Any] = []

        def flat(*leaves: Any) -> list[jax.Array]:
            params, *arrays = jax.tree.unflatten(tree, leaves)
            out, results = jax.tree.flatten(program(params, config, *arrays))
            found.append(results)
            return out

        flat.__name__ = program.__name__
        lowered = jax.jit(flat).lower(*leaves)
        with _without_jaxs_cache():  # XLA for CPU cannot serialise what it has deserialised
            compiled = lowered.compile()
        results = found[-1]
        self._known[name] = compiled, results
        with contextlib.suppress(Exception):  # then it is not kept: which executables can be is for jax to say
            from jax.experimental.serialize_executable import serialize

            body = pickle.dumps((serialize(compiled)[0], len(leaves), results.num_leaves, pickle.dumps(results)))
            with whole_file(self._folder / name) as part:
                part.write_bytes(zlib.crc32(body).to_bytes(4, "big") + body)
            parts = [file for file in self._folder.glob(".*.part") if file.stat().st_mtime < time.time() - LONG_AGO]
            for old in (*self._files()[MOST_FILES:], *parts):
                old.unlink(missing_ok=True)

    def _load_newest(self) -> None:
        with contextlib.suppress(OSError):  # the package's files cannot be looked at
            prefix = _surroundings()
            for file in self._files():
                if file.name.startswith(prefix):
                    self._load(file)
                    return

    def _load(self, file: Path) -> None:
        """Makes a program known, if there is its file, this user's own; one that is not whole goes."""
        try:
            with file.open("rb") as opened:
                if hasattr(os, "getuid") and os.fstat(opened.fileno()).st_uid != os.getuid():
                    return
                held = opened.read()
        except OSError:
            return
        try:
            if zlib.crc32(held[4:]) != int.from_bytes(held[:4], "big"):
                raise ValueError("not whole")
            from jax.experimental.serialize_executable import deserialize_and_load

            executable, given, found, results = pickle.loads(held[4:])
            trees = jax.tree.structure(((0,) * given, {})), jax.tree.structure([0] * found)
            run = deserialize_and_load(executable, *trees, execution_devices=jax.devices()[:1])
            self._known[file.name] = run, results
            os.utime(file, ns=(time.time_ns(),) * 2)  # the system's own clock for files is a coarse one
        except Exception:  # whatever a damaged file makes of pickle and XLA
            self._forget(file.name)

    def _forget(self, name: str) -> None:
        self._known.pop(name, None)
        with contextlib.suppress(OSError):
            (self._folder / name).unlink()

    def _files(self) -> list[Path]:
        """Those of the folder, the last used first."""
        try:
            with os.scandir(self._folder) as entries:
                files = [entry for entry in entries if entry.is_file() and not entry.name.startswith(".")]
                found = [(entry.stat().st_mtime_ns, entry.path) for entry in files]
        except OSError:
            return []
        return [Path(path) for _, path in sorted(found, reverse=True)]


@contextlib.contextmanager
def _without_jaxs_cache() -> Iterator[None]:
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    usual = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", usual)
        reset_cache()  # whether there is one is asked once, at the first compilation


def _are_at_hand(leaves: Sequence[Any]) -> bool:
    """Whether arguments are numbers on the first device, a CPU."""
    first = jax.devices()[0]
    on_devices = (leaf for leaf in leaves if isinstance(leaf, jax.Array))
    return first.platform == "cpu" and not any(is_traced(leaf) or leaf.devices() != {first} for leaf in on_devices)


def _surroundings() -> str:
    """What all programs of this process depend on, as the beginning of their names."""
    settings = sorted((name, repr(value)) for name, value in jax.config.values.items())
    variables = sorted(item for item in os.environ.items() if item[0].startswith(_ENVIRONMENT))
    return _digest(settings, variables, _flags_in_a_file(), _machine_and_versions())


def _flags_in_a_file() -> str:
    """What XLA_FLAGS names, where that is no flags itself."""
    flags = os.environ.get("XLA_FLAGS", "").strip()
    return "" if not flags or flags.startswith("-") else Path(flags).read_text(encoding="utf-8", errors="replace")


@functools.lru_cache(maxsize=1)
def _machine_and_versions() -> str:
    versions = [sys.version, *map(_version, ("jax", "jaxlib", "flax"))]
    root = Path(__file__).parent
    files = [(path, status.st_size, status.st_mtime_ns) for path, status in _sources(str(root))]
    return _digest(versions, files, platform.machine(), _processor(), usable_cores())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # it was not installed, but put there
        return ""


def _sources(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """The files of Python in a folder and below, in order."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.endswith(".py") and entry.is_file():  # an editor's link to nowhere is none
                yield entry.path, entry.stat()
            elif entry.is_dir() and entry.name != "__pycache__":
                yield from _sources(entry.path)


def _processor() -> str:
    """Its name and what it can do: an executable may have instructions that another has not."""
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return platform.processor()
    first = file.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    return "\n".join(re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", first, re.MULTILINE))


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr([str(part) for part in parts]).encode()).hexdigest()[:32]
