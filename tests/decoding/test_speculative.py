"""Speculation says what plain decoding says, whoever drafts: on a model that is a table, and on a small GPT-2.

The table's model is as forgetful as a cache: its logits are those of a sum over all slots up to a query's position. So one
token of a rejected draft that is seen, one slot that is skipped or read twice, is another reply.

Letters: M rows, D drafts, T tokens of a step, R reply slots, S slots, P sums, V vocabulary.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding import tiny

from dialogpt_jax.decoding import loop
from dialogpt_jax.decoding.generate import generate
from dialogpt_jax.decoding.logits import by_row
from dialogpt_jax.decoding.loop import RowSettings, begin, decode
from dialogpt_jax.decoding.processors import NO_TOKEN
from dialogpt_jax.decoding.sampling import GREEDY, Sampling
from dialogpt_jax.decoding.speculative import Draft, begin_drafting, drafter, look_up, speculate
from dialogpt_jax.decoding.stops import Stops, automaton

TOLERANCE = 2e-5  # float32 log-probabilities of the GPT-2: four queries together and one round differently
VOCAB, END, SUMS, SLOTS, DRAFTS = 12, 11, 97, 16, 3
LENGTHS = np.array([7, 1, 3, 9, 2, 5, 4])
LIMITS = np.array([16, 16, 6, 99, 5, 1, 0])
ROWS = len(LENGTHS)
random = np.random.default_rng(4)
CONTEXTS = [random.integers(0, 6, size) for size in LENGTHS]
TABLE = random.normal(size=(SUMS, VOCAB)).astype(np.float32)
OTHER = np.where(random.random((SUMS, 1)) < 0.6, TABLE, -TABLE)  # agrees at about 0.6 of the places
WEIGHTS = random.integers(1, SUMS, 40)


def sums(slots_MS, positions_MT):
    upto_MTS = jnp.arange(slots_MS.shape[1])[None, None] <= positions_MT[..., None]
    return jnp.where(upto_MTS, (slots_MS * WEIGHTS[None])[:, None], 0).sum(axis=-1) % SUMS


def table_step(table_PV, tokens_MT, positions_MT, slots_MS):
    slots_MS = slots_MS.at[jnp.arange(ROWS)[:, None], positions_MT].set(tokens_MT, mode="drop")
    return jnp.asarray(table_PV)[sums(slots_MS, positions_MT)], slots_MS


def blank(seed):
    """Contexts in slots; behind them what nobody may see."""
    slots_MS = np.random.default_rng(seed).integers(0, VOCAB, (ROWS, 40))
    for row, context in enumerate(CONTEXTS):
        slots_MS[row, : len(context)] = context
    return jnp.asarray(slots_MS)


def first_state(sampling, stops=None):
    history_MS = np.full((ROWS, 10), NO_TOKEN)
    for row, context in enumerate(CONTEXTS):
        history_MS[row, 10 - len(context) :] = context
    settings = RowSettings(
        lengths_M=jnp.asarray(LENGTHS),
        limits_M=jnp.asarray(LIMITS),
        keys_M=jax.random.split(jax.random.key(3), ROWS),
        sampling=by_row(sampling, ROWS),
        history={"context": jnp.asarray(history_MS)},
    )
    cache = blank(1)
    logits_MV = jnp.asarray(TABLE)[sums(cache, jnp.asarray(LENGTHS)[:, None] - 1)[:, 0]]
    how = {"slots": SLOTS, "bucket": None if sampling.top_k is None else 8, "eos": END, "stops": stops}
    return begin(logits_MV, settings, cache, processors=tuple(map(jax.tree_util.Partial, sampling.processors)), **how)


def never_two_behind_three(logits_MV, state):
    """A function of the caller's that looks at the last token of the reply."""
    last_M1 = jnp.take_along_axis(state.tokens_MR, jnp.maximum(state.counts_M - 1, 0)[:, None], axis=1)
    return jnp.where((last_M1 == 3) & (jnp.arange(VOCAB)[None] == 2), -jnp.inf, logits_MV)


SAMPLINGS = {
    "greedy": (GREEDY, None),
    "greedy, all on": (
        Sampling(
            temperature=None, no_repeat_ngram=2, repetition_penalty=1.3, penalty_scope="context", min_new_tokens=4,
            dry_multiplier=0.5, forced_end=True, processors=[never_two_behind_three],
        ),
        None,
    ),
    "sampled": (
        Sampling(
            temperature=1.2, top_k=6, top_p=0.9, presence_penalty=0.4, no_repeat_ngram=3, ngram_scope="context",
            xtc_probability=0.3, min_new_tokens=2,
        ),
        Stops(automaton([b"\x01\x02", b"\x07\x07"])[:, :VOCAB].astype(np.uint8), 4),
    ),
}  # fmt: skip


@functools.cache
def plainly(name):
    return jax.device_get(
        jax.jit(lambda: decode(functools.partial(table_step, TABLE), first_state(*SAMPLINGS[name])))()
    )


@functools.cache
def program(name, by_a_model):
    """A table drafts; without one, the dialogue does."""

    def run(table_PV):
        state = begin_drafting(first_state(*SAMPLINGS[name]), blank(2) if by_a_model else None)
        step_fn = functools.partial(table_step, table_PV) if by_a_model else None
        return decode(functools.partial(table_step, TABLE), state, drafter(Draft(tokens=DRAFTS), step_fn))

    return jax.jit(run)


def same_replies(got, expected):
    np.testing.assert_array_equal(got.counts_M, expected.counts_M)
    np.testing.assert_array_equal(got.tokens_MR, expected.tokens_MR)
    np.testing.assert_array_equal(got.finished_M, expected.finished_M)
    np.testing.assert_allclose(got.logprobs_MR, expected.logprobs_MR, atol=1e-6)


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("greedy", "greedy, all on")]


@pytest.mark.parametrize("name", ["sampled", *LONG])
def test_it_says_what_plain_decoding_says_whoever_drafts(name):
    expected = plainly(name)
    counts_M = np.asarray(expected.counts_M)
    assert len(set(counts_M.tolist())) >= 5  # rows end at different times,
    assert set(expected.finished_M.tolist()) == {True, False}  # by themselves and cut
    more_M = np.maximum(counts_M - 1, 0)
    found = {
        "lookup": program(name, False)(TABLE),
        **{who: program(name, True)(table) for who, table in (("same", TABLE), ("other", OTHER), ("no", -TABLE))},
    }
    for got in found.values():
        same_replies(got, expected)
        forwards_M, accepted_M = np.asarray(got.drafting.forwards_M), np.asarray(got.drafting.accepted_M)
        # A round's last token is its own, unless the reply ends with a draft.
        assert np.isin(forwards_M + accepted_M - more_M, (0, 1)).all()
    np.testing.assert_array_equal(found["same"].drafting.forwards_M, -(-more_M // (DRAFTS + 1)))
    np.testing.assert_array_equal(found["same"].drafting.accepted_M, more_M - more_M // (DRAFTS + 1))
    assert found["other"].drafting.accepted_M.sum() > 5
    if name == "greedy":
        np.testing.assert_array_equal(found["no"].drafting.forwards_M, more_M)
        assert not found["no"].drafting.accepted_M.any()


@pytest.mark.long
def test_an_end_within_the_drafts_is_the_end():
    """The drafts go on behind EOS with what the model would say there; and so is a limit."""
    expected = plainly("greedy")
    ended = [row for row in range(ROWS) if expected.finished_M[row] and expected.counts_M[row] % (DRAFTS + 1) != 1]
    assert len(ended) >= 2  # EOS is a draft, and not a round's last token

    def beyond_the_end(state):
        whole_MR = np.where(np.arange(SLOTS)[None] < expected.counts_M[:, None], expected.tokens_MR, 4)
        columns_MD = jnp.minimum(state.counts_M[:, None] + jnp.arange(DRAFTS)[None], SLOTS - 1)
        return jnp.take_along_axis(jnp.asarray(whole_MR), columns_MD, axis=1), None

    round_of = functools.partial(speculate, draft_fn=beyond_the_end)
    state = begin_drafting(first_state(GREEDY))
    got = jax.jit(lambda: decode(functools.partial(table_step, TABLE), state, round_of))()
    same_replies(got, expected)
    assert got.counts_M[2] == LIMITS[2] == 6  # a limit within a round


def test_what_is_looked_up():
    """By row: the longest match, the latest of equals, a repeat that goes on, across context and reply, and no match."""
    contexts = [[1, 2, 3, 9, 2, 3, 8, 1], [5, 6, 1, 5, 6, 2], [], [4, 4, 7], [1, 2, 3]]
    replies = [[2, 3], [5, 6], [1, 2, 1, 2], [4, 4], [9]]
    rows = len(contexts)
    history_MS, tokens_MR = np.full((rows, 9), NO_TOKEN), np.full((rows, 16), END)
    for row in range(rows):
        history_MS[row, 9 - len(contexts[row]) :] = contexts[row]
        tokens_MR[row, : len(replies[row])] = replies[row]
    none_M = jnp.zeros(rows, jnp.int32)
    history = {"context": jnp.asarray(history_MS)}
    settings = RowSettings(none_M, none_M, jax.random.split(jax.random.key(0), rows), GREEDY, history=history)
    state = loop.DecodeState(
        settings=settings, tokens_MR=jnp.asarray(tokens_MR), logprobs_MR=none_M[:, None],
        counts_M=jnp.array(list(map(len, replies))), finished_M=none_M > 0, last_M=none_M + 6, cache=None, processors=(),
        stops=None, bucket=None, eos=END,
    )  # fmt: skip
    drafts_MD, _ = look_up(state, drafts=4)
    assert drafts_MD.tolist() == [[9, 2, 3, 8], [2, 5, 6, 2], [1, 2, 1, 2], [7, 4, 4, 7], [6] * 4]


HOW = {"max_new_tokens": 12, "keys": tiny.KEYS}
# A draft model that agrees now and then: the model's own weights, each a little off.
NEAR = jax.tree.map(
    lambda x: x + 0.02 * np.random.default_rng(7).standard_normal(x.shape).astype(np.float32), tiny.PARAMS
)
WARM = Sampling(temperature=0.7, top_k=20, repetition_penalty=1.2, penalty_scope="context")


@pytest.mark.long
@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_a_gpt2_says_the_same(sampling):
    asked = (tiny.PARAMS, tiny.CONFIG, tiny.TOKENS, tiny.LENGTHS)
    expected = generate(*asked, sampling=sampling, **HOW)
    assert len(set(expected.lengths.tolist())) > 1
    assert expected.forwards is None
    for draft in (Draft(), Draft(NEAR, tiny.CONFIG, tokens=2)):
        out = generate(*asked, sampling=sampling, draft=draft, **HOW)
        assert out.tokens.tolist() == expected.tokens.tolist()
        assert out.lengths.tolist() == expected.lengths.tolist()
        assert out.finished.tolist() == expected.finished.tolist()
        np.testing.assert_allclose(out.logprobs, expected.logprobs, atol=TOLERANCE)
        assert (out.forwards <= out.lengths - 1).all()
    assert 0 < out.accepted.sum() < out.lengths.sum() - 4
    assert "drafts accepted in" in repr(out)


def test_what_cannot_draft_is_one_line_before_anything_runs():
    asked = (tiny.PARAMS, tiny.CONFIG, tiny.TOKENS, tiny.LENGTHS)
    fewer, other = (dataclasses.replace(tiny.CONFIG, **one) for one in ({"n_positions": 16}, {"vocab_size": 60}))
    cases = (
        (lambda: Draft(tokens=0), ValueError, "draft tokens is 0"),
        (lambda: Draft(tiny.PARAMS), ValueError, "params and config; give both"),
        (lambda: Draft(tiny.PARAMS, fewer), ValueError, "16 positions, the model 48; give one with as many"),
        (lambda: Draft(tiny.PARAMS, other), ValueError, "a vocabulary of 60 with EOS 10, the model one of 61 with"),
        (lambda: Draft({"wte": 1}, tiny.CONFIG), ValueError, "the parameters have 0 blocks"),
        (lambda: "lookup", TypeError, "give a Draft, such as"),
    )
    for make, kind, words in cases:
        with pytest.raises(kind, match=re.escape(words)) as caught:
            generate(*asked, sampling=GREEDY, draft=make(), **HOW)
        assert "\n" not in str(caught.value)
