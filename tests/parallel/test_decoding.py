"""`generate` with parameters and rows on a mesh gives the tokens that it gives on one device."""

import jax
import numpy as np
import pytest
from decoding import tiny

from dialogpt_jax.decoding import generate as decoding
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.parallel.mesh import make_mesh, parse_mesh
from dialogpt_jax.parallel.rules import batch_sharding, decode_sharding, shardings
from dialogpt_jax.run.compiled_text import collectives, loops
from dialogpt_jax.run.dry_run import lower_decoding

HOW = {"sampling": Sampling(temperature=0.9, top_p=0.95), "max_new_tokens": 16}
LOGPROB = 1e-5  # float32: another order of sums
TOKENS, LENGTHS = np.tile(tiny.TOKENS, (4, 1)), np.tile(tiny.LENGTHS, 4)
KEYS = jax.random.split(jax.random.key(3), 16)


@pytest.fixture(scope="module")
def alone():
    return jax.device_get(decoding.generate(tiny.PARAMS, tiny.CONFIG, TOKENS, LENGTHS, keys=KEYS, **HOW))


@pytest.mark.parametrize(
    ("text", "rows_on"),
    [("fsdp=8", decode_sharding), ("data=2,fsdp=2,tensor=2", decode_sharding), ("tensor=4,data=2", batch_sharding)],
)
def test_parameters_by_the_rules_and_rows_over_devices_give_the_same_tokens(alone, text, rows_on):
    mesh = make_mesh(parse_mesh(text))
    params = jax.device_put(tiny.PARAMS, shardings(tiny.PARAMS, mesh))
    keys = jax.device_put(KEYS, rows_on(mesh))
    found = jax.device_get(decoding.generate(params, tiny.CONFIG, TOKENS, LENGTHS, keys=keys, **HOW))
    assert found.tokens.tolist() == alone.tokens.tolist()
    assert found.lengths.tolist() == alone.lengths.tolist()
    assert found.finished.tolist() == alone.finished.tolist()
    np.testing.assert_allclose(found.logprobs, alone.logprobs, atol=LOGPROB)
    assert len(set(map(tuple, alone.tokens.tolist()))) > 8


def test_rows_over_devices_are_replied_to_by_the_program_that_each_device_runs_alone(monkeypatch):
    """The plain one gives the same tokens, more slowly: the partitioner divides it."""
    taken = []

    def note(params, config, request, draft, judge, *, rows_on):
        taken.append(rows_on)
        raise InterruptedError

    monkeypatch.setattr(decoding, "reply_program_on_mesh", note)
    rows_on = decode_sharding(make_mesh({"data": 8}))
    with pytest.raises(InterruptedError):
        decoding.generate(tiny.PARAMS, tiny.CONFIG, TOKENS, LENGTHS, keys=jax.device_put(KEYS, rows_on), **HOW)
    assert taken == [rows_on]


@pytest.mark.long
def test_parameters_are_gathered_once_and_nothing_moves_or_runs_in_sequence_for_the_rows():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    lowered = lower_decoding(
        tiny.CONFIG, mesh, rows=24, length=16, max_new_tokens=16, sampling=HOW["sampling"], dtype=np.float32
    )
    text = lowered.compile().as_text()
    moved = collectives(text, devices=8)
    assert moved
    assert {found.kind for found in moved} == {"all-gather"}
    assert all(found.certain and found.times == 1 for found in moved)  # none in the loop over tokens
    assert sum(found.bytes for found in moved) < 4 * 2 * 4 * tiny.CONFIG.padded_vocab_size * tiny.CONFIG.n_embd
    trips = [loop.trips for loop in loops(text)]
    assert trips.count(None) == 1
    assert not {3, 24} & set(trips)
