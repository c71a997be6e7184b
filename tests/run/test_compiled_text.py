from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dialogpt_jax.parallel.mesh import make_mesh
from dialogpt_jax.run.compiled_text import Collective, Loop, collectives, loops

# Cut from what the TPU compiler writes for a train step: a gather spread over two fusions (one chain), a scatter as a
# fused all-reduce, combined reductions, an asynchronous permute, a loop whose condition says how often it runs, a loop
# until a condition.
TPU = Path(__file__).with_name("tpu_step.txt").read_text()


def test_what_the_tpu_compiler_writes():
    found = {(c.kind, c.bytes, c.group, c.times, c.certain, c.source) for c in collectives(TPU, devices=8)}
    assert found == {
        ("all-gather", 64 * 32 * 2, 8, 1, True, "jit(f)/all_gather"),
        ("reduce-scatter", 64 * 32 * 4, 8, 1, True, ""),
        ("all-reduce", 404, 8, 1, True, ""),
        ("collective-permute", 5 * 56 * 4, 8, 1, True, ""),
        ("all-reduce", 64, 2, 16, True, "jit(f)/while/body/psum"),
        ("all-reduce", 64, 2, 16, False, "jit(f)/while/body/psum"),
    }
    assert len(collectives(TPU, devices=8)) == 6
    assert loops(TPU) == [Loop(16, 0), Loop(None, 0, "jit(f)/while"), Loop(16, 1, "jit(f)/while/body/while")]


@pytest.mark.parametrize(
    ("kind", "wire"),
    [("all-gather", 750.0), ("reduce-scatter", 750.0), ("all-reduce", 1500.0), ("collective-permute", 1000.0)],
)
def test_what_a_device_sends(kind, wire):
    assert Collective(kind, 1000, 4, 1, True).wire_bytes == wire


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[4,2]<=[8]", 2),
        ("mesh['data'=2,'fsdp'=4,'tensor'=1] {'fsdp'}", 4),
        ("mesh['data'=2,'fsdp'=4,'tensor'=1] {'data','fsdp'}", 8),
        ("{}", 8),
    ],
)
def test_groups_are_read_in_each_form_that_compilers_write(groups, size):
    line = f"  ROOT %r = f32[4]{{0}} all-reduce(%p), channel_id=1, replica_groups={groups}, to_apply=%add"
    text = f"HloModule jit_f\n\nENTRY %main (p: f32[4]) -> f32[4] {{\n  %p = f32[4]{{0}} parameter(0)\n{line}\n}}\n"
    (found,) = collectives(text, devices=8)
    assert found.group == size


@pytest.mark.parametrize("text", ["", "HloModule jit_f", "ENTRY"])
def test_what_is_no_program_is_refused(text):
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives(text, devices=8)


def test_what_the_compiler_here_writes():
    """One of each kind, of sizes that tell them apart, in a loop of five."""
    mesh = make_mesh({"data": 2, "fsdp": 4})

    def f(x_8):
        def body(_, x_1):
            gathered = jax.lax.all_gather(x_1, "fsdp", tiled=True)  # 4 floats
            scattered = jax.lax.psum_scatter(jnp.sin(jnp.tile(gathered, 3)), "fsdp", tiled=True)  # 12 floats
            turned = jax.lax.ppermute(jnp.tile(scattered, 3), "data", [(0, 1), (1, 0)])  # 9 floats
            return jax.lax.psum(jnp.cos(turned), ("data", "fsdp"))[:1]  # 9 floats, all 8 devices

        return jax.lax.fori_loop(0, 5, body, x_8)

    rows = NamedSharding(mesh, P(("data", "fsdp")))
    run = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=rows.spec, out_specs=rows.spec, check_vma=False))
    text = run.lower(jax.ShapeDtypeStruct((8,), jnp.float32, sharding=rows)).compile().as_text()
    found = {(c.kind, c.bytes, c.group, c.times, c.certain) for c in collectives(text, devices=8)}
    assert found >= {("all-gather", 16, 4, 5, True), ("reduce-scatter", 48, 4, 5, True)}
    assert {(c.kind, c.bytes, c.times) for c in collectives(text, devices=8)} >= {
        ("collective-permute", 36, 5),
        ("all-reduce", 36, 5),
    }
    assert [loop.trips for loop in loops(text)] == [5]


def test_a_loop_until_a_condition_has_no_number():
    def f(x):
        return jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: x * 2 + 1, x)

    assert [loop.trips for loop in loops(jax.jit(f).lower(jnp.ones(8)).compile().as_text())] == [None]
