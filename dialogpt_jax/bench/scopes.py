"""Where a program's time goes: its text and a call of it in, milliseconds by named scope out.

jax's profiler notes each operation of a program with its name in the compiled text; that text has for each name the
scopes it was traced in (`op_name`), which are those of `jax.named_scope` and of the model's modules.

    trace ─own time of each event→ {instruction: seconds} ─op_name→ {scope: seconds}

An event may hold others: only what is its own counts, and nothing of loops and calls, which wait for their insides. XLA
drops the name of some products that it rewrites: such an instruction takes that of the one which reads it. What lies
between operations is the row `REST`.
"""

import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

REST, UNNAMED = "between operations", "without a scope"
# Of an operation's name: what jit, loops, branches and transformations write around the scopes.
_AROUND = re.compile(
    r"^(jit|pjit|closed_call|while|body|cond|branch_\d+_fun|checkpoint|rematted_computation|shard_map)\b"
)
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = .*? ([a-z][\w\-]*)\(([^)]*)\)(.*)$", re.MULTILINE)
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_WAIT = ("while", "call", "conditional")  # opcodes of what holds other instructions
_PASSES = 4  # between a product and the instruction that reads it stand few that only look at it otherwise
_INSIDE = re.compile(r"[\w.\-]+\((.*)\)")
_MODULES = {"GPT2", "Block"}  # each stands around all of its parts
_DEEPEST = 3
# Of what a GPU launches together a trace does not say what is what: nothing is.
APART: dict[str, str | bool] = {"xla_gpu_graph_min_graph_size": "1000000"}


def scope_of(op_name: str) -> str:
    """The scopes of an operation, from outside in: which phase of the program, then the parts of the model.

    Example:
      >>> scope_of("jit(reply_program)/while/body/GPT2/jit(_apply_block)/block/Block/mlp/c_fc/dot_general")
      'loop/block/mlp'
    """
    phase = ["loop"] if "/while/body/" in op_name else []
    parts = []
    for word in op_name.split("/")[:-1]:
        backward = "transpose(" in word
        while inside := _INSIDE.fullmatch(word):  # jvp(block), transpose(jvp(block)): whose gradient it is
            if word.startswith(("jit(", "pjit(")):
                break
            word = inside[1]
        if backward and "backward" not in phase:
            phase.append("backward")
        if word and not _AROUND.match(word) and word not in _MODULES:
            parts.append(word)
    return "/".join([*phase, *parts[: _DEEPEST - 1]]) or UNNAMED


def scopes_of_text(text: str) -> dict[str, str]:
    """The scope of each instruction in a compiled program's text; those that wait for others are left out."""
    scopes: dict[str, str] = {}
    reads: dict[str, list[str]] = {}
    for name, opcode, operands, rest in _INSTRUCTION.findall(text):
        if opcode in _WAIT:
            continue
        reads[name] = [operand.split()[-1].lstrip("%") for operand in operands.split(",") if operand.strip()]
        if found := _OP_NAME.search(rest):
            scopes[name] = scope_of(found[1])
    for _ in range(_PASSES):
        new: dict[str, str] = {}
        for name, scope in scopes.items():
            for operand in reads[name]:
                if operand in reads and operand not in scopes:
                    new.setdefault(operand, scope)  # the first that reads it
        scopes |= new
    return {name: scopes.get(name, UNNAMED) for name in reads}


def own_times(events: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """Seconds of each name, without those of the events inside.

    Args:
      events: (name, start, duration) of one thread.

    Example:
      >>> own_times([("while", 0, 10), ("dot", 1, 4), ("add", 6, 1)])
      {'while': 5.0, 'dot': 4.0, 'add': 1.0}
    """
    found: dict[str, float] = defaultdict(float)
    around: list[tuple[str, float]] = []  # of the events that are still going on: name and end
    for name, start, duration in sorted(events, key=lambda event: (event[1], -event[2])):
        while around and around[-1][1] <= start:
            around.pop()
        if around:
            found[around[-1][0]] -= duration
        found[name] += duration
        around.append((name, start + duration))
    return {name: float(seconds) for name, seconds in found.items()}


def read_trace(folder: Path) -> dict[str, float]:
    """Seconds of each instruction, of all threads together, in a trace of jax's profiler."""
    found: dict[str, float] = defaultdict(float)
    for file in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                events = [
                    (operation, event.start_ns / 1e9, event.duration_ns / 1e9)
                    for event in line.events  # on a GPU its own name is the kernel's
                    if (operation := dict(event.stats).get("hlo_op"))
                ]
                for name, seconds in own_times(events).items():
                    found[name] += seconds
    return found


def profile_program(text: str | None, run: Callable[[], Any], folder: str) -> dict[str, Any]:
    """Milliseconds of one call, by scope.

    Args:
      text: of the compiled program that `run` calls.
      run: a call until its result is there; it is made three times, the last under the profiler.
      folder: where the trace is while it is read; it goes with it when this process is killed.
    """
    run()
    start = time.perf_counter()
    run()
    plain = time.perf_counter() - start
    with tempfile.TemporaryDirectory(dir=folder) as place:
        with jax.profiler.trace(place):
            start = time.perf_counter()
            run()
            traced = time.perf_counter() - start
        seconds = read_trace(Path(place))
    return {
        "plain_ms": plain * 1e3,
        "traced_ms": traced * 1e3,
        "scopes": by_scope(seconds, scopes_of_text(text or ""), traced),
    }


def by_scope(seconds: Mapping[str, float], scopes: Mapping[str, str], whole: float) -> list[dict[str, Any]]:
    """Milliseconds and shares, the longest first; together they are the whole call where threads take turns."""
    found: dict[str, float] = defaultdict(float)
    for name, own in seconds.items():
        if name in scopes:  # else a loop, or another program's
            found[scopes[name]] += own
    found[REST] = max(whole - sum(found.values()), 0.0)
    total = sum(found.values())
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return [{"scope": scope, "ms": own * 1e3, "share": own / total} for scope, own in ordered]
