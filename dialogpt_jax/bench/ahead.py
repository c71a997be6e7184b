"""`generate` for a TPU that is not here: a config and a topology in, what one step of its compiled loop takes there out.

    shapes ─lowered for one device of the topology, compiled by libtpu→ text ─the loop over tokens→ Step

Nothing is measured: a step's least time is that of its bytes at the chip's speed of memory, or of its operations at the
speed of its products. See `run/compiled_loop.py` for what counts as a byte.

Letters: B rows, T prompt tokens.
"""

import dataclasses
import time
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from dialogpt_jax.bench.cases import Case
from dialogpt_jax.bench.limits import weight_bytes
from dialogpt_jax.bench.report import aligned
from dialogpt_jax.cache import cache_dtype, init_cache
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding.generate import reply_program
from dialogpt_jax.decoding.request import Request, assemble
from dialogpt_jax.decoding.sampling import GREEDY
from dialogpt_jax.model import Params, init_params
from dialogpt_jax.parallel.chips import Chip, forward_flops
from dialogpt_jax.quantization import quantize
from dialogpt_jax.run.compiled_loop import SPILL, loop_pass
from dialogpt_jax.run.dry_run import chip_of, compile_for_tpu, figures_of, topology_devices
from dialogpt_jax.run.dry_run_report import CompiledProgram

FLOAT32_PASSES = 6  # products in bfloat16 that one in float32 is made of: a TPU has no others
LEAST_WEIGHT = 10_000  # numbers; biases have axes of heads too


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of the loop over tokens, for all rows.

    Attributes:
      case, dtype: of which call.
      needed: bytes of the weights that a step multiplies by and of the whole cache, counted by hand.
      read, written: bytes of memory, by the compiled text.
      held: bytes that stay on the chip from step to step, and are not read again.
      flops: of a step, counted by hand.
      spills: how often a whole weight or cache leaves the chip for memory, to make room.
      moves: what makes a whole weight again at every step, on the chip too; copies, transposes and casts of a whole cache.
      other_loops: loops of the program beside the one over tokens.
      program: of the whole call.
    """

    case: Case
    dtype: str
    needed: float
    read: int
    written: int
    held: int
    flops: float
    spills: int
    moves: dict[str, int]
    other_loops: int
    program: CompiledProgram

    @property
    def times(self) -> dict[str, float]:
        """Seconds at full speed, of each alone."""
        chip: Chip = self.program.chip
        passes = FLOAT32_PASSES if self.dtype == "float32" else 1
        return {
            "memory": (self.read + self.written) / chip.memory_speed,
            "compute": passes * self.flops / chip.flops,
        }

    @property
    def seconds(self) -> float:
        return max(self.times.values())

    @property
    def bound_by(self) -> str:
        return max(self.times, key=self.times.__getitem__)


def device_of(topology: str) -> tuple[Any, Chip]:
    """One device of a topology, and what it can do.

    Raises:
      DryRunError: libtpu is not installed, or the topology or its chip is unknown.
    """
    devices = topology_devices(topology)
    return devices[0], chip_of(devices)


def compile_step(config: GPT2Config, case: Case, dtype: str, device: Any, chip: Chip) -> Step:
    """Compiles `generate` for the device, greedily and EOS forbidden."""
    start = time.perf_counter()
    params, request = shapes_of(config, case, dtype)
    on = SingleDeviceSharding(device)
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on), (params, request))
    compiled = compile_for_tpu(reply_program.lower(placed[0], config, placed[1]))
    name = f"generate {case.new}"
    prompt_flops = forward_flops(config, case.rows, case.prompt, head_tokens=case.rows)
    program = figures_of(name, compiled, prompt_flops, chip, 1, start)
    found = loop_pass(compiled.as_text() or "")
    slots = request.tokens_BT.shape[1] + request.slots
    cache = jax.eval_shape(lambda: init_cache(config, case.rows, slots, cache_dtype(params)))
    numbers = case.rows * config.n_embd  # of keys or values, a slot of a block
    matrices = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]  # scales are as many as a row has logits
    weights = {leaf.size for leaf in matrices if leaf.size >= LEAST_WEIGHT}
    caches = {numbers * request.tokens_BT.shape[1], numbers * request.slots}
    moves = found.moves(weights, caches)
    return Step(
        case=case,
        dtype=dtype,
        needed=weight_bytes(config, dtype) + sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache)),
        read=found.read,
        written=found.written,
        held=found.held,
        flops=_step_flops(config, case.rows, slots),
        spills=moves.pop(SPILL, 0),
        moves=moves,
        other_loops=len(program.loops) - 1,
        program=program,
    )


def shapes_of(config: GPT2Config, case: Case, dtype: str) -> tuple[Params, Request]:
    """Of parameters and of a request, without any number of either."""

    def draw() -> Params:
        params = init_params(config, jax.random.key(0), jnp.float32 if dtype == "int8" else jnp.dtype(dtype))
        return quantize(params) if dtype == "int8" else params

    def ask() -> Request:
        tokens_BT, lengths_B = jnp.zeros((case.rows, case.prompt), jnp.int32), jnp.full(case.rows, case.prompt)
        keys = jax.random.split(jax.random.key(0), case.rows)
        sampling = dataclasses.replace(GREEDY, min_new_tokens=case.new)
        return assemble(config, tokens_BT, lengths_B, sampling=sampling, max_new_tokens=case.new, keys=keys)

    return jax.eval_shape(draw), jax.eval_shape(ask)


def _step_flops(config: GPT2Config, rows: int, slots: int) -> float:
    """A token a row, which attends to every slot."""
    attention = 4 * rows * config.n_layer * config.n_embd * (slots - 1)
    return forward_flops(config, rows, 1, head_tokens=rows) + attention


def as_text(steps: Sequence[Step]) -> str:
    """A table for each case."""
    return "\n\n".join("\n".join(_table(list(group))) for _, group in groupby(steps, key=lambda one: one.case))


def _table(steps: Sequence[Step]) -> list[str]:
    rows = [["", "step ms", "tokens/s", "bound", "read MB", "written", "on chip", "needed", "GFLOP"]]
    rows[0] += ["spills", "moves", "loops", "call MiB", "compiled"]
    for one in steps:
        row = [one.dtype, f"{1e3 * one.seconds:.3g}", f"{one.case.rows / one.seconds:,.0f}", one.bound_by]
        row += [f"{size / 1e6:,.1f}" for size in (one.read, one.written, one.held, one.needed)]
        row += [f"{one.flops / 1e9:.3g}", str(one.spills), str(sum(one.moves.values())), str(one.other_loops)]
        rows.append([*row, f"{one.program.memory / 2**20:,.0f}", f"{one.program.seconds_to_compile:.0f} s"])
    return [steps[0].case.describe(), *aligned(rows)]


def describe(named: str, config: GPT2Config, topology: str, steps: Sequence[Step]) -> str:
    """What a reader of the table needs to know."""
    chip = steps[0].program.chip
    memory, products = f"{chip.memory_speed / 1e9:,.0f} GB/s", f"{chip.flops / 1e12:,.0f} TFLOP/s"
    return f"""\
{named}: {config.num_parameters:,} parameters, {config.n_layer} layers of width {config.n_embd}
greedy, for one {chip.name} of {topology}, by jax {jax.__version__}; compiled, and nothing ran
step ms: the least, of its bytes at {memory} or its products at {products} (bfloat16; float32: {FLOAT32_PASSES} passes);
operations that wait for each other are not in it, and a model that stays on the chip is far from it
read, written: memory's MB a step; on chip: what stays there from step to step; needed: weights and whole cache, by hand
spills: whole weights and caches that leave the chip to make room; moves: what copies, transposes or casts whole ones
loops: beside the one over tokens; call: its memory"""


def as_values(named: str, config: GPT2Config, topology: str, steps: Sequence[Step]) -> dict[str, Any]:
    """All of it as JSON has it."""
    settings = {"named": named, "parameters": config.num_parameters, "topology": topology, "jax": jax.__version__}
    chip = dataclasses.asdict(steps[0].program.chip)
    return {"settings": settings, "chip": chip, "results": [_values(step) for step in steps]}


def _values(step: Step) -> dict[str, Any]:
    program, case = step.program, step.case
    names = ("dtype", "read", "written", "held", "needed", "flops", "spills", "moves", "other_loops", "bound_by")
    values: dict[str, Any] = {"rows": case.rows, "prompt": case.prompt, "new": case.new}
    values |= {name: getattr(step, name) for name in names}
    values |= {"seconds_a_step": step.seconds, "tokens_a_second": case.rows / step.seconds}
    values |= {"memory": program.memory, "fits": program.fits, "seconds_to_compile": program.seconds_to_compile}
    return values | {"program_flops_by_xla": program.xla_flops, "program_bytes_by_xla": program.bytes_accessed}
