"""What a run tells while it goes: figures in, lines for a person, `metrics.jsonl` and TensorBoard's files out.

A run that goes on from step N first drops what the files say of later steps, which it will tell again.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dialogpt_jax.arguments import shown
from dialogpt_jax.errors import naming

METRICS, BOARD = "metrics.jsonl", "tensorboard"


class Journal:
    """The history of a run, in memory and, where there is a folder, in files.

    Args:
      folder: `None` writes nothing.
      step: what was told of later steps is dropped.
      report: takes a line for a person.
    """

    def __init__(self, folder: Path | None, step: int, report: Callable[[str], None]):
        self.history: list[dict[str, Any]] = []
        self._report = report
        self._file = self._board = None
        if folder is None:
            return
        from tensorboardX import SummaryWriter

        path = folder / METRICS
        if path.exists():
            # A killed run may have cut a character; and a reply may hold what `splitlines` takes for the end of a line.
            lines = map(_entry, path.read_text(encoding="utf-8", errors="replace").split("\n"))
            self.history = [entry for entry in lines if entry is not None and entry["step"] <= step]
        part = path.with_suffix(".part")
        with naming(path):
            part.write_text("".join(json.dumps(entry) + "\n" for entry in self.history), encoding="utf-8")
        os.replace(part, path)
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / BOARD), purge_step=step + 1)

    def note(self, step: int, figures: dict[str, Any]) -> None:
        """Keeps figures (or texts) of a step, and writes them."""
        entry = {"step": step} | figures
        self.history.append(entry)
        if self._file is None or self._board is None:
            return
        with naming(self._file.name):
            self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            self._file.flush()
        for name, value in figures.items():
            if isinstance(value, list):
                self._board.add_text(name, "\n\n".join(map(str, value)), step)
            else:
                self._board.add_scalar(name, value, step)

    def tell(self, line: str) -> None:
        """A line for a person."""
        self._report(line)

    def close(self) -> None:
        """Ends the files."""
        if self._file is not None and self._board is not None:
            with naming(self._file.name):
                self._file.close()
            self._board.close()


class Pace:
    """Tokens and arithmetic a second, and the time that is left, from the steps since it began that count."""

    def __init__(self, step: int, steps: int):
        self._first, self._steps = step, steps
        self._began = self._told = time.perf_counter()
        self._tokens, self._flops = 0, 0.0

    def add(self, tokens: int, flops: float) -> None:
        """A step was done: its tokens, pads not counted, and its arithmetic, pads included."""
        self._tokens, self._flops = self._tokens + tokens, self._flops + flops

    def skip(self, seconds: float) -> None:
        """A step that does not count, as it was compiled; and what it took."""
        self._first += 1
        self.pause(seconds)

    def pause(self, seconds: float) -> None:
        """What was spent on something else than steps does not count."""
        self._told += seconds
        self._began += seconds

    def figures(self, step: int, peak: float | None) -> dict[str, float]:
        """`tokens_per_second`, `flops_per_second`, `mfu` of `peak`, since the last call; `seconds_left` by all steps.

        What no step has told yet is not among them.
        """
        now = time.perf_counter()
        spent = max(now - self._told, 1e-9)
        rates: dict[str, float] = {}
        if step > self._first:
            rates["seconds_left"] = (now - self._began) / (step - self._first) * (self._steps - step)
        if self._tokens:
            rates |= {"tokens_per_second": self._tokens / spent, "flops_per_second": self._flops / spent}
        if "flops_per_second" in rates and peak is not None:
            rates["mfu"] = rates["flops_per_second"] / peak
        self._told, self._tokens, self._flops = now, 0, 0.0
        return rates


def progress_line(step: int, steps: int, figures: dict[str, float], *, perplexity: bool = True) -> str:
    """One step for a person: `step 20/200  loss 3.512  ppl 33.5  rate 1.0e-04  3,812 tokens/s  41 s left`."""
    parts = [f"step {step}/{steps}", f"loss {figures['loss']:.3f}"]
    if perplexity:
        parts.append(f"ppl {math.exp(min(figures['loss'], 700)):,.4g}")
    parts.append(f"rate {figures['learning_rate']:.2e}")
    if "tokens_per_second" in figures:
        parts.append(f"{figures['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in figures:
        parts.append(f"MFU {figures['mfu']:.0%}")
    if "seconds_left" in figures:
        parts.append(f"{duration(figures['seconds_left'])} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """`41 s`, `12 min`, `3 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _entry(line: str) -> dict[str, Any] | None:
    """A line of the metrics; `None` for one that a killed run left unfinished."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None


def as_figures(said: Any) -> dict[str, float]:
    """What `evaluate` gave, its numbers of any kind, as Python's."""
    wanted = "it must give a dict of names and numbers, such as {'valid_loss': 3.2}"
    if not isinstance(said, Mapping) or not all(isinstance(name, str) for name in said):
        raise TypeError(f"evaluate gave {shown(said)}; {wanted}")
    try:
        return {name: float(number) for name, number in said.items()}
    except (TypeError, ValueError):
        raise TypeError(f"evaluate gave {shown(said)}; {wanted}") from None


def as_lines(said: Any) -> list[str]:
    """What `sample` gave."""
    if not isinstance(said, list | tuple) or not all(isinstance(line, str) for line in said):
        raise TypeError(f"sample gave {shown(said)}; it must give a list of texts")
    return list(said)
