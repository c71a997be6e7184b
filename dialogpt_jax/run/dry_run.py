"""Training for a TPU, compiled without one: a config and the name of a topology in, a report of the compiled programs out.

    config, "v5e:2x4", mesh ─shapes only→ train step, generate ─TPU compiler→ programs ─read→ DryRunReport ─render→ text

Nothing is allocated and nothing runs: parameters are shapes, devices are those of jax's ahead-of-time topologies. The
compiler is libtpu's, from PyPI; it wants an environment of its own, for where it is installed jax would look for a TPU.

Letters: B rows, T tokens.
"""

import contextlib
import importlib.util
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.example_options import MAX_LENGTH
from dialogpt_jax.decoding.generate import reply_program_on_mesh
from dialogpt_jax.decoding.request import Request, assemble
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.model import init_params
from dialogpt_jax.parallel.chips import CHIPS, Chip, forward_flops, training_flops
from dialogpt_jax.parallel.mesh import make_mesh
from dialogpt_jax.parallel.rules import check_divides, decode_sharding, shardings
from dialogpt_jax.run.compiled_text import collectives, loops
from dialogpt_jax.run.dry_run_report import CompiledProgram, DryRunReport, render
from dialogpt_jax.run.options import TOPOLOGY, TrainOptions
from dialogpt_jax.run.program import lower_step

__all__ = ["DryRunError", "dry_run", "render", "topology_devices"]

TOPOLOGIES = "v5e:2x4, v6e:4x4, v5p:2x2x2, v4:2x2x4"

# What libtpu asks of a TPU machine, so that it asks no machine. The names of `get_topology_desc` decide, not these.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no device is opened, so several dry runs can go on at a time
}


class DryRunError(ValueError):
    """The dry run cannot be made; one line."""


def dry_run(
    config: GPT2Config,
    options: TrainOptions,
    *,
    topology: str = TOPOLOGY,
    mesh: Mapping[str, int] | None = None,
    max_new_tokens: int | None = 64,
    sampling: Sampling | None = None,
) -> DryRunReport:
    """Compiles the step that `fit` would run, and `generate`, for TPUs that are not here.

    Args:
      config: the model.
      options: the run; a batch has `batch_size` rows of `max_length` tokens (128, or the model's positions if fewer).
      topology: a chip and a shape, such as `v5e:2x4` or `v5p:2x2x2`.
      mesh: sizes of the axes, as `parse_mesh` gives them; all devices on `data` by default.
      max_new_tokens: of `generate`, for as many prompts of as many tokens as fit; `None`: it is not compiled.
      sampling: how `generate` chooses; greedily by default.

    Raises:
      DryRunError: libtpu is not installed, or the topology is unknown.
      MeshError: the mesh does not fit the topology's devices, the model, or the rows.
    """
    rows, again = options.batch_size, options.checkpoint_blocks
    length = options.max_length or min(MAX_LENGTH, config.n_positions)
    if not 1 <= length <= config.n_positions:
        raise DryRunError(f"max_length is {length}; the model's positions allow 2 to {config.n_positions}")
    devices = topology_devices(topology)
    placed = make_mesh(mesh, devices)
    if rows % options.accumulate:
        raise DryRunError(f"a batch of {rows} rows does not divide into {options.accumulate} parts")
    check_divides(config, placed, rows=rows // options.accumulate)
    chip = chip_of(devices)
    start = time.perf_counter()
    lowered = lower_step(options, config, placed, rows=rows, length=length)
    flops = training_flops(config, rows, length, again=again) / len(devices)
    programs = [_compiled("train step", lowered, flops, chip, len(devices), start)]
    if max_new_tokens is not None:
        start, replies = time.perf_counter(), -(-rows // len(devices)) * len(devices)
        prompt = max(1, min(length, config.n_positions - max_new_tokens))
        lowered = lower_decoding(
            config,
            placed,
            rows=replies,
            length=prompt,
            max_new_tokens=max_new_tokens,
            sampling=sampling or Sampling(),
            dtype=options.compute_dtype,
        )
        flops = forward_flops(config, replies, prompt, head_tokens=replies) / len(devices)
        programs.append(_compiled(f"generate {max_new_tokens}", lowered, flops, chip, len(devices), start))
    return DryRunReport(
        topology, chip, len(devices), dict(placed.shape), rows, length, config.num_parameters, tuple(programs)
    )


def topology_devices(topology: str) -> list[Any]:
    """The devices of a topology, which can be compiled for.

    Raises:
      DryRunError: libtpu is not installed, or does not know the topology, or none is named.
    """
    if not topology.strip():  # libtpu would take some chip of its own
        raise DryRunError(f"the topology is {topology!r}; known ones are such as {TOPOLOGIES}")
    if importlib.util.find_spec("libtpu") is None:
        raise DryRunError("a dry run needs the TPU compiler: pip install -e '.[tpu]', in an environment of its own")
    from jax.experimental import topologies

    if getattr(jax.config, "jax_platforms", None) is None:  # else jax would look for a TPU, since libtpu is installed
        jax.config.update("jax_platforms", "cpu")
    with _environment(_ENVIRONMENT):
        try:
            return list(topologies.get_topology_desc(topology, "tpu").devices)
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise DryRunError(f"topology {topology!r}: {reason}; known ones are such as {TOPOLOGIES}") from error


def chip_of(devices: list[Any]) -> Chip:
    """What is known of a device's chip, divided among its devices where it has several (TPU v4).

    Raises:
      DryRunError: the chip is not in the table.
    """
    kind = devices[0].device_kind
    if kind not in CHIPS:
        raise DryRunError(f"nothing is known of {kind}'s speed and memory; known are {', '.join(CHIPS)}")
    chip, cores = CHIPS[kind], 1 + max(getattr(device, "core_on_chip", 0) for device in devices)
    if cores == 1:
        return chip
    return Chip(
        f"1/{cores} {chip.name}",
        chip.memory / cores,
        chip.flops / cores,
        chip.memory_speed / cores,
        chip.network / cores,
    )


def lower_decoding(
    config: GPT2Config,
    mesh: Mesh,
    *,
    rows: int,
    length: int,
    max_new_tokens: int,
    sampling: Sampling,
    dtype: jax.typing.DTypeLike,
) -> jax.stages.Lowered:
    """`generate` with parameters and rows on a mesh, lowered from shapes alone."""
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0), dtype))
    params, on = _placed(params, shardings(params, mesh)), decode_sharding(mesh)

    def request() -> Request:
        contexts_BT, lengths_B = jnp.zeros((rows, length), jnp.int32), jnp.full(rows, length, jnp.int32)
        keys = jax.random.split(jax.random.key(0), rows)
        return assemble(config, contexts_BT, lengths_B, sampling=sampling, max_new_tokens=max_new_tokens, keys=keys)

    shapes = jax.tree.map(lambda x: _shape(x.shape, x.dtype, on), jax.eval_shape(request))
    return reply_program_on_mesh.lower(params, config, shapes, rows_on=on)


def _compiled(name: str, lowered: Any, flops: float, chip: Chip, devices: int, start: float) -> CompiledProgram:
    return figures_of(name, compile_for_tpu(lowered), flops, chip, devices, start)


def compile_for_tpu(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """The program for the devices of a topology, for which it was lowered."""
    with _environment(_ENVIRONMENT):
        return lowered.compile()


def figures_of(
    name: str, compiled: jax.stages.Compiled, flops: float, chip: Chip, devices: int, start: float
) -> CompiledProgram:
    """What a compiled program says of itself; `start` is when its lowering began, by `time.perf_counter`."""
    text, memory = compiled.as_text() or "", compiled.memory_analysis()
    assert memory is not None
    cost: Any = compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost or {}
    return CompiledProgram(
        name=name,
        seconds_to_compile=time.perf_counter() - start,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=flops,
        xla_flops=cost.get("flops", 0.0),
        bytes_accessed=cost.get("bytes accessed", 0.0),
        collectives=tuple(collectives(text, devices=devices)),
        loops=tuple(loops(text)),
        chip=chip,
    )


@contextlib.contextmanager
def _environment(wanted: Mapping[str, str]):
    """Sets what is not set, and takes it back."""
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _shape(shape: tuple[int, ...], dtype: jax.typing.DTypeLike, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _placed(tree: Any, places: Any) -> Any:
    return jax.tree.map(lambda leaf, place: _shape(leaf.shape, leaf.dtype, place), tree, places)
