"""The loop around the pure step, with its side effects: a model and examples in; a trained model,
checkpoints and figures out.

    examples ─plan→ batches ─step→ state ─step→ … ─save→ checkpoints
                                     └─ metrics, read one step late, so that the device never waits for the host

Since a batch is a function of (seed, step) and a step's key of (key, step), a run that was stopped and goes on ends bit
for bit where an unbroken one does, on the same machine kind, versions and mesh.
"""

import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dialogpt_jax.arguments import as_flag, as_path, shown
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import Batch, Batches, read_ahead
from dialogpt_jax.data.examples import Example
from dialogpt_jax.errors import counted, naming
from dialogpt_jax.int8 import check_trainable
from dialogpt_jax.model import Params
from dialogpt_jax.parallel.chips import peak_flops, training_flops
from dialogpt_jax.parallel.distributed import first_process_says, global_batch, rows_here
from dialogpt_jax.parallel.mesh import make_mesh
from dialogpt_jax.parallel.rules import batch_sharding, check_divides
from dialogpt_jax.run.begin import TrainingError, begin_state, identity_of
from dialogpt_jax.run.checkpoints import Checkpoints
from dialogpt_jax.run.journal import Journal, Pace, as_figures, as_lines, progress_line
from dialogpt_jax.run.options import TrainOptions
from dialogpt_jax.run.program import make_program, shardings_of
from dialogpt_jax.run.stopping import Stopping
from dialogpt_jax.training.average import average_of
from dialogpt_jax.training.distillation import Teacher, check_teachers
from dialogpt_jax.training.objective import LANGUAGE_MODEL, Objective
from dialogpt_jax.training.step import TrainState

CHECKPOINTS = "checkpoints"
BAD_STEPS = 5  # so many in a row that are not finite stop the run: they change nothing, so the next would not be either


class Fitted(NamedTuple):
    """What a run ends with.

    Attributes:
      params: float32, on the run's mesh; their running average where the options ask for one.
      config: of the model.
      state: all that `train_step` needs to go on.
      history: what was noted, an entry a line of `metrics.jsonl`.
      stopped: what asked for a stop before the last step; "" if nothing did.

    Example:
      >>> int(fitted.state.step), fitted.stopped
      (2, '')
    """

    params: Params
    config: GPT2Config
    state: TrainState
    history: list[dict[str, Any]]
    stopped: str

    def __repr__(self) -> str:
        last = {name: value for entry in self.history for name, value in entry.items() if name.endswith("loss")}
        losses = "".join(f", {name} {value:.4g}" for name, value in last.items())
        stopped = f", stopped by {self.stopped}" if self.stopped else ""
        steps = counted(int(self.state.step), "steps")
        return f"Fitted({self.config.num_parameters:,} parameters, {steps}{losses}{stopped})"


def fit(
    params: Params,
    config: GPT2Config,
    examples: Sequence[Example],
    options: TrainOptions,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    mesh: Mesh | None = None,
    teachers: Sequence[Teacher] = (),
    objective: Objective = LANGUAGE_MODEL,
    evaluate: Callable[[Params], dict[str, float]] | None = None,
    sample: Callable[[Params], list[str]] | None = None,
    report: Callable[[str], None] = print,
) -> Fitted:
    """Trains a model on examples until step `options.steps`.

    Args:
      params: where to begin; they are copied, not consumed.
      config: of the model.
      examples: a list from `examples`, or the folder of `dialogpt data prepare` (`open_shards`).
      options: how; `TrainOptions(steps=200, batch_size=8, learning_rate=1e-3)`.
      out: a folder for checkpoints, `metrics.jsonl` and TensorBoard's files; without one nothing is written.
      resume: go on from the newest checkpoint in `out`, if there is one.
      mesh: of `make_mesh`; by default all devices on `data`.
      teachers: models of the same tokenizer whose distributions are learned beside the data, `options.teacher_share` of
        the targets; they compute in the dtype of the products, whole on each device.
      objective: what is made small. With `PAIRWISE` the parameters are a ranker's and the examples pairs, of `make_pairs`;
        it has no teachers.
      evaluate: parameters to figures, `valid_loss` among them: by it the best checkpoint is known. Called before the
        first step, every `options.evaluate_every` and at the end.
      sample: parameters to lines to be shown, at the same steps.
      report: takes a line for a person.

    Raises:
      ValueError: examples, options, model and mesh do not fit each other; `out` holds another run.
      TrainingError: several steps in a row were not finite.
      OSError: a checkpoint cannot be read or written; those before it are as they were.

    Example:
      >>> examples = dg.make_examples([["Hi!", "Hello, I am Pip."], ["Who are you?", "I am Pip."]], bot.tokenizer)
      >>> options = dg.TrainOptions(steps=2, batch_size=2, learning_rate=1e-3)
      >>> fitted = dg.fit(bot.params, bot.config, examples, options, report=lambda line: None)
      >>> pip = dg.Bot(fitted.params, fitted.config, bot.tokenizer)
    """
    if not isinstance(objective, Objective):
        raise TypeError(f"objective is {shown(objective)}; give PAIRWISE, or leave it out for a language model")
    objective.check(params, config)
    check_trainable(params)
    as_flag("resume", resume)
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(f"mesh is {shown(mesh)}; give one of `make_mesh`, or None")
    for name, function in {"evaluate": evaluate, "sample": sample, "report": report}.items():
        if not callable(function) and (function is not None or name == "report"):
            raise TypeError(f"{name} is {shown(function)}; give a function")
    mesh = make_mesh() if mesh is None else mesh
    folder = None if out is None else as_path("out", out)
    check_divides(config, mesh)
    check_teachers(teachers, config)
    if teachers and objective is not LANGUAGE_MODEL:
        raise ValueError("teachers are for a language model, which learns what they expect next; leave them out")
    identity = identity_of(options, config, examples, mesh, teachers, objective)
    program = make_program(options, config, mesh, tuple(teacher.config for teacher in teachers), objective)
    checkpoints = _open(folder, options)
    try:
        state, identity = begin_state(params, program, identity, checkpoints, resume=resume, report=report)
        if options.recipe is not None and int(state.step):
            opt_state = options.recipe.resumed(state.opt_state, program.optimizer, state.params, int(state.step))
            state = dataclasses.replace(
                state, opt_state=jax.device_put(opt_state, shardings_of(program.layout.opt_state))
            )
        batches = Batches(examples, options.planner(identity["length"], identity["multiple"]), seed=options.seed)
        check_divides(config, mesh, rows=identity["multiple"])
        if rows := batches.rows_of_whole_epoch:
            report(
                f"{counted(len(examples), 'examples', ('fills', 'fill'))} no more than one batch: every step takes "
                f"all of them, in {counted(rows, 'rows')}"
            )
        run = _Run(
            step=functools.partial(program.step, taught=_on_each(teachers, options, mesh)),
            compiled=program.compiled,
            batches=batches,
            sharding=batch_sharding(mesh),
            options=options,
            config=config,
            perplexity=objective is LANGUAGE_MODEL,
            rate=options.rate(config),
            peak=_peak(options, mesh) if objective is LANGUAGE_MODEL else None,  # the flops counted are its own
            identity=identity,
            folder=folder,
            checkpoints=checkpoints,
            journal=Journal(folder if jax.process_index() == 0 else None, int(state.step), report),
            evaluate=evaluate,
            sample=sample,
        )
        try:
            state, stopped = run.go(state)
        finally:
            run.journal.close()
        return Fitted(average_of(state.params, state.opt_state), config, state, run.journal.history, stopped)
    finally:
        if checkpoints is not None:
            checkpoints.close()


@dataclasses.dataclass
class _Run:
    """Everything that the loop uses; `go` runs it."""

    step: Callable[..., Any]
    compiled: set[tuple[int, int]]
    batches: Batches
    sharding: NamedSharding
    options: TrainOptions
    config: GPT2Config
    perplexity: bool  # whether the loss has one
    rate: Callable[[int], Any]
    peak: float | None
    identity: dict[str, Any]
    folder: Path | None
    checkpoints: Checkpoints | None
    journal: Journal
    evaluate: Callable[[Params], dict[str, float]] | None
    sample: Callable[[Params], list[str]] | None
    bad: int = 0

    def go(self, state: TrainState) -> tuple[TrainState, str]:
        """All steps that are left; the state after the last, and what asked for a stop before it."""
        options, first = self.options, int(state.step)
        best = min((e["valid_loss"] for e in self.journal.history if "valid_loss" in e), default=math.inf)
        pace, pending = Pace(first, options.steps), None
        if not first:
            best = min(best, self._look(state, 0, pace).get("valid_loss", math.inf))
        with Stopping() as stopping:
            for step, local in zip(range(first, options.steps), self._read(first), strict=True):
                length, members_B = self.batches.planned(step)
                shape = (len(members_B), length)
                if shape not in self.compiled and pending is not None:
                    self._settle(*pending, pace)  # what is compiled now shall not stand in its figures
                    pending = None
                batch = global_batch(functools.partial(_given, local), len(members_B), self.sharding)
                if shape in self.compiled:
                    state, metrics = self.step(state, batch)
                    pace.add(self.batches.tokens(step), training_flops(self.config, len(members_B), length))
                else:
                    state, metrics = self._compile(shape, state, batch, pace)
                if pending is not None:
                    self._settle(*pending, pace)  # of the step before: the device has its next one already
                done, pending = step + 1, (step + 1, metrics, local)
                stopped = stopping.asked(done) if done < options.steps else ""
                last = done == options.steps or bool(stopped)
                if last or _is_due(done, options.evaluate_every) or _is_due(done, options.save_every):
                    self._settle(*pending, pace)
                    pending = None
                figures: dict[str, float] = {}
                if done == options.steps or _is_due(done, options.evaluate_every):
                    figures = self._look(state, done, pace)
                better = False
                if "valid_loss" in figures:
                    # What was best before the run was resumed stands in the history, which process 0 alone has; a
                    # checkpoint is saved by all processes, or by none.
                    better = first_process_says(figures["valid_loss"] < best)
                    best = min(best, figures["valid_loss"])
                if self.checkpoints is not None and (last or better or _is_due(done, options.save_every)):
                    self.checkpoints.save(state, identity=self.identity, metrics=figures)
                if stopped:
                    if self.checkpoints is not None:
                        self.checkpoints.wait()
                    self.journal.tell(f"stopped by {stopped} after step {done} of {options.steps}")
                    return state, stopped
        return state, ""

    def _compile(self, shape: tuple[int, int], state: TrainState, batch: Batch, pace: Pace) -> tuple[TrainState, Any]:
        """The first step with batches of a shape, which compiles it: that is told, and not counted as training."""
        began = time.perf_counter()
        self.journal.tell(f"compiling the step for {counted(shape[0], 'rows')} of {shape[1]} tokens …")
        state, metrics = jax.block_until_ready(self.step(state, batch))
        self.compiled.add(shape)
        spent = time.perf_counter() - began
        self.journal.tell(f"compiled and done once in {spent:.1f} s")
        pace.skip(spent)
        return state, metrics

    def _read(self, first: int) -> Iterator[Batch]:
        """This process's rows of every step, read ahead of it."""

        def load(step: int) -> Batch:
            return self.batches.read(step, rows_here(len(self.batches.planned(step).members_B), self.sharding))

        return read_ahead(load, first, self.options.steps)

    def _settle(self, done: int, metrics: dict[str, jax.Array], local: Batch, pace: Pace) -> None:
        """Waits for a step's metrics, and notes them where that is due; stops a run that has gone wrong."""
        figures = {name: float(value) for name, value in metrics.items()}
        if figures.pop("finite"):
            self.bad = 0
        else:
            self._tell_bad(done, figures, local)
        if done == self.options.steps or _is_due(done, self.options.log_every):
            figures |= {"learning_rate": float(self.rate(done - 1))} | pace.figures(done, self.peak)
            self.journal.note(done, figures)
            self.journal.tell(progress_line(done, self.options.steps, figures, perplexity=self.perplexity))

    def _tell_bad(self, done: int, figures: dict[str, float], local: Batch) -> None:
        self.bad += 1
        kept = ""
        if self.folder is not None:
            path = self.folder / "not_finite" / f"step_{done}_process_{jax.process_index()}.npz"
            path.parent.mkdir(exist_ok=True)
            with naming(path):
                np.savez(path, **{name: array for name, array in local._asdict().items() if array is not None})
            kept = f"; its batch is in {path}"
        said = f"step {done} was not finite (loss {figures['loss']}, gradient {figures['grad_norm']})"
        self.journal.tell(f"{said} and changed nothing{kept}")
        if self.bad == BAD_STEPS:
            raise TrainingError(f"{BAD_STEPS} steps in a row were not finite, the last {done}; lower the learning rate")

    def _look(self, state: TrainState, done: int, pace: Pace) -> dict[str, float]:
        """Evaluates and samples; what that took is not counted as training."""
        began, figures = time.perf_counter(), {}
        params = average_of(state.params, state.opt_state)
        if self.evaluate is not None:
            if not done:
                self.journal.tell("evaluating before the first step …")
            figures = as_figures(self.evaluate(params))
            self.journal.note(done, figures)
            self.journal.tell("  ".join([f"step {done}", *(f"{name} {value:,.4g}" for name, value in figures.items())]))
        if self.sample is not None:
            if self.evaluate is None:  # whose line has the number
                self.journal.tell(f"step {done}, replies" if done else "before the first step, replies")
            lines = as_lines(self.sample(params))
            self.journal.note(done, {"samples": lines})
            for line in lines:
                self.journal.tell(f"    {line}")
        pace.pause(time.perf_counter() - began)
        return figures


def _peak(options: TrainOptions, mesh: Mesh) -> float | None:
    """The most flop/s of all devices in the dtype of the products, where it is known."""
    peak = peak_flops(mesh.devices.flat[0].device_kind) if options.dtype == "bfloat16" else None
    return None if peak is None else peak * mesh.size


def _on_each(teachers: Sequence[Teacher], options: TrainOptions, mesh: Mesh) -> list[Params]:
    """The parameters of each teacher, whole on each device, in the dtype of the products."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    cast = [jax.tree.map(lambda x: np.asarray(x).astype(options.compute_dtype), teacher.params) for teacher in teachers]
    return jax.device_put(cast, everywhere)


def _given(local: Batch, rows_B: np.ndarray) -> Batch:
    """What `global_batch` asks for, read before it asks."""
    return local


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _open(folder: Path | None, options: TrainOptions) -> Checkpoints | None:
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return Checkpoints(folder / CHECKPOINTS, keep=options.keep, best="valid_loss")
