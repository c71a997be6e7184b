"""What a pass of a compiled loop reads and writes: of a text as the TPU compiler writes it, byte by byte."""

import pytest

from dialogpt_jax.run.compiled_loop import PREFETCH, SPILL, Made, loop_pass

# A prefetch to the chip, whole and by slices, which are one array again; a product that reads a weight within its fusion,
# through another fusion that does nothing; two rows of a table; a slot written in place, a cache written by a select, in
# tiles twice as wide; a table that leaves the chip; a loop of three inside.
TPU = """HloModule jit_f

%same (p.1: f32[64,128]) -> f32[64,128] {
  %p.1 = f32[64,128]{1,0:T(8,128)} parameter(0)
  ROOT %b = f32[64,128]{1,0:T(8,128)} bitcast(%p.1)
}

%product (p.2: f32[8,128], p.3: f32[64,128]) -> f32[8,64] {
  %p.2 = f32[8,128]{1,0:T(8,128)S(1)} parameter(0)
  %p.3 = f32[64,128]{1,0:T(8,128)} parameter(1)
  %w = f32[64,128]{1,0:T(8,128)} fusion(%p.3), kind=kLoop, calls=%same
  ROOT %dot = f32[8,64]{1,0:T(8,128)S(1)} convolution(%p.2, %w), dim_labels=bf_oi->bf
}

%rows (p.4: f32[1000,128], p.5: s32[2]) -> f32[2,128] {
  %p.4 = f32[1000,128]{1,0:T(8,128)} parameter(0)
  %p.5 = s32[2]{0:T(128)S(1)} parameter(1)
  %t = f32[1000,128]{1,0:T(8,128)} fusion(%p.4), kind=kLoop, calls=%same
  ROOT %g = f32[2,128]{1,0:T(2,128)S(1)} gather(%t, %p.5), offset_dims={1}
}

%slot (p.6: f32[1,64], p.7: s32[], p.8: f32[16,64]) -> f32[16,64] {
  %p.8 = f32[16,64]{1,0:T(8,128)} parameter(2)
  %p.6 = f32[1,64]{1,0:T(1,128)S(1)} parameter(0)
  %p.7 = s32[]{:T(128)} parameter(1)
  %d = f32[16,64]{1,0:T(8,128)} dynamic-update-slice(%p.8, %p.6, %p.7, %p.7)
  ROOT %e = f32[16,64]{1,0:T(8,128)} bitcast(%d)
}

%cast (p.9: s8[64,128]) -> (f32[64], bf16[64,128]) {
  %p.9 = s8[64,128]{1,0:T(32,128)(4,1)} parameter(0)
  %c = bf16[64,128]{1,0:T(8,128)(2,1)} convert(%p.9)
  %r = f32[64]{0:T(128)S(1)} reduce(%c), dimensions={1}
  ROOT %both = (f32[64]{0:T(128)S(1)}, bf16[64,128]{1,0:T(8,128)(2,1)}) tuple(%r, %c)
}

%three (q: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %q = (s32[]{:T(128)S(6)}, f32[4,128]{1,0:T(4,128)}) parameter(0)
  %q.1 = f32[4,128]{1,0:T(4,128)} get-tuple-element(%q), index=1
  %q.2 = f32[4,128]{1,0:T(4,128)} negate(%q.1)
  ROOT %q.3 = (s32[]{:T(128)S(6)}, f32[4,128]{1,0:T(4,128)}) tuple(%q, %q.2)
}

%body (s: (f32[64,128], f32[1000,128], f32[16,64], s8[64,128])) -> (f32[64,128]) {
  %s = (f32[64,128]{1,0:T(8,128)}, f32[1000,128]{1,0:T(8,128)}) parameter(0)
  %weight = f32[64,128]{1,0:T(8,128)} get-tuple-element(%s), index=0
  %table = f32[1000,128]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %cache = f32[16,64]{1,0:T(8,128)} get-tuple-element(%s), index=2
  %small = s8[64,128]{1,0:T(32,128)(4,1)} get-tuple-element(%s), index=3
  %x = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%s), index=4
  %new = f32[1,64]{1,0:T(1,128)S(1)} get-tuple-element(%s), index=5
  %at = s32[]{:T(128)S(1)} get-tuple-element(%s), index=6
  %ids = s32[2]{0:T(128)S(1)} get-tuple-element(%s), index=7
  %chip = f32[1000,128]{1,0:T(8,128)S(1)} get-tuple-element(%s), index=8
  %whole = (f32[64,128]{1,0:T(8,128)S(1)}, f32[64,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%weight)
  %here = f32[64,128]{1,0:T(8,128)S(1)} copy-done(%whole)
  %half = ((f32[64,128]{1,0:T(8,128)}), f32[32,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%weight)
  %half.1 = f32[32,128]{1,0:T(8,128)S(1)} slice-done(%half)
  %back = (f32[1000,128]{1,0:T(8,128)}, f32[1000,128]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%chip)
  %joined = f32[64,128]{1,0:T(8,128)S(1)} custom-call(%half.1, %half.1), custom_call_target="ConcatBitcast"
  %y = f32[8,64]{1,0:T(8,128)S(1)} fusion(%x, %weight), kind=kOutput, calls=%product
  %e = f32[2,128]{1,0:T(2,128)S(1)} fusion(%table, %ids), kind=kLoop, calls=%rows
  %written = f32[16,64]{1,0:T(8,128)} fusion(%new, %at, %cache), kind=kLoop, calls=%slot
  %chosen = f32[16,64]{1,0:T(8,128)} select(%at, %new, %written)
  %dear = (f32[64]{0:T(128)S(1)}, bf16[64,128]{1,0:T(8,128)(2,1)}) fusion(%small), kind=kLoop, calls=%cast
  %in = (s32[]{:T(128)S(6)}, f32[4,128]{1,0:T(4,128)}) tuple(%at, %x)
  %out = (s32[], f32[4,128]) while(%in), condition=%c.3, body=%three, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %after = (f32[64,128]{1,0:T(8,128)}, f32[1000,128]{1,0:T(8,128)}) tuple(%weight, %table)
}

ENTRY %main (a: f32[64,128]) -> f32[64,128] {
  %a = (f32[64,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  ROOT %loop = (f32[64,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}) while(%a), condition=%c.1, body=%body
}
"""


def test_a_pass_reads_and_writes_what_lies_in_memory_in_whole_tiles():
    weight, cache, inner = 64 * 128 * 4, 16 * 128 * 4, 4 * 128 * 4  # the cache's 64 numbers have the room of 128
    found = loop_pass(TPU)
    prefetched, product, table = weight + weight // 2, weight, 2 * 128 * 4
    assert found.read == prefetched + product + table + cache + 64 * 128 + 3 * inner
    slot = 128 * 4
    assert found.written == slot + cache + 64 * 128 * 2 + 1000 * 128 * 4 + 3 * inner
    assert found.held == 8 * 128 * 4


def test_arrays_are_named_by_what_makes_them_and_whole_weights_in_memory_are_moves():
    found = loop_pass(TPU)
    assert Made("convert", (64, 128), 64 * 128 * 2, True) in found.made
    assert Made(PREFETCH, (64, 128), 64 * 128 * 4, False) in found.made
    assert [one.operation for one in found.made if one.shape == (16, 64)] == ["dynamic-update-slice", "select"]
    assert found.moves({64 * 128}, {16 * 64}) == {"convert": 1}
    on_chip = TPU.replace("(2,1)}) fusion(%small)", "(2,1)S(1)}) fusion(%small)")
    assert on_chip != TPU
    assert loop_pass(on_chip).moves({64 * 128}, ()) == {"convert": 1}
    assert found.moves({1000 * 128}, ()) == {SPILL: 1}
    assert found.moves({16 * 64}, {64 * 128}) == {"dynamic-update-slice": 1, "select": 1, "convert": 1}


def test_a_program_of_no_such_loop_is_refused():
    with pytest.raises(ValueError, match="has 0 loops that no number ends"):
        loop_pass(TPU.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}'))
