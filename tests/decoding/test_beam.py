"""Beam search on toy Markov chains whose best paths are found by trying all, and on a small GPT-2 without a cache.

Letters: M rows of all beams, B rows, N beams, R reply slots, V vocabulary.
"""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_counter import count_compilations
from decoding.tiny import CONFIG, LENGTHS, PARAMS, TOKENS, next_logits, prompts
from scipy.special import log_softmax

from dialogpt_jax.cache import KVCache, reorder
from dialogpt_jax.decoding.beam import BeamRules, begin, search
from dialogpt_jax.decoding.beam_options import EARLY_STOPPING
from dialogpt_jax.decoding.beam_search import beam_search
from dialogpt_jax.decoding.contrastive import contrastive_search
from dialogpt_jax.decoding.generate import generate
from dialogpt_jax.decoding.logits import by_row
from dialogpt_jax.decoding.loop import RowSettings
from dialogpt_jax.decoding.request import candidate_settings
from dialogpt_jax.decoding.sampling import GREEDY, Sampling
from dialogpt_jax.decoding.soundness import FORBIDDEN
from dialogpt_jax.quantization import quantize

# float32 sums of some ten log-probabilities.
TOLERANCE = 2e-5

# A chain on the last two tokens, whose cache keeps the one before: a beam with another's cache takes wrong steps.

END, VOCAB = 4, 5
CHAIN = np.random.default_rng(3).normal(scale=2.0, size=(VOCAB, VOCAB, VOCAB)).astype(np.float32)
CHAIN[..., END] -= 1.0
NOTHING = Sampling(temperature=None, min_new_tokens=None)


def chain_step(tokens_MT, _, before_M):
    last_M = tokens_MT[:, 0]
    return jnp.asarray(CHAIN)[before_M, last_M][:, None], last_M


def chain_reorder(before_M, parents_BN):
    return jnp.take_along_axis(before_M.reshape(parents_BN.shape), parents_BN, axis=1).reshape(-1)


def chain_search(
    starts, limits, *, beams, penalty=1.0, stopping=False, sampling=NOTHING, keys=None, groups=1, diversity=None
):
    rows = len(starts)
    settings = RowSettings(
        lengths_M=jnp.full(rows, 3),
        limits_M=jnp.asarray(limits, jnp.int32),
        keys_M=jax.random.split(jax.random.key(0), rows) if keys is None else keys,
        sampling=by_row(sampling, rows),
    )
    rules = BeamRules(
        np.full(rows, penalty, np.float32),
        np.full(rows, EARLY_STOPPING[stopping], np.int32),
        None if diversity is None else np.full(rows, diversity, np.float32),
        groups,
    )
    return jax.device_get(_chain_search(jnp.asarray(starts), settings, rules, beams))


def _run_chain(starts, settings, rules, beams):
    settings = candidate_settings(settings, beams)
    before_M = jnp.repeat(starts, beams)  # the token before the first of the reply
    first_BV = jnp.asarray(CHAIN)[0, starts]
    state = begin(first_BV, settings, rules, before_M, slots=8, bucket=None, eos=END)
    return search(chain_step, chain_reorder, state)


_chain_search = jax.jit(_run_chain, static_argnames="beams")


def logprob_of(start, reply):
    total, before, last = 0.0, 0, start
    for token in reply:
        total += log_softmax(CHAIN[before, last].astype(np.float64))[token]
        before, last = last, token
    return total


def all_replies(start, limit, penalty):
    """Every reply with its score, the best first."""
    found = []
    for length in range(1, limit + 1):
        for front in itertools.product(range(END), repeat=length - 1):
            ends = range(VOCAB) if length == limit else [END]
            found += [(logprob_of(start, [*front, t]) / length**penalty, [*front, t]) for t in ends]
    return sorted(found, key=lambda pair: -pair[0])


def replies_of(found, row):
    return [tokens[:count].tolist() for tokens, count in zip(found.tokens_BNR[row], found.counts_BN[row], strict=True)]


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 1.4])
def test_enough_beams_find_the_best_of_all(penalty):
    """4^3 beams hold every beginning of 4 tokens, so nothing is lost: the result is the optimum, and so are the n best."""
    starts, limits = [1, 2, 3], [4, 3, 2]
    found = chain_search(starts, limits, beams=64, penalty=penalty, stopping="never")
    for row, (start, limit) in enumerate(zip(starts, limits, strict=True)):
        expected = all_replies(start, limit, penalty)[:20]
        assert replies_of(found, row)[:20] == [reply for _, reply in expected]
        np.testing.assert_allclose(found.scores_BN[row, :20], [score for score, _ in expected], rtol=TOLERANCE)


def by_hand(start, limit, beams, penalty, stopping):
    """Beam search in Python, on lists: [(score, reply)], the best first."""
    live, ended = [(0.0, [])], []
    for count in range(1, limit + 1):
        grown = [(logprob_of(start, [*reply, t]), [*reply, t]) for _, reply in live for t in range(VOCAB)]
        grown = sorted(grown, key=lambda pair: -pair[0])[: 2 * beams]
        over = [reply[-1] == END or count == limit for _, reply in grown]
        ended += [(score / count**penalty, r) for i, (score, r) in enumerate(grown) if over[i] and i < beams]
        ended = sorted(ended, key=lambda pair: -pair[0])[:beams]
        live = [pair for i, pair in enumerate(grown) if not over[i]][:beams]
        if len(ended) == beams and live:
            hoped = limit if stopping == "never" and penalty > 0 else count
            if stopping is True or live[0][0] / hoped**penalty <= ended[-1][0]:
                break
    return ended


def groups_by_hand(start, limit, groups, beams, diversity, penalty, stopping):
    """Diverse beam search in Python, on lists: [(score, reply)], the best first; so many beams in each group."""
    live, ended, done = [[(0.0, [])] for _ in range(groups)], [[] for _ in range(groups)], [False] * groups
    for count in range(1, limit + 1):
        said = [0] * VOCAB
        for g in range(groups):
            if done[g]:
                continue
            grown = [
                (score + logprob_of(start, [*reply, t]) - logprob_of(start, reply) - diversity * said[t], [*reply, t])
                for score, reply in live[g]
                for t in range(VOCAB)
            ]
            grown = sorted(grown, key=lambda pair: -pair[0])[: 2 * beams]
            over = [reply[-1] == END or count == limit for _, reply in grown]
            ended[g] += [(score / count**penalty, r) for i, (score, r) in enumerate(grown) if over[i] and i < beams]
            ended[g] = sorted(ended[g], key=lambda pair: -pair[0])[:beams]
            live[g] = [pair for i, pair in enumerate(grown) if not over[i]][:beams]
            for _, reply in live[g]:
                said[reply[-1]] += 1
            hoped = limit if stopping == "never" and penalty > 0 else count
            full = len(ended[g]) == beams
            done[g] = not live[g] or (
                full and (stopping is True or beams == 1 or live[g][0][0] / hoped**penalty <= ended[g][-1][0])
            )
    return sorted(itertools.chain(*ended), key=lambda pair: -pair[0])


@pytest.mark.parametrize(("groups", "beams", "diversity", "stopping"), [(3, 2, 1.5, True), (3, 1, 1.5, "never")])
def test_groups_are_those_by_hand_and_rows_end_at_different_times(groups, beams, diversity, stopping):
    starts, limits = [0, 1, 2, 3, 1, 2], [8, 8, 8, 8, 2, 5]
    how = {"penalty": 0.8, "stopping": stopping}
    found = chain_search(starts, limits, beams=groups * beams, groups=groups, diversity=diversity, **how)
    for row, (start, limit) in enumerate(zip(starts, limits, strict=True)):
        expected = groups_by_hand(start, limit, groups, beams, diversity, *how.values())
        assert replies_of(found, row)[: len(expected)] == [reply for _, reply in expected], row
        scores = [*(score for score, _ in expected), *[-np.inf] * (groups * beams - len(expected))]
        np.testing.assert_allclose(found.scores_BN[row], scores, rtol=TOLERANCE)


@pytest.mark.parametrize("stopping", [False, True, "never"])
@pytest.mark.parametrize("penalty", [0.6, 1.0, 1.4, -0.5])
@pytest.mark.parametrize("beams", [2, 3])
def test_a_search_is_the_one_by_hand_and_rows_end_at_different_times(beams, penalty, stopping):
    starts, limits = [0, 1, 2, 3, 1, 2], [8, 8, 8, 8, 2, 5]
    found = chain_search(starts, limits, beams=beams, penalty=penalty, stopping=stopping)
    for row, (start, limit) in enumerate(zip(starts, limits, strict=True)):
        expected = by_hand(start, limit, beams, penalty, stopping)
        assert replies_of(found, row) == [reply for _, reply in expected], row
        np.testing.assert_allclose(found.scores_BN[row], [score for score, _ in expected], rtol=TOLERANCE)
        for n, reply in enumerate(replies_of(found, row)):
            assert (found.tokens_BNR[row, n, len(reply) :] == END).all()
            total = found.logprobs_BNR[row, n].sum()
            np.testing.assert_allclose(total / len(reply) ** penalty, found.scores_BN[row, n], rtol=TOLERANCE)
    assert len({len(reply) for row in range(6) for reply in replies_of(found, row)}) > 2


def test_other_rules_and_limits_compile_nothing():
    chain_search([0, 1], [8, 8], beams=3)
    with count_compilations() as programs:
        chain_search([2, 3], [4, 7], beams=3, penalty=0.3, stopping="never")
        chain_search([2, 3], [4, 7], beams=3, penalty=2.0, stopping=True)
    assert programs == []


def test_a_row_without_room_has_no_reply():
    found = chain_search([0, 1], [0, 3], beams=2)
    assert found.counts_BN[0].tolist() == [0, 0]
    assert np.isneginf(found.scores_BN[0]).all()
    assert (found.counts_BN[1] > 0).all()


def test_where_one_reply_is_possible_there_is_one():
    sampling = Sampling(temperature=None, min_new_tokens=None, processors=())
    allowed = jax.nn.one_hot(jnp.array([1, 2, END, END, END, END, END, END]), VOCAB) > 0

    def only(logits_MV, state):
        return jnp.where(allowed[state.counts_M], logits_MV, -jnp.inf)

    def run(starts):
        settings = RowSettings(
            jnp.full(2, 3), jnp.full(2, 8), jax.random.split(jax.random.key(0), 2), by_row(sampling, 2)
        )
        rules = BeamRules(np.ones(2, np.float32), np.zeros(2, np.int32))
        first_BV = jnp.asarray(CHAIN)[0, starts]
        how = {"slots": 8, "bucket": None, "eos": END, "processors": (jax.tree_util.Partial(only),)}
        state = begin(first_BV, candidate_settings(settings, 2), rules, jnp.repeat(starts, 2), **how)
        return search(chain_step, chain_reorder, state)

    found = jax.device_get(jax.jit(run)(jnp.array([1, 2])))
    assert found.counts_BN.tolist() == [[3, 0], [3, 0]]
    assert found.tokens_BNR[:, 0, :3].tolist() == [[1, 2, END]] * 2
    assert np.isneginf(found.scores_BN[:, 1]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_function_that_gives_no_number_is_seen_in_the_log_probability(value):
    """It gives one to row 0 alone, whose log-probabilities say so; the model is sound."""

    def broken(logits_MV, state):
        return logits_MV.at[: len(logits_MV) // 2, 2].set(value)

    settings = RowSettings(jnp.full(2, 3), jnp.full(2, 8), jax.random.split(jax.random.key(0), 2), by_row(GREEDY, 2))
    rules = BeamRules(np.ones(2, np.float32), np.zeros(2, np.int32))
    how = {"slots": 8, "bucket": None, "eos": END, "processors": (broken,)}

    def best():
        starts = jnp.array([1, 1])
        state = begin(
            jnp.asarray(CHAIN)[0, starts], candidate_settings(settings, 2), rules, jnp.repeat(starts, 2), **how
        )
        return state.live.logprobs_BNR, state.ended.logprobs_BNR

    live_BNR, ended_BNR = jax.device_get(jax.jit(best)())
    assert ended_BNR[0, 0, 0] == FORBIDDEN
    assert np.isfinite(live_BNR[1]).all()
    assert np.isfinite(ended_BNR[1]).all()


# Drawn beams.


def test_drawn_beams_follow_the_chain():
    """The first of two drawn continuations of the first step has its probability; a row draws the same alone."""
    rows = 4000
    keys = jax.random.split(jax.random.key(5), rows)
    found = chain_search([1] * rows, [1] * rows, beams=2, sampling=Sampling(min_new_tokens=None), keys=keys)
    pairs = np.sort(found.tokens_BNR[:, :, 0], axis=1)
    probs_V = np.exp(log_softmax(CHAIN[0, 1].astype(np.float64)))
    # Of the four that are drawn without replacement the best two come out: so which one is left out is drawn.
    counts = np.zeros((VOCAB, VOCAB))
    np.add.at(counts, tuple(pairs.T), 1)
    expected = np.zeros((VOCAB, VOCAB))
    for order in itertools.permutations(range(VOCAB), 4):
        chance, left = 1.0, 1.0
        for token in order:
            chance, left = chance * probs_V[token] / left, left - probs_V[token]
        best = sorted(sorted(order, key=lambda t: -probs_V[t])[:2])
        expected[tuple(best)] += chance * rows
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max())
    assert (expected[counts > 0] > 0).all()
    alone = chain_search([1], [1], beams=2, sampling=Sampling(min_new_tokens=None), keys=keys[7:8])
    assert alone.tokens_BNR[0].tolist() == found.tokens_BNR[7].tolist()


# With a model.

STEPS = 10


def run(rows=slice(None), beams=3, n_best=3, sampling=GREEDY, **how):
    out = beam_search(
        PARAMS,
        CONFIG,
        TOKENS[rows],
        LENGTHS[rows],
        beams=beams,
        n_best=n_best,
        max_new_tokens=STEPS,
        sampling=sampling,
        **how,
    )
    return jax.device_get(out)


def model_by_hand(prompt, beams, penalty=1.0):
    """Beam search in Python that runs every text whole through the model: no cache to put in order."""
    live, ended = [(0.0, [])], []
    limit = min(STEPS, CONFIG.n_positions - len(prompt))
    for count in range(1, limit + 1):
        grown = []
        for total, reply in live:
            logprobs_V = log_softmax(next_logits(prompt + reply)[: CONFIG.vocab_size].astype(np.float64))
            if count == 1:
                logprobs_V[CONFIG.eos_token_id] = -np.inf  # a reply is not empty
            grown += [(total + logprobs_V[t], [*reply, t]) for t in range(CONFIG.vocab_size)]
        grown = sorted(grown, key=lambda pair: -pair[0])[: 2 * beams]
        over = [reply[-1] == CONFIG.eos_token_id or count == limit for _, reply in grown]
        ended += [(score / count**penalty, r) for i, (score, r) in enumerate(grown) if over[i] and i < beams]
        ended = sorted(ended, key=lambda pair: -pair[0])[:beams]
        live = [pair for i, pair in enumerate(grown) if not over[i]][:beams]
        if len(ended) == beams and live and live[0][0] / count**penalty <= ended[-1][0]:
            break
    return ended


def test_beams_on_a_shared_prefix_are_those_without_a_cache():
    out = run()
    for row, prompt in enumerate(prompts()):
        expected = model_by_hand(prompt, 3)
        for n, (score, reply) in enumerate(expected):
            assert out.tokens[row, n, : out.lengths[row, n]].tolist() == reply
            assert out.finished[row, n] == (reply[-1] == CONFIG.eos_token_id)
            np.testing.assert_allclose(out.scores[row, n], score, rtol=TOLERANCE)
    assert len(set(out.lengths.reshape(-1).tolist())) > 2


def test_groups_on_a_shared_prefix_say_different_things():
    """The first group is plain beam search with its beams; the scores of all are those of their tokens and penalties."""
    plain = run()
    out = run(beams=6, n_best=6, beam_groups=2, diversity_penalty=2.0)
    assert (np.diff(out.scores, axis=1) <= 0).all()
    for row, prompt in enumerate(prompts()):
        replies = [out.tokens[row, n, : out.lengths[row, n]].tolist() for n in range(6)]
        for n in range(3):
            assert plain.tokens[row, n, : plain.lengths[row, n]].tolist() in replies
        for n, reply in enumerate(replies):
            logprobs = [
                log_softmax(next_logits(prompt + reply[:i])[: CONFIG.vocab_size])[t] for i, t in enumerate(reply)
            ]
            np.testing.assert_allclose(out.logprobs[row, n, : len(reply)], logprobs, atol=1e-4)
            lost = (np.sum(logprobs) - out.scores[row, n] * len(reply)) / 2.0  # of a whole number of beams
            assert abs(lost - round(lost)) < 1e-3
        assert len({reply[0] for reply in replies}) > len(set(plain.tokens[row, :, 0].tolist()))


def test_one_beam_is_greedy_with_every_processor():
    sampling = Sampling(
        0, no_repeat_ngram=2, repetition_penalty=1.5, presence_penalty=0.5, bad_words=[3], min_new_tokens=3
    )
    keys = jax.random.split(jax.random.key(0), 4)
    for each in (GREEDY, sampling):
        greedy = jax.device_get(
            generate(PARAMS, CONFIG, TOKENS, LENGTHS, sampling=each, max_new_tokens=STEPS, keys=keys)
        )
        for stopping in (False, "never"):
            out = run(beams=1, n_best=1, sampling=each, early_stopping=stopping)
            np.testing.assert_array_equal(out.tokens[:, 0], greedy.tokens)
            np.testing.assert_array_equal(out.lengths[:, 0], greedy.lengths)
            np.testing.assert_array_equal(out.finished[:, 0], greedy.finished)
            np.testing.assert_allclose(out.logprobs[:, 0], greedy.logprobs, atol=TOLERANCE)


def test_processors_see_each_beam_as_a_reply():
    out = run(sampling=Sampling(0, no_repeat_ngram=1, ngram_scope="context", bad_words=[7, (8, 9)], min_new_tokens=4))
    for row, prompt in enumerate(prompts()):
        for n in range(3):
            reply = out.tokens[row, n, : out.lengths[row, n]].tolist()
            assert len(set(reply)) == len(reply)
            assert not set(reply) & {7, *prompt}
            assert len(reply) > 4


def test_a_row_alone_is_the_row_in_a_batch_and_pads_change_nothing():
    batch = run()
    wide = beam_search(
        PARAMS, CONFIG, np.pad(np.where(np.arange(12) < LENGTHS[:, None], TOKENS, -3), ((0, 0), (0, 30))), LENGTHS,
        beams=3, n_best=3, max_new_tokens=STEPS,
    )  # fmt: skip
    np.testing.assert_array_equal(wide.tokens, batch.tokens)
    for row in range(4):
        alone = run(rows=slice(row, row + 1))
        np.testing.assert_array_equal(alone.tokens[0], batch.tokens[row])
        np.testing.assert_allclose(alone.scores[0], batch.scores[row], rtol=TOLERANCE)


def test_drawn_beams_repeat_by_their_keys():
    sampling, keys = Sampling(temperature=1.5, top_k=20, top_p=0.9), jax.random.split(jax.random.key(2), 4)
    one, again, other = (run(sampling=sampling, keys=k) for k in (keys, keys, keys[::-1]))
    np.testing.assert_array_equal(one.tokens, again.tokens)
    assert (one.tokens != other.tokens).any()
    assert (one.tokens != run().tokens).any()
    with pytest.raises(ValueError, match="beams are drawn by this sampling; give keys"):
        run(sampling=sampling)


def test_beam_search_under_jit_and_other_lengths_of_it():
    program = jax.jit(lambda params, tokens_BT, lengths_B: beam_search(
        params, CONFIG, tokens_BT, lengths_B, beams=3, n_best=3, max_new_tokens=STEPS
    ))  # fmt: skip
    out = jax.device_get(program(PARAMS, TOKENS, LENGTHS))
    np.testing.assert_array_equal(out.tokens, run().tokens)
    with count_compilations() as programs:
        run(length_penalty=0.7, early_stopping="never", n_best=2)
    assert programs == []


def test_replies_are_put_in_order_and_the_heads_stay():
    rows, heads, beams = 2, 3, 4
    x_GRK = np.arange(rows * heads * beams * 2 * 1.0).reshape(-1, 2, 1)
    parents_BN = np.array([[2, 2, 0, 3], [1, 0, 3, 2]])
    ((got_GRK, _),) = reorder(KVCache(((jnp.asarray(x_GRK), jnp.asarray(x_GRK)),)), jnp.asarray(parents_BN)).layers
    x_BHNRK, got_BHNRK = (np.asarray(x).reshape(rows, heads, beams, 2, 1) for x in (x_GRK, got_GRK))
    for b, h, n in itertools.product(range(rows), range(heads), range(beams)):
        np.testing.assert_array_equal(got_BHNRK[b, h, n], x_BHNRK[b, h, parents_BN[b, n]])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"beams": 0}, "beams is 0"),
        ({"beams": 2.5}, "beams is 2.5"),
        ({"beams": 31}, "beams is 31; a vocabulary of 61 has room for 30"),
        ({"n_best": 4}, "n_best is 4, and there are 3 beams"),
        ({"n_best": 0}, "n_best is 0"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
        ({"length_penalty": "long"}, "length_penalty is 'long'"),
        ({"early_stopping": "always"}, "early_stopping is 'always'; give True, False or 'never'"),
        ({"early_stopping": 2}, "early_stopping is 2"),
        ({"beam_groups": 2}, "beams is 3 and beam_groups 2; give a number of groups that divides it"),
        ({"beam_groups": 0}, "beam_groups is 0; it must be a whole number"),
        ({"beam_groups": 3, "diversity_penalty": 0}, "diversity_penalty is 0: all groups would find the same"),
        ({"beam_groups": 3, "diversity_penalty": -1}, "diversity_penalty is -1; it must be a finite number from 0"),
        ({"beam_groups": 3, "diversity_penalty": "0.5"}, "diversity_penalty is '0.5'"),
        ({"diversity_penalty": 0.5}, "diversity_penalty goes with beam_groups over 1"),
        ({"beam_groups": 3, "sampling": Sampling()}, "beam_groups is 3, and this sampling draws"),
        ({"sampling": Sampling()}, "give keys"),
    ],
    ids=str,
)
def test_a_mistake_is_one_clear_line(change, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        run(**change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_searches_in_other_dtypes_agree_with_the_model_in_them(dtype):
    """The log-probabilities are those of the same weights without a cache, and the scores are of them."""
    params = quantize(PARAMS) if dtype == "int8" else jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    asked, how = (params, CONFIG, TOKENS, LENGTHS), {"max_new_tokens": STEPS}
    out = jax.device_get(beam_search(*asked, beams=3, n_best=2, **how))
    np.testing.assert_allclose(out.logprobs.sum(axis=2) / out.lengths, out.scores, atol=TOLERANCE)
    assert (out.scores[:, 0] >= out.scores[:, 1]).all()
    other = jax.device_get(contrastive_search(*asked, **how))
    rows = [(out.tokens[row, 1], out.logprobs[row, 1], out.lengths[row, 1]) for row in range(4)]
    rows += list(zip(other.tokens, other.logprobs, other.lengths, strict=True))
    rounding = 0.15  # of activations: to 8 bits of mantissa, or to 127 steps, where a sum in another order moves one
    for prompt, (tokens, logprobs, length) in zip([*prompts(), *prompts()], rows, strict=True):
        reply = tokens[:length].tolist()
        expected = [
            log_softmax(next_logits(prompt + reply[:i], params)[: CONFIG.vocab_size])[t] for i, t in enumerate(reply)
        ]
        np.testing.assert_allclose(logprobs[:length], expected, atol=rounding)
    assert len(set(out.lengths.reshape(-1).tolist())) > 1
