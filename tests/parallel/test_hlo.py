import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dialogpt_jax.parallel.hlo import Collective, Loop, collectives, loops
from dialogpt_jax.parallel.mesh import make_mesh

# Cut from what the TPU compiler writes for a train step: a gather spread over two fusions (one chain), a scatter as a
# fused all-reduce, combined reductions, an asynchronous permute, a loop whose condition says how often it runs, a loop
# until a condition.
TPU = """HloModule jit_train_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%region_1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %add.1 = f32[]{:T(128)} add(%a, %b)
}

%async_collective_fusion.1 (param_0.1: bf16[64,4]) -> (bf16[64,32], /*index=1*/bf16[64,4]) {
  %param_0.1 = bf16[64,4]{0,1:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.1 = bf16[64,32]{0,1:T(8,128)(2,1)S(1)} all-gather(%param_0.1), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={1}, use_global_device_ids=true, frontend_attributes={chain_id="0"}, metadata={op_name="jit(f)/all_gather"}
  ROOT %tuple.1 = (bf16[64,32]{0,1}, /*index=1*/bf16[64,4]{0,1}) tuple(%all-gather.1, %param_0.1)
}

%async_collective_fusion.2 (param_0.2: bf16[64,4]) -> bf16[64,32] {
  %param_0.2 = bf16[64,4]{0,1:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %all-gather.2 = bf16[64,32]{0,1:T(8,128)(2,1)S(1)} all-gather(%param_0.2), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={1}, use_global_device_ids=true, frontend_attributes={chain_id="0"}
}

%all-reduce-scatter (input: f32[64,32]) -> f32[64,4] {
  %input = f32[64,32]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[64,32]{1,0:T(8,128)} all-reduce(%input), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7}}, use_global_device_ids=true, to_apply=%region_1
  %partition-id = u32[] partition-id()
  ROOT %dynamic-slice = f32[64,4]{1,0:T(8,128)} dynamic-slice(%all-reduce.9, %partition-id, %partition-id), dynamic_slice_sizes={64,4}
}

%cond.1 (p: (s32[], f32[16])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(16)
  %p = (s32[]{:T(128)}, f32[16]{0:T(128)}) parameter(0)
  %gte = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%gte, %constant.5), direction=LT
}

%body.1 (p.1: (s32[], f32[16])) -> (s32[], f32[16]) {
  %p.1 = (s32[]{:T(128)}, f32[16]{0:T(128)}) parameter(0)
  %x = f32[16]{0:T(128)} get-tuple-element(%p.1), index=1
  %all-reduce.3 = f32[16]{0:T(128)} all-reduce(%x), replica_groups=[4,2]<=[8], to_apply=%region_1, metadata={op_name="jit(f)/while/body/psum"}
  ROOT %t = (s32[]{:T(128)}, f32[16]{0:T(128)}) tuple(%p.1, %all-reduce.3)
}

%cond.2 (q: (pred[], f32[16])) -> pred[] {
  %q = (pred[]{:T(512)}, f32[16]{0:T(128)}) parameter(0)
  ROOT %more = pred[]{:T(512)} get-tuple-element(%q), index=0
}

%body.2 (q.1: (pred[], f32[16])) -> (pred[], f32[16]) {
  %q.1 = (pred[]{:T(512)}, f32[16]{0:T(128)}) parameter(0)
  %inner = (s32[]{:T(128)}, f32[16]{0:T(128)}) while(%q.1), condition=%cond.1, body=%body.1, metadata={op_name="jit(f)/while/body/while"}
  ROOT %t.1 = (pred[]{:T(512)}, f32[16]{0:T(128)}) tuple(%q.1, %inner)
}

ENTRY %main.1_spmd (param: f32[8]) -> f32[8] {
  %param = f32[8]{0:T(128)} parameter(0)
  %f.1 = (bf16[64,32]{0,1}, /*index=1*/bf16[64,4]{0,1}) fusion(%param), kind=kCustom, calls=%async_collective_fusion.1
  %f.2 = bf16[64,32]{0,1} fusion(%f.1), kind=kCustom, calls=%async_collective_fusion.2
  %f.3 = f32[64,4]{1,0} fusion(%f.2), kind=kCustom, calls=%all-reduce-scatter
  %all-reduce.5 = (f32[100]{0:T(128)}, /*index=1*/f32[]{:T(128)}) all-reduce(%f.3, %param), replica_groups={}, to_apply=%region_1
  %all-reduce.6 = f32[100]{0:T(128)} all-reduce(%param), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%region_1
  %cps = (f32[5,56]{0,1:T(8,128)}, f32[5,56]{0,1:T(8,128)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%f.3), channel_id=1, source_target_pairs={{0,1},{1,2}}
  %cpd = f32[5,56]{0,1:T(8,128)} collective-permute-done(%cps)
  %loop.1 = (s32[]{:T(128)}, f32[16]{0:T(128)}) while(%param), condition=%cond.1, body=%body.1
  %loop.2 = (pred[]{:T(512)}, f32[16]{0:T(128)}) while(%param), condition=%cond.2, body=%body.2, metadata={op_name="jit(f)/while"}
  ROOT %copy = f32[8]{0:T(128)} copy(%param)
}
"""


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
