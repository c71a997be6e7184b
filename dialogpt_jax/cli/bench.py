"""`dialogpt bench`: which lines, sizes and peers in; how fast each is, side by side, as a table, JSON and a picture out."""

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from dialogpt_jax import __version__
from dialogpt_jax.arguments import as_path
from dialogpt_jax.bench.cases import ENGINES, LINES, OURS, cases_of, contenders_of
from dialogpt_jax.cli import streams
from dialogpt_jax.cli.flags import FROM_1, HOW, RESULTS, WHAT, UsageError, make_app, whole
from dialogpt_jax.errors import counted
from dialogpt_jax.weights.dtypes import DTypeName
from dialogpt_jax.whole_writes import whole_file

EXAMPLES = f"""\
Lines, and what each measures:
{chr(10).join(f"  {name:12}{line.summary}" for name, line in LINES.items())}

Every engine has the same weights, through this project's own export, and a process of its own. In a case the engines take \
turns, so that what else the machine does disturbs all alike: read the ratios. Peers are transformers, ctranslate2 and \
llama.cpp, as far as they are installed: `pip install -e '.[bench]'`. In chat, a peer without a cache that it keeps \
reads the whole dialogue again; in mixed, peers take batches of contexts of like length.

Scopes of a profile are those of the code, from outside in. "loop" is what repeats, as a step of decoding; "backward" a \
gradient; "without a scope" what is no part of the model; "between operations" the call's start, and waiting.

With --topology decode is compiled for a TPU that is not here, and nothing runs. Its compiler comes with \
`pip install -e '.[tpu]'`, in an environment of its own.

Examples:
  dialogpt bench                           decode, prefill, chat: bundled
  dialogpt bench decode --size small --dtype float32 int8 --rows 1 8 32
  dialogpt bench prefill --size small --prompt 64 256 --peers ctranslate2
  dialogpt bench decode train --profile --peers none
  dialogpt bench all --json bench.json --plot bench.png
  dialogpt bench decode --size small --rows 1 8 64 --topology v5e:2x2
"""
ALL, NONE = "all", "none"
PEERS = [name for name in ENGINES if name != OURS]
BUSY = 1.0  # running programs, in the last minute
DEFAULT_LINES = ("decode", "prefill", "chat")
app = make_app("bench", "dialogpt bench [OPTIONS] [LINE...]", help_epilogue=EXAMPLES)


def _numbers(_: Any, tokens: Sequence[Any]) -> list[int]:
    found = [whole(_, [token]) for token in tokens]
    if any(number < 1 for number in found):
        raise ValueError(f"{min(found)} is less than 1")
    return list(dict.fromkeys(found))


NUMBERS = Parameter(converter=_numbers, consume_multiple=1, metavar="N", group=HOW)


@app.default
def run(
    *lines: Annotated[Literal[(*LINES, ALL)], Parameter(name="LINE", help="what to measure (decode prefill chat)")],  # type: ignore[valid-type]
    size: Annotated[
        Literal["bundled", "small", "medium", "large"] | None,
        Parameter(
            metavar="NAME", group=WHAT, help="the bundled model, or drawn weights at a GPT-2's true shapes (bundled)"
        ),
    ] = None,
    model: Annotated[
        str | None, Parameter(metavar="DIR", group=WHAT, help="a model directory, instead of a size")
    ] = None,
    dtype: Annotated[
        list[DTypeName] | None,
        Parameter(
            metavar="NAME",
            consume_multiple=1,
            group=WHAT,
            help="of weights (float32 bfloat16 int8); a peer takes its nearest",
        ),
    ] = None,
    peers: Annotated[
        list[Literal[(*PEERS, NONE)]] | None,  # type: ignore[valid-type]
        Parameter(
            metavar="NAME",
            consume_multiple=1,
            group=WHAT,
            help="engines beside ours, or none (all that are installed)",
        ),
    ] = None,
    rows: Annotated[
        list[int] | None, NUMBERS, Parameter(help="rows at once (decode 1 8, prefill 1, train 32 …)")
    ] = None,
    prompt: Annotated[
        list[int] | None, NUMBERS, Parameter(help="tokens of a prompt (decode 64, prefill 256, train 128)")
    ] = None,
    new: Annotated[
        int | None, FROM_1, Parameter(metavar="N", group=HOW, help="new tokens (decode 64, searches 32)")
    ] = None,
    contexts: Annotated[int, FROM_1, Parameter(metavar="N", group=HOW, help="how many mixed replies to")] = 200,
    repeats: Annotated[int, FROM_1, Parameter(metavar="N", group=HOW, help="turns of each engine")] = 5,
    profile: Annotated[
        bool, Parameter(group=RESULTS, help="where the time of decode, prefill and train goes, by named scope")
    ] = False,
    topology: Annotated[
        str | None,
        Parameter(
            metavar="CHIP:SHAPE",
            group=HOW,
            help="compile decode for one such TPU, and measure nothing: v5e:2x2, v6e:2x2, v5p:2x2x1",
        ),
    ] = None,
    as_json: Annotated[
        str | None,
        Parameter(name="--json", metavar="FILE", group=RESULTS, help="everything as JSON, every call's seconds too"),
    ] = None,
    plot: Annotated[
        str | None, Parameter(metavar="FILE.png", group=RESULTS, help="the table as a picture; needs matplotlib")
    ] = None,
) -> int:
    from dialogpt_jax.bench import report
    from dialogpt_jax.bench.benchmark import PROFILED, Measured, Plan, run_benchmark, versions_of

    if size is not None and model is not None:
        raise UsageError("give one of --size and --model")
    if peers and NONE in peers and len(peers) > 1:
        raise UsageError("--peers none goes with no other name")
    wanted = list(LINES) if ALL in lines else list(dict.fromkeys(lines)) or list(DEFAULT_LINES)
    if topology is not None:
        refused = {"--profile": profile, "--peers": peers, "--plot": plot is not None}
        if any(refused.values()):
            raise UsageError(
                f"--topology measures nothing: leave {next(name for name in refused if refused[name])} out"
            )
        if lines and wanted != ["decode"]:
            raise UsageError("--topology goes with the line decode alone")
        wanted = ["decode"]
    if size not in ("medium", "large") and "draft" in wanted:
        if ALL not in lines:
            raise UsageError(
                "draft goes with --size medium or --size large, for which the small one drafts; lookup is for all"
            )
        wanted.remove("draft")
    if profile and not set(wanted) & set(PROFILED):
        raise UsageError(f"--profile looks into {', '.join(PROFILED)} alone: name one of them, or leave it out")
    dtypes = list(dict.fromkeys(dtype or ("float32", "bfloat16", "int8")))
    if ALL in lines and "train" in wanted and not {"float32", "bfloat16"} & set(dtypes):
        streams.tell(f"train takes no part, not being measured in {' or '.join(dtypes)}")
        wanted.remove("train")
    for flag, name in (("--model", model), ("--json", as_json), ("--plot", plot)):
        if name is not None:
            as_path(flag, name)
    if plot is not None and not plot.lower().endswith(".png"):
        raise ValueError(f"--plot is {plot}; name a file that ends in .png")
    _check_places(as_json, plot)
    if as_json is not None and plot is not None and Path(as_json).resolve() == Path(plot).resolve():
        raise UsageError("--json and --plot name one file; give each its own")
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib; `pip install matplotlib`, or leave --plot out")
    for flag, numbers in (("rows", rows), ("prompt", prompt), ("new", new)):
        if numbers and not any(flag in LINES[line].flags for line in wanted):
            those = ", ".join(name for name, line in LINES.items() if flag in line.flags)
            raise UsageError(f"--{flag} changes nothing of {' or '.join(wanted)}; it is for {those}")
    config = _config_of(size or "bundled", model)
    cases = cases_of(wanted, rows=rows or (), prompts=prompt or (), new=new)
    for case in cases:
        if case.prompt + case.new > config.n_positions:
            less = " or ".join(f"--{flag}" for flag in LINES[case.line].flags if flag != "rows")
            raise ValueError(
                f"{case.describe()}: more than the model's {config.n_positions} positions; "
                + (f"give less with {less}" if less else f"leave {case.line} out")
            )
        if not contenders_of(case, [OURS], dtypes):
            raise UsageError(f"{case.line} is not measured in {' or '.join(dtypes)}; give another --dtype")
    if topology is not None:
        return _compile_ahead(model or size or "bundled", config, cases, dtypes, topology, as_json)
    engines = [OURS, *_installed(peers)]
    plan = Plan(
        cases,
        engines,
        dtypes,
        size=None if model else size or "bundled",
        model=None if model is None else str(Path(model).resolve()),
        repeats=repeats,
        contexts=contexts,
        profile=profile,
        environment=_program_cache() | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},  # a GPU has room for all engines
    )
    settings: dict[str, Any] = {
        "named": model or f"{size or 'bundled'}",
        "lines": wanted,
        "dtypes": dtypes,
        "engines": engines,
    }
    settings |= {"repeats": repeats, "contexts": contexts, "versions": versions_of(engines), OURS: __version__}
    _tell_load()
    measured = Measured()
    try:
        with _progress() as tell:
            run_benchmark(plan, measured, tell=tell)
    except KeyboardInterrupt:
        if measured.results:  # minutes of work; a file is whole or not there
            streams.show(report.as_text(measured.results))
        raise
    settings["weights"] = measured.weights
    _report(measured, settings, as_json=as_json, plot=plot)
    failed = sum(bool(result.error) for result in measured.results)
    failed += sum("error" in one for one in measured.profiles)
    if failed:
        streams.tell(f"dialogpt bench: {counted(failed, 'measurements')} failed; see the table")
    return 1 if failed else 0


def _compile_ahead(
    named: str, config: Any, cases: Sequence[Any], dtypes: Sequence[str], topology: str, as_json: str | None
) -> int:
    """What a step of decoding takes on a TPU that is not here, by its compiled program."""
    from dialogpt_jax.bench import ahead

    device, chip = ahead.device_of(topology)
    found = []
    for case in cases:
        for dtype in dtypes:
            streams.tell(f"compiling {case.describe()}, {dtype}")
            found.append(ahead.compile_step(config, case, dtype, device, chip))
    try:
        streams.show(f"{ahead.describe(named, config, topology, found)}\n\n{ahead.as_text(found)}")
    finally:
        if as_json is not None:
            _write_json(as_json, ahead.as_values(named, config, topology, found))
    return 0 if all(one.program.fits for one in found) else 1


def _config_of(size: str, model: str | None) -> Any:
    """The sizes, before any weights are drawn or read."""
    from dialogpt_jax.chat.loading import bundled_directory
    from dialogpt_jax.config import GPT2Config
    from dialogpt_jax.weights.directory import read_config

    if model is not None and not Path(model).is_dir():
        raise ValueError(f"--model {model}: no such directory; `dialogpt convert NAME DIR` makes one")
    if model is not None or size == "bundled":
        return read_config(model or bundled_directory())
    return getattr(GPT2Config, size)()


def _installed(peers: Sequence[str] | None) -> list[str]:
    """The peers that take part; of one that is missing it is told how to get it."""
    names = [name for name in PEERS if peers is None or name in peers]
    found = []
    for name in names:
        if missing := ENGINES[name].missing():
            streams.tell(f"{name} takes no part, {' and '.join(missing)} not being installed: {ENGINES[name].install}")
        else:
            found.append(name)
    return found


def _tell_load() -> None:
    """Whether others use the machine: then times are not its own, and ratios are noisy."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > BUSY:
        streams.tell(f"the machine is busy (load {load:.1f}): figures will be too low, and ratios noisy; best wait")


def _program_cache() -> dict[str, str]:
    """The environment in which ours keeps its compiled programs where all commands do, so that a second run is quick."""
    from dialogpt_jax.cli.program_cache import MOST_BYTES, keep_compiled_programs

    folder = keep_compiled_programs()
    if folder is None:
        return {}
    words = {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    words |= {"JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    return words | {"JAX_COMPILATION_CACHE_MAX_SIZE": str(MOST_BYTES)}  # without it none has the time of its last use


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Tells what happens: on a terminal in one line that changes, else a line where a case begins."""
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status("starting", spinner="dots") as status:
            yield lambda line: status.update(line.replace("[", "\\["))
        return
    last = ""

    def tell(line: str) -> None:
        nonlocal last
        case = line.partition(": ")[0]
        if case != last:
            streams.tell(case)
        last = case

    yield tell


def _check_places(*names: str | None) -> None:
    """What could not be written is told before the work."""
    for name in filter(None, names):
        if Path(name).exists() and not (Path(name).is_file() or Path(name).is_dir()):  # it would be replaced itself
            raise ValueError(f"{name} is no plain file, which is replaced in the end; name another place")
        folder = Path(name).parent
        if not folder.is_dir():
            raise FileNotFoundError(2, "no such folder", str(folder))
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "nothing can be written there", str(folder))
        if Path(name).is_dir():
            raise ValueError(f"{name} is a folder; name a file")


def _report(measured: Any, settings: dict[str, Any], *, as_json: str | None, plot: str | None) -> None:
    from dialogpt_jax.bench import report

    told = report.describe_run(settings, measured.machine)
    try:
        streams.show(f"{told}\n\n{report.as_text(measured.results)}")
        for one in measured.profiles:
            streams.show(f"\nprofile of {report.profile_as_text(one, one['title'])}")
    finally:  # whoever does not read the table has the files all the same
        if as_json is not None:
            _write_json(as_json, report.as_values(measured.results, settings, measured.machine, measured.profiles))
        if plot is not None:
            report.save_plot(measured.results, Path(plot), title=told.partition("\n")[0])


def _write_json(name: str, values: dict[str, Any]) -> None:
    with whole_file(Path(name)) as part:
        part.write_text(json.dumps(values, ensure_ascii=False, indent=2, allow_nan=False) + "\n", encoding="utf-8")
