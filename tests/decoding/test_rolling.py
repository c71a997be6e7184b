"""Rows that come and go: a reply is that of one large batch, whichever row it had and whoever stood there before."""

import dataclasses

import jax
import numpy as np
import pytest
from compile_counter import count_compilations
from decoding import tiny
from drawn_weights import as_params, draw_tensors

from dialogpt_jax.data.batches import fill_up, pad_right
from dialogpt_jax.decoding import rolling
from dialogpt_jax.decoding.generate import generate
from dialogpt_jax.decoding.logits import top_k_bucket
from dialogpt_jax.decoding.request import assemble
from dialogpt_jax.decoding.rolling import admit, begin_rows, go_on, no_rows, plan, roll
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.decoding.speculative import Draft
from dialogpt_jax.decoding.stops import Stops, automaton
from dialogpt_jax.replies.keys import row_keys

CONFIG = dataclasses.replace(tiny.CONFIG, n_positions=160)
PARAMS = as_params(
    {name: 10 * x if ".w" in name and "te." in name else x for name, x in draw_tensors(CONFIG).items()}, CONFIG
)
TOLERANCE = 2e-5  # of log-probabilities, float32: sums over other numbers of slots round differently
LENGTH = 14  # the most tokens of a reply
_draw = np.random.default_rng(5)
# 26 contexts, from one token to some that leave room for five and for two; two widths of a prefill, three caches.
SIZES = [1, 3, 155, 64, 55, 20, 9, 60, 63, 12, 45, 22, 30, 5, 40, 57, 2, 56, 158, 33, 8, 51, 157, 17, 36, 4]
WIDTHS, SLOTS = {64, 160}, {64, 128, 160}
CONTEXTS = [_draw.integers(0, CONFIG.vocab_size, size).tolist() for size in SIZES]
KEYS = row_keys(8, range(len(SIZES)), [1] * len(SIZES))
_EACH = np.arange(len(SIZES))
SAMPLINGS = {
    "greedy": Sampling(temperature=None, no_repeat_ngram=2, ngram_scope="context", suppress_tokens=(3,)),
    "sampled": Sampling(
        temperature=0.5 + 0.05 * _EACH,
        top_k=1.0 + _EACH,  # buckets of 16 and of 64
        repetition_penalty=1.2,
        penalty_scope="context",
        min_new_tokens=_EACH % 3,
        stop_strings=("\x05",),
    ),
}


def stops_of(sampling):
    """Each token is a text of one byte, its id."""
    if not sampling.stop_strings:
        return None
    table = automaton([text.encode() for text in sampling.stop_strings])
    return Stops(np.array(table[:, : CONFIG.padded_vocab_size], np.uint8), 4)


def some_of(sampling, rows):
    values = {field.name: getattr(sampling, field.name) for field in dataclasses.fields(sampling)}
    return dataclasses.replace(sampling, **{k: v[rows] for k, v in values.items() if isinstance(v, np.ndarray)})


def request_of(group, sampling, contexts=CONTEXTS):
    filled = np.array(fill_up(group.members, group.rows))
    how = {
        "max_new_tokens": LENGTH,
        "keys": row_keys(8, filled, [1] * len(filled)),
        "width": group.width,
        "history_width": CONFIG.n_positions,
    }
    prompts = pad_right([contexts[i] for i in filled], group.width)
    request = assemble(CONFIG, *prompts, sampling=some_of(sampling, filled), stops=stops_of(sampling), **how)
    return dataclasses.replace(request, bucket=top_k_bucket(sampling, CONFIG.vocab_size))


def rolled(sampling, rows, contexts=CONTEXTS):
    """Every reply by its number, and the lots in which they ended."""
    groups = plan([len(context) for context in contexts], rows, CONFIG.n_positions)
    lots = list(roll(PARAMS, CONFIG, groups, lambda group: request_of(group, sampling, contexts), rows=rows))
    found = {ended.number: ended for lot in lots for ended in lot}
    assert sum(map(len, lots)) == len(found) == len(contexts)
    return found, lots


@pytest.mark.parametrize(("name", "rows"), [("greedy", 3), pytest.param("sampled", 12, marks=pytest.mark.long)])
def test_a_reply_is_that_of_one_batch_and_programs_are_few(name, rows):
    sampling = SAMPLINGS[name]
    how = {"sampling": sampling, "max_new_tokens": LENGTH, "keys": KEYS, "stops": stops_of(sampling)}
    out = jax.device_get(generate(PARAMS, CONFIG, *pad_right(CONTEXTS, CONFIG.n_positions), **how))
    assert len(set(out.lengths.tolist())) > 5  # they end at many different times,
    assert set(out.finished.tolist()) == {True, False}  # by themselves and cut,
    room = CONFIG.n_positions - np.array(SIZES)
    assert ((out.lengths == room) & ~out.finished).any()  # one by the model's last position
    with count_compilations() as programs:
        found, lots = rolled(sampling, rows)
    for i, ended in found.items():
        length = out.lengths[i]
        assert ended.length == length, i
        assert ended.tokens_R[:length].tolist() == out.tokens[i, :length].tolist(), i
        assert ended.finished == out.finished[i], i
        np.testing.assert_allclose(ended.logprobs_R[:length], out.logprobs[i, :length], atol=TOLERANCE)
    assert len(lots) > len(CONTEXTS) / rows + 1  # none waits for all the others
    # A prefill a width, a loop for each number of slots; copies from the ones to the others, and into a larger cache.
    copies = (len(WIDTHS) + len(SLOTS) - 1) + len(SLOTS)
    assert {group.width for group in plan(SIZES, rows, CONFIG.n_positions)} == WIDTHS
    assert len(programs) <= len(WIDTHS) + len(SLOTS) + copies
    with count_compilations() as again:
        rolled(dataclasses.replace(sampling, min_new_tokens=2), rows, CONTEXTS[::-1])
    assert len(again) == 0


def test_short_contexts_that_fill_a_wide_group_alone_have_a_cache_as_wide():
    """Seven of 64 columns are no eight and go up to the next wider one, whose groups are of six: one is of them alone."""
    contexts, sampling = [*CONTEXTS[6:13], CONTEXTS[2]], SAMPLINGS["greedy"]
    first, _ = plan([len(context) for context in contexts], 32, CONFIG.n_positions)
    assert first.width == 160
    assert max(len(contexts[i]) for i in first.members) + LENGTH <= 128  # for which fewer slots would do
    out = generate(
        PARAMS,
        CONFIG,
        *pad_right(contexts, CONFIG.n_positions),
        sampling=sampling,
        max_new_tokens=LENGTH,
        keys=KEYS[:8],
    )
    found, _ = rolled(sampling, 32, contexts)
    for i, ended in found.items():
        assert ended.tokens_R[: ended.length].tolist() == out.tokens[i, : out.lengths[i]].tolist(), i


def test_admitted_rows_are_written_and_the_others_left_alone():
    sampling = SAMPLINGS["sampled"]
    three, two = (rolling.Group(64, 3, members) for members in ([5, 6, 12], [9, 10]))
    begun, later = (begin_rows(PARAMS, CONFIG, request_of(group, sampling)) for group in (three, two))
    state = no_rows(begun, rows=12, slots=64)
    assert np.asarray(state.done_M).all()
    state = admit(state, np.array([3, 1, 11], np.int32), begun)
    np.testing.assert_array_equal(np.asarray(state.done_M)[[3, 1, 11]], begun.done_M)
    assert np.asarray(state.done_M).sum() == 9 + np.asarray(begun.done_M).sum()
    state, told = go_on(PARAMS, CONFIG, state, np.int32(3), np.int32(12), (), stops_of(sampling))
    before, new = rows_of(state, 12), rows_of(later, 3)
    after = rows_of(admit(state, np.array([1, 0, 12], np.int32), later), 12)  # the last is nowhere: dropped
    for name in before:
        np.testing.assert_array_equal(after[name][2:], before[name][2:], err_msg=name)
        np.testing.assert_array_equal(after[name][[1, 0]], new[name][:2], err_msg=name)
    assert told.counts_M.tolist() == before["counts"].tolist()
    assert after["counts"].tolist() != before["counts"].tolist()


def rows_of(state, rows):
    """Copies of all that a state has of its rows, by name."""
    cache = jax.tree.map(lambda x: np.array(x).reshape(rows, CONFIG.n_head, *x.shape[1:]), state.cache)
    keys = np.array(jax.random.key_data(state.settings.keys_M))
    rest = dataclasses.replace(state.settings, keys_M=keys)
    state = dataclasses.replace(state, settings=rest, cache=None, processors=(), stops=None)
    named = {jax.tree_util.keystr(path): np.array(x) for path, x in jax.tree_util.tree_leaves_with_path(state)}
    named |= {f"cache{i}": x for i, x in enumerate(jax.tree.leaves(cache))}
    return named | {"counts": np.array(state.counts_M)}


def test_a_call_ends_when_enough_rows_are_done():
    endless = dataclasses.replace(SAMPLINGS["greedy"], suppress_tokens=(3, CONFIG.eos_token_id))
    state = None
    for row, limit in enumerate((2, 4, 9)):
        begun = begin_rows(PARAMS, CONFIG, request_of(rolling.Group(64, 1, [6 + 3 * row]), endless))
        begun = dataclasses.replace(
            begun, settings=dataclasses.replace(begun.settings, limits_M=np.array([limit], np.int32))
        )
        state = no_rows(begun, rows=3, slots=64) if state is None else state
        state = admit(state, np.array([row], np.int32), begun)
    counts = []
    for most, enough in ((32, 1), (32, 2), (3, 3), (32, 3)):
        state, told = go_on(PARAMS, CONFIG, state, np.int32(most), np.int32(enough))
        counts.append(told.counts_M.tolist())
    assert counts == [[2, 2, 2], [2, 4, 4], [2, 4, 7], [2, 4, 9]]


@pytest.mark.parametrize("draft", [None, pytest.param(Draft(), marks=pytest.mark.long)])
def test_a_cache_has_the_slots_that_the_next_steps_need(monkeypatch, draft):
    endless = dataclasses.replace(SAMPLINGS["greedy"], suppress_tokens=(3, CONFIG.eos_token_id))
    if draft is not None:  # greedy decoding that may repeat goes in circles: most of what is looked up is right
        endless = dataclasses.replace(endless, no_repeat_ngram=90)
    contexts, seen = [CONTEXTS[i] for i in (5, 9, 13, 22, 24)], []  # of 20, 12, 5, 157 and 36 tokens
    limits = {0: 70, 1: 100, 2: 90, 3: 3, 4: 100}

    def asked(group):
        request = request_of(group, endless, contexts)
        limits_M = np.array([limits[i] for i in fill_up(group.members, group.rows)], np.int32)
        return dataclasses.replace(
            request, slots=100, settings=dataclasses.replace(request.settings, limits_M=limits_M)
        )

    def recorded(params, config, state, most, enough, *whole):
        seen.append((state.cache.num_slots, int(most)))
        return go_on(params, config, state, most, enough, *whole)

    monkeypatch.setattr(rolling, "go_on", recorded)
    groups = plan([len(context) for context in contexts], 4, CONFIG.n_positions)
    found = {one.number: one for lot in roll(PARAMS, CONFIG, groups, asked, rows=4, draft=draft) for one in lot}
    how = {"sampling": endless, "max_new_tokens": 100, "keys": KEYS[:5]}
    out = generate(PARAMS, CONFIG, *pad_right(contexts, CONFIG.n_positions), **how)
    for i, limit in limits.items():
        assert found[i].tokens_R[: found[i].length].tolist() == np.asarray(out.tokens)[i, :limit].tolist(), i
    if draft is not None:
        assert sum(found[i].accepted for i in found) > 100
    slots = [number for number, _ in seen]
    assert slots == sorted(slots)
    # 64, 96, 128: it grows with the replies. With drafts a call has up to four times the tokens.
    assert (slots[0], len(set(slots)), slots[-1]) == ((64, 4, 160) if draft is None else (96, 2, 160))
    assert all(rolling.FEWEST_STEPS <= most <= rolling.MOST_STEPS for _, most in seen)


def test_steps_that_a_cache_has_room_for():
    held = [rolling.Held(0, length=20, limit=100, count=10), rolling.Held(1, length=60, limit=4, count=1)]
    assert [rolling.steps_within(held, slots) for slots in (64, 100, 120)] == [32, 32, 32]
    assert [rolling.steps_within(held[:1], 40, a_step) for a_step in (1, 4)] == [10, 2]
    assert rolling.steps_within(held[1:], 64) == 32  # its limit is inside
    assert [held[0].slots(32), held[1].slots(32)] == [62, 64]


def test_plans():
    assert rolling.width_of(50, 512) == 64
    assert [rolling.width_of(size, 512) for size in (64, 65, 80, 81, 129, 200, 257, 300, 500)] == [
        64, 80, 80, 96, 160, 224, 320, 320, 512,
    ]  # fmt: skip
    assert rolling.width_of(300, 310) == 310
    assert [rolling.slots_of(size, 500) for size in (5, 64, 65, 300)] == [64, 64, 96, 384]
    plain = [(group.width, group.members) for group in plan([100, 20, 130, 30, 210], 8, 1024)]
    assert plain == [(64, [1, 3]), (160, [0, 2]), (224, [4])]
    sizes = np.random.default_rng(0).integers(1, 1025, 500)
    for rows in (1, 7, 32):
        groups = plan(sizes.tolist(), rows, 1024)
        assert sorted(i for group in groups for i in group.members) == list(range(500))
        assert all(len(group.members) <= group.rows <= max(rows // 4, 1) for group in groups)
        assert all(sizes[group.members].max() <= group.width for group in groups)
        assert [group.width for group in groups] == sorted(group.width for group in groups)
        assert len({(group.width, group.rows) for group in groups}) <= 17
    assert plan([], 4, 64) == []
