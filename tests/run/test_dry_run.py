"""What a dry run says. With the TPU compiler where it is installed, in a process of its own; all else without it."""

import dataclasses
import importlib.util
import os
import subprocess
import sys

import fakes
import jax
import numpy as np
import pytest

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import Batch
from dialogpt_jax.parallel.chips import forward_flops, peak_flops, training_flops
from dialogpt_jax.parallel.mesh import MeshError, make_mesh
from dialogpt_jax.parallel.rules import batch_sharding
from dialogpt_jax.run import dry_run as dryrun
from dialogpt_jax.run.dry_run import DryRunError, dry_run, render
from dialogpt_jax.run.dry_run_report import collective_table
from dialogpt_jax.run.options import TrainOptions
from dialogpt_jax.run.program import make_program
from dialogpt_jax.training.recipes import Recipe

CONFIG = fakes.no_dropout(dataclasses.replace(fakes.TINY, n_layer=1))
OPTIONS = TrainOptions(batch_size=16, max_length=32, dtype="bfloat16", checkpoint_blocks=True)
CHIP = dryrun.Chip("a chip", 2**17, 1e12, 1e11, 1e9)


@pytest.fixture
def here(monkeypatch):
    """The CPU's eight devices as if they were a topology's."""
    monkeypatch.setattr(dryrun, "topology_devices", lambda topology: jax.devices())
    monkeypatch.setattr(dryrun, "chip_of", lambda devices: CHIP)


@pytest.mark.long
def test_a_report_has_the_memory_the_collectives_the_loops_and_the_time(here):
    report = dry_run(
        CONFIG,
        OPTIONS,
        topology="here",
        mesh={"data": 2, "fsdp": 4},
        max_new_tokens=16,
    )
    step, generate = report.programs
    # A quarter of all that `fsdp` divides, three times (parameters and Adam's two), and a row of tokens and weights.
    state = 3 * 4 * (CONFIG.num_parameters + (128 - CONFIG.vocab_size) * CONFIG.n_embd) / 4
    assert state < step.arguments < 1.3 * state
    assert step.aliased > state
    assert step.memory == step.arguments + step.outputs - step.aliased + step.temporaries + step.code
    assert {kind for kind, *_ in collective_table(step)} == {"all-gather", "reduce-scatter", "all-reduce"}
    gathered = next(row for row in collective_table(step) if row[0] == "all-gather")
    # Six arrays are gathered, once each: four kernels, two embeddings; in half precision, or what this CPU makes of it.
    whole = 12 * CONFIG.n_embd**2 + (128 + CONFIG.n_positions) * CONFIG.n_embd
    assert gathered[2] == 6
    assert gathered[3] in (2 * whole, 4 * whole)
    assert step.flops == training_flops(CONFIG, 16, 32, again=True) / 8
    assert not step.fits
    assert [loop.trips for loop in generate.loops].count(None) == 1
    assert {kind for kind, *_ in collective_table(generate)} == {"all-gather"}
    assert max(step.roofline.values()) == step.roofline["network"]
    text = render(report)
    for words in (
        "mesh data=2, fsdp=4, tensor=1",
        "DOES NOT FIT",
        "reduce-scatter",
        "until its condition",
        "bound by network",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 140


@pytest.mark.long
def test_it_compiles_the_step_that_fit_runs(here):
    """With a recipe too, whose weights and dropout are within the step."""
    options = TrainOptions(
        steps=9, batch_size=16, accumulate=2, max_length=32, recipe=Recipe.paper().fixed("dropout"), log_every=1
    )
    mesh = make_mesh({"data": 2, "fsdp": 4})
    batch = jax.device_put(Batch(np.ones((16, 32), np.int32), np.ones((16, 32), np.float32)), batch_sharding(mesh))

    def flops(options):
        program = make_program(options, CONFIG, mesh)
        return program.step.lower(program.layout, batch, []).compile().cost_analysis()["flops"]

    (found,) = dry_run(CONFIG, options, mesh=mesh.shape, max_new_tokens=None).programs
    assert found.xla_flops == flops(options) > flops(dataclasses.replace(options, recipe=None))


def test_how_often_something_is_told_compiles_nothing_again():
    program = make_program(OPTIONS, CONFIG, mesh := make_mesh())
    quiet = dataclasses.replace(OPTIONS, log_every=7, evaluate_every=3, save_every=2, keep=5)
    assert make_program(quiet, CONFIG, mesh) is program
    assert make_program(dataclasses.replace(OPTIONS, clip=0.5), CONFIG, mesh) is not program


def test_what_a_mesh_or_a_batch_does_not_fit_is_said_before_anything_is_compiled(here):
    with pytest.raises(MeshError, match="there are 8"):
        dry_run(CONFIG, OPTIONS, mesh={"fsdp": 4})
    with pytest.raises(MeshError, match=r"right sizes for this model: 1, 2, 4$"):
        dry_run(CONFIG, OPTIONS, mesh={"tensor": 8})
    with pytest.raises(MeshError, match="8 or 16 rows would"):
        dry_run(CONFIG, dataclasses.replace(OPTIONS, batch_size=12))
    with pytest.raises(DryRunError, match="max_length is 49; the model's positions allow 2 to 48"):
        dry_run(CONFIG, dataclasses.replace(OPTIONS, max_length=49))


def test_without_the_compiler_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DryRunError, match=r"pip install -e '\.\[tpu\]'"):
        dry_run(CONFIG, OPTIONS)


def test_no_topology_is_one_line():
    with pytest.raises(DryRunError, match=r"the topology is ''; known ones are such as v5e:2x4"):
        dry_run(CONFIG, OPTIONS, topology="")


def test_a_chip_nobody_knows_and_one_of_two_cores():
    class Device:
        device_kind, core_on_chip = "TPU v99", 0

    with pytest.raises(DryRunError, match="TPU v99"):
        dryrun.chip_of([Device()])
    one, other = Device(), Device()
    one.device_kind = other.device_kind = "TPU v4"
    other.core_on_chip = 1
    assert dryrun.chip_of([one, other]).memory == 16 * 2**30


def test_arithmetic_counted_by_hand_is_six_a_parameter_and_token():
    """GPT-2 large, 1,024 tokens: attention adds a twentieth, what has no product (positions, norms) takes little off."""
    config = GPT2Config.large()
    count = training_flops(config, 1, 1024) / (6 * config.num_parameters * 1024)
    assert 1.03 < count < 1.13
    assert training_flops(config, 4, 256, again=True) > 1.25 * training_flops(config, 4, 256)
    # One block, one head matrix, written out: 12 D² weights, T·D twice for attention, V·D for the head.
    tiny = GPT2Config(vocab_size=128, n_positions=8, n_embd=4, n_layer=1, n_head=1, eos_token_id=0)
    assert forward_flops(tiny, 1, 8, head_tokens=8) == 8 * (2 * 12 * 16 + 4 * 4 * 8) + 8 * 2 * 128 * 4


SCRIPT = """
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.run.dry_run import DryRunError, dry_run, render, topology_devices
from dialogpt_jax.run.options import TrainOptions
for name in ("v9:2x4", "v5e:3x5", "nonsense"):
    try:
        topology_devices(name)
    except DryRunError as error:
        assert "\\n" not in str(error) and repr(name) in str(error) and "v5e:2x4" in str(error), error
    else:
        raise AssertionError(name)
config = GPT2Config(
    vocab_size=256, n_positions=128, n_embd=128, n_layer=1, n_head=4, eos_token_id=0,
    embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
)
options = TrainOptions(batch_size=24, max_length=128, dtype="bfloat16", checkpoint_blocks=True)
report = dry_run(config, options, topology="v5e:2x4", mesh={"fsdp": 4, "tensor": 2}, max_new_tokens=16)
print(render(report))
step, generate = report.programs
assert report.chip.name == "TPU v5e" and report.devices == 8
assert step.fits and step.aliased > 0
assert {c.kind for c in step.collectives} <= {"all-gather", "reduce-scatter", "all-reduce", "collective-permute"}
assert {c.kind for c in generate.collectives} <= {"all-gather"} and all(c.certain for c in generate.collectives)
assert [loop.trips for loop in step.loops] == [2]  # the head's chunks
assert not {3, 24} & {loop.trips for loop in generate.loops}, generate.loops
"""

DECODING = """
from dialogpt_jax.bench import ahead
from dialogpt_jax.bench.cases import Case
from dialogpt_jax.config import GPT2Config
config, (device, chip) = GPT2Config.small(), ahead.device_of("v5e:2x2")
steps = [
    ahead.compile_step(config, Case("decode", rows, 64, 64), dtype, device, chip)
    for rows, dtype in ((1, "bfloat16"), (1, "int8"), (8, "int8"))
]
print(ahead.describe("small", config, "v5e:2x2", steps), ahead.as_text(steps), sep="\\n")
for step in steps:
    # No weight is written again, in int8 not dequantised either: it is read as it lies, within the product's fusion. No
    # cache is copied. One loop.
    assert step.moves == {} and step.other_loops == 0, (step.moves, step.program.loops)
    # What is read, and what stays on the chip, is what is needed: a cache is written, too, and its heads' 64 numbers have
    # the room of 128.
    assert 0.95 < (step.read + step.held) / step.needed < 1.5, step
    assert step.written < 0.25 * step.needed, step
    assert 0.95 < step.program.xla_flops / (step.program.flops + step.flops) < 1.1, step
assert steps[1].read + steps[1].held < 0.6 * (steps[0].read + steps[0].held)  # int8 halves bfloat16
"""
without_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"
)


@pytest.mark.slow
@without_libtpu
@pytest.mark.parametrize("script", [SCRIPT, DECODING], ids=["training", "decoding"])
def test_the_tpu_compiler_compiles_both_programs_and_the_loop_over_tokens_moves_nothing_whole(script):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TPU_", "JAX_", "XLA_"))}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_peak_of_a_device_is_known_by_its_name():
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA L40S") == 362e12  # and no L4
    assert peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("cpu") is None
