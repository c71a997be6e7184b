"""The loop around the pure step: the only file of this room with side effects. Batches in, checkpoints and metrics out.

A checkpoint is one file, replaced whole, so that a killed run goes on from the last one; since a batch is a function of
(seed, step) and a step's key of (key, step), it ends where an unbroken run would have ended.
"""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
from flax import serialization

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import Batches
from dialogpt_jax.training.step import TrainState, train_step

CHECKPOINT, METRICS = "checkpoint.msgpack", "metrics.jsonl"


def fit(
    state: TrainState,
    batches: Batches,
    *,
    config: GPT2Config,
    optimizer: optax.GradientTransformation,
    steps: int,
    out: str | os.PathLike[str],
    compute_dtype: jax.typing.DTypeLike,
    log_every: int = 20,
    save_every: int = 100,
    evaluate_every: int = 200,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    report: Callable[[str], None] = print,
) -> TrainState:
    """Trains until step `steps`, going on from the checkpoint in `out` if there is one.

    Args:
      state: where to begin; what the checkpoint holds replaces it, the key excepted.
      batches: by step.
      out: folder of the checkpoint and of `metrics.jsonl`.
      evaluate: parameters to figures, reported and written every `evaluate_every` steps and at the end.
      report: takes a line of progress.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    state = restore(state, folder)
    jitted = jax.jit(
        functools.partial(train_step, config=config, optimizer=optimizer, compute_dtype=compute_dtype),
        donate_argnames="state",
    )
    first = step = int(state.step)
    if first:
        report(f"going on from step {first}")
    with (folder / METRICS).open("a", encoding="utf-8") as metrics_file:

        def note(figures: dict[str, float]) -> None:
            metrics_file.write(json.dumps({"step": step} | figures) + "\n")
            metrics_file.flush()

        began, tokens = time.perf_counter(), 0
        while step < steps:
            batch = batches[step]
            state, metrics = jitted(state, batch)
            step += 1
            tokens += batch.tokens_BT.size
            if step % log_every == 0 or step == steps:
                figures = {name: float(value) for name, value in metrics.items()}
                rate = tokens / (time.perf_counter() - began)
                left = (steps - step) * (time.perf_counter() - began) / (step - first)
                note(figures | {"tokens_per_second": rate})
                report(
                    f"step {step}/{steps}  loss {figures['loss']:.3f}  grad {figures['grad_norm']:.2f}  "
                    f"{rate:,.0f} tokens/s  {left / 60:.0f} min left"
                )
            if evaluate is not None and (step % evaluate_every == 0 or step == steps):
                figures = evaluate(state.params)
                note(figures)
                report("  ".join([f"step {step}", *[f"{name} {value:,.4g}" for name, value in figures.items()]]))
            if step % save_every == 0 or step == steps:
                save(state, folder)
    return state


def save(state: TrainState, folder: Path) -> None:
    """Writes the checkpoint beside the old one and then replaces it."""
    arrays = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    part = folder / (CHECKPOINT + ".part")
    part.write_bytes(serialization.to_bytes(jax.device_get(arrays)))
    os.replace(part, folder / CHECKPOINT)


def restore(state: TrainState, folder: Path) -> TrainState:
    """The state with what the checkpoint in `folder` holds; as it was where there is none."""
    if not (folder / CHECKPOINT).is_file():
        return state
    arrays = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    arrays = serialization.from_bytes(arrays, (folder / CHECKPOINT).read_bytes())
    return dataclasses.replace(state, **jax.tree.map(jax.numpy.asarray, arrays))
