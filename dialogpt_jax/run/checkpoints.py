"""Checkpoints by Orbax: a training state and its identity go in, and come out bit for bit, on this mesh or on another.

A checkpoint is a folder named by its step. It gets that name when everything in it is written, so a killed process
leaves the checkpoints before it as they were. Beside the arrays stand the identity (what a run must not change in silence)
and, for each array, name, dtype, shape and a checksum: what comes back is what was saved, or it is an error. Reading
goes by the names in the tree, so nothing depends on how Orbax sees optax's states or a typed key.
"""

import contextlib
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from dialogpt_jax.run import named_arrays
from dialogpt_jax.run.orbax import agreed, orbax, root_cause
from dialogpt_jax.run.same_run import json_round_trip

STATE, ABOUT = "state", "about"  # the two items of a checkpoint: arrays, and JSON
_PART, _DAMAGED = ".orbax-checkpoint-tmp", ".damaged"


class CheckpointError(OSError):
    """No checkpoint, a damaged one, or one that could not be written: one line."""


class CheckpointMismatch(ValueError):
    """A checkpoint of other arrays than those asked for: one line, with the first that differs."""


class DamagedCheckpoint(UserWarning):
    """A checkpoint could not be read back whole; the one before it was taken."""


class Checkpoints:
    """The checkpoints in a folder; a context manager that waits for the last write.

    With several processes each of them makes one, on a file system that all of them see, and calls `save`, `wait`,
    `restore` and `close` at the same places: Orbax meets the others inside.
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 3, best: str | None = "loss"):
        """Opens a folder, makes it where it is not, and removes what a killed process left unfinished.

        Args:
          folder: for checkpoints only.
          keep: how many of the newest stay.
          best: the metric whose lowest value marks a checkpoint that stays as well; `None`: none does.

        Raises:
          ValueError: `keep` below 1.
          OSError: the folder cannot be made.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least 1 checkpoint must stay")
        ocp = orbax()
        self.folder = folder if "://" in str(folder) else Path(folder).absolute()
        if isinstance(self.folder, Path):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._best, self._keep = best, keep
        self._known: set[int] = set()  # steps that this object wrote, or read as the newest
        self._damaged: set[int] = set()
        self._writing: int | None = None
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True, preservation_policy=_Staying(self._staying)
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._metrics = {step: self._read_metrics(step) for step in self._manager.all_steps()}

    def save(self, state: Any, *, identity: dict[str, Any], metrics: dict[str, float] | None = None) -> None:
        """Copies the state to the host and begins to write it; returns before it is written.

        The caller may donate the state right after. A step that this object wrote or resumed from is not written again.

        Args:
          state: `TrainState`, or another pytree of arrays with an attribute `step`.
          identity: JSON; `restore` gives it back.
          metrics: by them the best is known.

        Raises:
          CheckpointError: the write *before* this one failed, or the disk lacks room; this one has not begun.
          ValueError: the identity is not JSON, or the folder holds a checkpoint of this step or a later one that is not
            this run's.
        """
        ocp = orbax()
        step = int(state.step)
        self.wait()
        steps = [s for s in self._manager.all_steps() if s not in self._damaged]
        if step in self._known and step in steps:
            return
        if steps and max(steps) >= step:
            raise ValueError(
                f"{self.folder} holds a checkpoint of step {max(steps)}, and step {step} was to be written: resume from "
                "it, or choose another folder"
            )
        self._set_damaged_aside()
        figures = {name: float(value) for name, value in (metrics or {}).items()}
        named = named_arrays.named(state)
        arrays = {name: named_arrays.data(leaf) for name, leaf in named.items()}
        sums = named_arrays.checksums(arrays)
        described = {
            name: named_arrays.dtype_and_shape(leaf) | {"checksum": sums[name]} for name, leaf in named.items()
        }
        about = {"identity": json_round_trip(identity), "metrics": figures, "leaves": described}
        _, lack = agreed(lambda: self._find_room(arrays))
        if lack:
            raise CheckpointError(f"the checkpoint of step {step} was not written to {self.folder}: {lack}")
        items = {STATE: ocp.args.StandardSave(arrays), ABOUT: ocp.args.JsonSave(about)}
        self._writing, self._metrics[step] = step, figures
        with self._failure_told():
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        self._known.add(step)

    def wait(self) -> None:
        """Waits until what `save` began is on disk.

        Raises:
          CheckpointError: it could not be written; the checkpoints before it are as they were.
        """
        with self._failure_told():
            self._manager.wait_until_finished()
        self._writing = None

    def steps(self) -> list[int]:
        """The steps whose checkpoints are on disk, ascending, those found damaged left out; waits as `wait` does."""
        self.wait()
        return sorted(step for step in self._manager.all_steps() if step not in self._damaged)

    def latest_step(self) -> int | None:
        """The newest step of `steps`."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the lowest value of the metric `best`; the newest of equals; `None` where none has it."""
        return self._best_of(self.steps())

    def restore(self, like: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Reads a checkpoint onto the shardings of `like`, whatever mesh it was saved from.

        Args:
          like: the state's structure: arrays, or `jax.ShapeDtypeStruct` with a sharding (without one: the first
            device). Nothing of their contents is used.
          step: which; `None` is the newest that is whole. A damaged one is told as a warning, `DamagedCheckpoint`, and
            the one before it is read; the next `save` renames it.

        Returns:
          The state, equal bit for bit to what was saved, and the identity.

        Raises:
          CheckpointError: there is no checkpoint (of that step), or none that is whole.
          CheckpointMismatch: its arrays are not those of `like`.
        """
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
            held = f"; it has those of steps {', '.join(map(str, steps))}" if steps else ""
            raise CheckpointError(f"{self.folder} holds no {wanted}{held}")
        reasons: list[str] = []
        for candidate in reversed(steps) if step is None else [step]:
            restored, reason = self._read(candidate, like)
            if restored is not None:
                if reasons:
                    warnings.warn(f"{'; '.join(reasons)}; reading step {candidate}", DamagedCheckpoint, stacklevel=2)
                if step is None:
                    self._known.add(candidate)
                return restored
            reasons.append(f"the checkpoint of step {candidate} in {self.folder} is damaged ({reason})")
            if step is None:
                self._damaged.add(candidate)
        self._damaged.clear()  # where nothing could be read, perhaps it is not the checkpoints' fault
        raise CheckpointError("; ".join(reasons))

    def close(self) -> None:
        """Waits, and ends Orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            warnings.warn(str(failure), stacklevel=2)  # the error on its way out says why the run stopped

    def _read(self, step: int, like: Any) -> tuple[tuple[Any, dict[str, Any]] | None, str]:
        """State and identity of one checkpoint; or `None` and why. All processes answer alike.

        Read by Orbax's handlers and not by its manager, which waits for all: where one process cannot read, the others
        must not wait for it.
        """
        ocp = orbax()
        path = self._manager.directory / str(step)
        wanted = named_arrays.named(like)
        abstract = {name: named_arrays.abstract(leaf) for name, leaf in wanted.items()}

        def read_about() -> tuple[Any, Any]:
            about = ocp.JsonCheckpointHandler().restore(path / ABOUT)
            return about["identity"], about["leaves"]

        found, reason = agreed(read_about)
        if found is None:
            return None, reason
        identity, held = found
        if mismatch := named_arrays.first_difference(held, wanted):
            raise CheckpointMismatch(f"the checkpoint of step {step} in {self.folder} does not fit: {mismatch}")
        arrays, reason = agreed(
            lambda: ocp.StandardCheckpointHandler().restore(path / STATE, args=ocp.args.StandardRestore(abstract))
        )
        if arrays is None:
            return None, reason
        sums = named_arrays.checksums(arrays)
        if wrong := [name for name in wanted if sums[name] != held[name]["checksum"]]:
            return None, f"{wrong[0]} differs from its checksum, {len(wrong)} of {len(wanted)} arrays do"
        back = [named_arrays.like(leaf, arrays[name]) for name, leaf in wanted.items()]
        return (jax.tree.unflatten(jax.tree.structure(like), back), identity), ""

    @contextlib.contextmanager
    def _failure_told(self) -> Iterator[None]:
        """Turns a failed write into one line, and removes what it left, which would fill the disk again."""
        try:
            yield
        except Exception as error:
            step, self._writing = self._writing, None
            if jax.process_index() == 0 and isinstance(self.folder, Path):
                for part in self.folder.glob(f"{step}{_PART}*"):
                    _remove(part)
            self._manager.reload()  # what was to be deleted for it is still there
            self._known.discard(step)
            whole = max((s for s in self._manager.all_steps() if s not in self._damaged), default=None)
            left = "no earlier one is there" if whole is None else f"that of step {whole} is whole"
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.folder} ({root_cause(error)}); {left}"
            ) from error

    def _set_damaged_aside(self) -> None:
        """Renames what `restore` found damaged: its step will be written again, and somebody may want a look at it."""
        if not self._damaged:
            return
        if jax.process_index() == 0 and isinstance(self.folder, Path):
            for step in self._damaged:
                names = (self.folder / f"{step}{_DAMAGED}{n or ''}" for n in range(1000))
                (self.folder / str(step)).rename(next(name for name in names if not name.exists()))
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._manager.reload()
        self._damaged.clear()

    def _find_room(self, arrays: dict[str, jax.Array]) -> bool:
        """Fails where the disk lacks it: Orbax fails too, but late, and with a page of threads' tracebacks."""
        needed = sum(array.nbytes for array in arrays.values())
        free = shutil.disk_usage(self.folder).free if isinstance(self.folder, Path) else needed
        if free < needed:
            raise OSError(f"it takes {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB of the disk are free")
        return True

    def _read_metrics(self, step: int) -> dict[str, float]:
        """What `save` was given; nothing where it cannot be read, which `restore` will say of the whole."""
        try:
            return dict(orbax().JsonCheckpointHandler().restore(self._manager.directory / str(step) / ABOUT)["metrics"])
        except Exception:
            return {}

    def _best_of(self, steps: Iterable[int]) -> int | None:
        """The step with the lowest metric; the newest of equals. One that is not a number is none."""
        scores = {step: self._metrics.get(step, {}).get(self._best or "", math.nan) for step in steps}
        known = [step for step, score in scores.items() if not math.isnan(score)]
        return min(known, key=lambda step: (scores[step], -step), default=None)

    def _staying(self, steps: list[int]) -> set[int | None]:
        """Of these the newest `keep` and the best."""
        return {*sorted(steps)[-self._keep :], self._best_of(steps)}


class _Staying:
    """The manager's question which checkpoints stay. (Orbax's own answer, BestN, may take a NaN for the best.)"""

    def __init__(self, staying: Callable[[list[int]], set[int | None]]):
        self._staying = staying

    def should_preserve(self, checkpoints: Any, **_: Any) -> list[bool]:
        stay = self._staying([info.step for info in checkpoints])
        return [info.step in stay for info in checkpoints]


def _remove(part: Path) -> None:
    """Deletes a folder into which other threads of a failed write may still put files, for a second at most."""
    for _ in range(20):
        shutil.rmtree(part, ignore_errors=True)
        if not part.exists():
            return
        time.sleep(0.05)
