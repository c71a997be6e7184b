"""A whole benchmark: what is asked in; results, the machine and profiles out. Its side effects are processes and a folder.

Plan ─workers→ weights in a folder, the machine's speeds ─case by case, engines taking turns→ results ─→ profiles
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dialogpt_jax.bench.cases import (
    COMPILED,
    ENGINES,
    OURS,
    PROCESSOR_TOKENS,
    STEP,
    STEP_TOKENS,
    Case,
    Contender,
    Engine,
    contenders_of,
)
from dialogpt_jax.bench.measure import Result, measure_case
from dialogpt_jax.bench.processes import EngineError, Worker, workers_of
from dialogpt_jax.bench.worker import TRAINS
from dialogpt_jax.parallel.chips import peak_flops
from dialogpt_jax.whole_writes import folder_beside

PROFILED = ("decode", "prefill", "train")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked.

    Attributes:
      cases: what is measured.
      engines: who takes part, ours first.
      dtypes: in which.
      size, model: whose weights: "bundled", "small", "medium" or "large", or a model directory.
      repeats: turns of each.
      contexts: of the line `mixed`.
      profile: whether a call of each of `PROFILED` is looked into.
      environment: of the engines' processes, beside this one's.
    """

    cases: Sequence[Case]
    engines: Sequence[str]
    dtypes: Sequence[str]
    size: str | None = "bundled"
    model: str | None = None
    repeats: int = 5
    contexts: int = 200
    profile: bool = False
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Measured:
    """What came out; grows case by case, so that what is measured stays when the rest is broken off."""

    weights: dict[str, Any] = dataclasses.field(default_factory=dict)
    machine: dict[str, Any] = dataclasses.field(default_factory=dict)
    results: list[Result] = dataclasses.field(default_factory=list)
    profiles: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def run_benchmark(
    plan: Plan,
    measured: Measured,
    *,
    tell: Callable[[str], None] = lambda line: None,
    engines: Mapping[str, Engine] = ENGINES,
) -> None:
    """Measures everything into `measured`.

    Args:
      tell: is told what happens.
      engines: who there is.

    Raises:
      EngineError: ours could not write the weights, or look at the machine.
    """
    modules = {name: [engines[name].module] for name in plan.engines}
    modules |= {TRAINS: [engines[OURS].module, TRAINS]}
    with (
        folder_of_weights() as folder,
        workers_of(modules, plan.environment) as workers,
    ):
        ours, to_train = workers[OURS], workers | {OURS: workers[TRAINS]}
        tell("writing the weights")
        call = functools.partial(_call_ours, ours)
        how = {"size": plan.size, "model": plan.model, "gguf": "llama.cpp" in plan.engines}
        measured.weights = call("write_model", folder=folder, **how)
        if any(case.line == "mixed" for case in plan.cases):
            tell(f"making {plan.contexts:,} contexts")
            drawn = plan.model is None and plan.size != "bundled"
            call("write_contexts", folder=folder, contexts=plan.contexts, drawn=drawn)
        tell("measuring memory and products")
        measured.machine = call("describe_machine", dtypes=list(plan.dtypes))
        words = {"folder": folder, "threads": measured.machine["cores"]}
        compiled = {name for name in plan.engines if engines[name].compiles and _answer(workers[name], "compiles")}
        peak = peak_flops(measured.machine["device"])
        for number, case in enumerate(plan.cases, 1):
            contenders = contenders_of(case, plan.engines, plan.dtypes, known=engines, compiled=compiled)
            place = f"[{number}/{len(plan.cases)}]"
            results = measure_case(
                case,
                contenders,
                to_train if case.line == "train" else workers,
                words=words,
                repeats=plan.repeats,
                tell=functools.partial(_tell_behind, tell, place),
            )
            for result in results:
                result.amount = amount_of(case, result.contender, plan.contexts)
                if result.contender.what in ("", COMPILED) and not result.error:
                    result.limit = _limit(ours, folder, case, result.contender.dtype, measured.machine)
                if case.line == "train" and peak is not None and not result.error:
                    flops = _answer(ours, "training_operations", folder=folder, case=dataclasses.asdict(case))
                    result.utilisation = None if flops is None else flops / result.median / peak
            measured.results += results
        for case in plan.cases if plan.profile else ():
            if case.line in PROFILED:
                _profile(
                    to_train[OURS] if case.line == "train" else ours, folder, case, plan.dtypes, measured.profiles, tell
                )


@contextlib.contextmanager
def folder_of_weights() -> Iterator[str]:
    """A temporary folder, nobody else's to read; those of commands that were killed go when the next one begins."""
    with folder_beside(Path(tempfile.gettempdir()) / "dialogpt-bench") as locked:
        locked.chmod(0o700)
        folder = locked / "weights"  # not the locked one itself, in which a worker that writes would wait for its end
        folder.mkdir(0o700)
        yield str(folder)


def _tell_behind(tell: Callable[[str], None], place: str, line: str) -> None:
    tell(f"{place} {line}")


def _call_ours(ours: Worker, name: str, **words: Any) -> Any:
    """What a function of ours gives without which there is no benchmark."""
    try:
        return ours.call(name, **words)
    except EngineError as error:
        raise EngineError(f"{OURS}: {error}") from error


def _answer(worker: Worker, name: str, **words: Any) -> Any:
    """What a function of an engine gives, `None` where it cannot say."""
    try:
        return worker.call(name, **words)
    except EngineError:
        return None


def _limit(ours: Worker, folder: str, case: Case, dtype: str, machine: Mapping[str, Any]) -> float | None:
    """`None` where ours has ended, too: the figures of the others stand without it."""
    return _answer(ours, "least", folder=folder, dtype=dtype, case=dataclasses.asdict(case), speeds=machine)


def _profile(ours: Worker, folder: str, case: Case, dtypes: Sequence[str], into: list[Any], tell: Any) -> None:
    for contender in contenders_of(case, [OURS], dtypes):
        title = f"{case.describe()}, {contender.dtype}"
        tell(f"profile of {title}")
        try:
            found = ours.call("profile", folder=folder, dtype=contender.dtype, case=dataclasses.asdict(case))
        except EngineError as error:
            found = {"error": str(error)}
        into.append({"title": title, "dtype": contender.dtype, **dataclasses.asdict(case), **found})


def amount_of(case: Case, contender: Contender, contexts: int) -> float:
    """What a call makes: tokens or contexts."""
    if case.line == "mixed":
        return contexts
    if case.line == "processors":
        return STEP_TOKENS if contender.what == STEP else PROCESSOR_TOKENS
    return max(case.tokens(), 1)


def versions_of(engines: Sequence[str], known: Mapping[str, Engine] = ENGINES) -> dict[str, str]:
    """The versions of the packages that the engines are made of."""
    names = {"llama_cpp": "llama-cpp-python"}
    found = {}
    for package in dict.fromkeys(package for engine in engines for package in known[engine].packages):
        name = names.get(package, package)
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # on the path, but not installed
            found[name] = _said_version(package)
    return found


def _said_version(package: str) -> str:
    """What a package that is not installed says of its version; it is read and not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return "?"
    said = re.search(r"""^__version__ = ["'](.+?)["']""", Path(spec.origin).read_text("utf-8", "replace"), re.MULTILINE)
    return said[1] if said else "?"
