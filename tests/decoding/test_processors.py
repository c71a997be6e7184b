"""Processors against a second implementation, `by_hand`: plain Python over one row's lists, in float64.

Letters: M rows, V vocabulary, B contexts, T tokens of them.
"""

import itertools
import re

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_counter import count_compilations
from decoding.tiny import CONFIG, KEYS, LENGTHS, PARAMS, TOKENS, prompts

from dialogpt_jax.decoding.generate import generate, generate_candidates
from dialogpt_jax.decoding.logits import by_row
from dialogpt_jax.decoding.processor_arrays import history_of, scopes_of, texts_as_ids, token_lists
from dialogpt_jax.decoding.processors import NO_TOKEN, ReplyState, lower_repeats, process
from dialogpt_jax.decoding.request import assemble
from dialogpt_jax.decoding.sampling import GREEDY, Sampling

TOLERANCE = 2e-6  # float32, relative: one product and one sum of numbers of like size

EOS, VOCAB, SLOTS, WIDTH = CONFIG.eos_token_id, CONFIG.vocab_size, 8, 16
# Turns of the user, the bot, the user; or one turn alone. Replies of several lengths, which say some of it again.
CONTEXTS = [
    [1, 2, 3, EOS, 4, 5, 6, 4, 5, EOS, 2, 3, EOS],
    [7, 8, EOS],
    [2, 3, 2, 3, EOS, 9, 9, EOS, 5, EOS, 4, 5, 7, EOS, 1, EOS],
    [4, 5, EOS, 4, 5, 6, EOS, 3, 3, EOS],
]
REPLIES = [[4, 5], [], [9, 5, 4, 5, 9, 5], [3, 4, 3, 4]]
LIMITS = [3, 6, 8, 8]
LOGITS = np.random.default_rng(0).normal(scale=3, size=(4, VOCAB)).astype(np.float32)


def said_by_hand(context, reply, scope):
    """What was said, `None` between what does not belong together."""
    turns, turn = [], []
    for token in context:
        turn.append(token)
        if token == EOS:
            turns, turn = [*turns, turn], []
    if scope == "context":
        return context + reply
    own = [] if scope == "reply" else turns[-2::-2][::-1]
    return [token for turn in own for token in [*turn[:-1], None]] + reply


def carried_on(context, reply, s):
    """How many tokens in a row each token would carry on, counted back from each place where it was said."""
    kept = range(len(context) + len(reply))
    if s.get("dry_scope", "context") != "context":
        turn = np.cumsum([0, *[token == EOS for token in context]])
        first = {"reply": turn[-1], "own": 0}[s["dry_scope"]]
        kept = [i for i in kept if i >= len(context) or (turn[i] >= first and (turn[-1] - turn[i]) % 2 == 0)]
    whole, start = context + reply, len(context) + len(reply) - s.get("dry_range", 10**6)
    breaks = {EOS, *s.get("dry_breakers", [])}
    said = [t if i in kept and i >= start and t not in breaks else None for i, t in enumerate(whole)]
    found = {}
    for i, token in enumerate(said):
        length = 0
        while length < 50 and i - length > 0 and said[i - length - 1] == said[-1 - length] is not None:
            length += 1
        if token is not None:
            found[token] = max(length, found.get(token, 0))
    return found


def by_hand(logits_V, context, reply, limit, s):
    """The logits after the settings `s`, in transformers' order."""
    x_V, count = np.asarray(logits_V, np.float64).copy(), len(reply)

    def add(word, bias):
        front = list(word[:-1])
        if not front or (len(front) <= count and reply[count - len(front) :] == front):
            x_V[word[-1]] += bias

    for word, bias in s.get("logit_bias", {}).items():
        add(word if isinstance(word, tuple) else (word,), bias)
    seen = [token for token in said_by_hand(context, reply, s.get("penalty_scope", "reply")) if token is not None]
    for token in set(seen):
        factor = s.get("repetition_penalty", 1.0)
        x_V[token] = x_V[token] / factor if x_V[token] > 0 else x_V[token] * factor
        x_V[token] -= s.get("presence_penalty", 0.0) + seen.count(token) * s.get("frequency_penalty", 0.0)
    if "dry_multiplier" in s:
        for token, length in carried_on(context, reply, s).items():
            over = length - s.get("dry_allowed_length", 2)
            x_V[token] -= s["dry_multiplier"] * s.get("dry_base", 1.75) ** over if over >= 0 else 0.0
    if (size := s.get("no_repeat_ngram")) is not None:
        told = said_by_hand(context, reply, s.get("ngram_scope", "reply"))
        last = told[len(told) - size + 1 :] if size > 1 else []
        for i in range(len(told) - size + 1):
            if None not in told[i : i + size] and len(told) >= size and told[i : i + size - 1] == last:
                x_V[told[i + size - 1]] = -np.inf
    for word in s.get("bad_words", []):
        add(word if isinstance(word, tuple) else (word,), -np.inf)
    if count < s.get("min_new_tokens", 0):
        x_V[EOS] = -np.inf
    forced = s.get("forced_tokens", [])
    now = EOS if s.get("forced_end") and count == limit - 1 else forced[count] if count < len(forced) else None
    if now is not None:
        x_V[:] = -np.inf
        x_V[now] = 0.0
    if "decay_factor" in s and count > s["decay_start"] and np.isfinite(x_V[EOS]):
        x_V[EOS] += abs(x_V[EOS]) * (s["decay_factor"] ** (count - s["decay_start"]) - 1)
    x_V[s.get("suppress_tokens", [])] = -np.inf
    if count == 0:
        x_V[s.get("begin_suppress_tokens", [])] = -np.inf
    return x_V


def pad_right(rows, width, pad):
    return np.array([row + [pad] * (width - len(row)) for row in rows], np.int32)


def state_of(sampling, *, pad=0):
    """What processors see of the rows above; what stands behind a row's end is `pad`."""
    contexts_BT, lengths_B = pad_right(CONTEXTS, WIDTH, pad), np.array([len(c) for c in CONTEXTS], np.int32)
    return ReplyState(
        tokens_MR=pad_right(REPLIES, SLOTS, pad),
        counts_M=np.array([len(r) for r in REPLIES], np.int32),
        limits_M=np.array(LIMITS, np.int32),
        history={s: history_of(s, contexts_BT, lengths_B, WIDTH, EOS) for s in scopes_of(sampling)},
        lists=token_lists(sampling, 4, CONFIG),
        eos=EOS,
    )


@jax.jit
def run(logits_MV, state, sampling):
    return process(logits_MV, state, sampling=sampling)


def processed(settings, **how):
    sampling = Sampling(**{"min_new_tokens": None, **settings})
    return np.asarray(run(LOGITS, state_of(sampling, **how), by_row(sampling, 4)))


WORDS = {"logit_bias": {3: 4.0, 5: -2.5, (4, 5): 1.5, (9, 5, 4): 7.0, (3, 4, 3, 4, 6): -3.0}}
BAD = {"bad_words": [12, (4, 5), (9, 5, 7), (5, 8), (1, 2, 3, 4, 5, 6, 7)]}
ALL = {
    **WORDS, **BAD, "repetition_penalty": 1.4, "presence_penalty": 0.7, "frequency_penalty": 0.3, "penalty_scope": "own",
    "no_repeat_ngram": 2, "ngram_scope": "context", "min_new_tokens": 1, "forced_tokens": [8], "forced_end": True,
    "decay_start": 1, "decay_factor": 1.2, "suppress_tokens": [20, 21], "begin_suppress_tokens": [22],
    "dry_multiplier": 0.8, "dry_base": 2.0, "dry_allowed_length": 1, "dry_range": 9, "dry_breakers": [9],
}  # fmt: skip
DRY = {"dry_multiplier": 1.0, "dry_base": 2.0, "dry_allowed_length": 1, "dry_range": 99}
CASES = [
    WORDS, BAD, ALL,
    *[{name: 1.7, "penalty_scope": scope} for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")
      for scope in ("reply", "own", "context")],
    *[{"no_repeat_ngram": size, "ngram_scope": scope} for size in (1, 2, 3, 4, 9) for scope in ("reply", "own", "context")],
    *[{**DRY, "dry_scope": scope, **more} for scope in ("reply", "own", "context")
      for more in ({}, {"dry_allowed_length": 2}, {"dry_range": 6}, {"dry_range": 1, "dry_multiplier": 0.0})],
    {"dry_multiplier": 2.0, "dry_breakers": [9, 6]}, {"dry_multiplier": 2.0, "repetition_penalty": 1.7},
    {"repetition_penalty": 0.6}, {"presence_penalty": -2.0, "frequency_penalty": -0.5},
    {"min_new_tokens": 3}, {"forced_tokens": [8, 2, 9]}, {"forced_end": True},
    {"decay_start": 0, "decay_factor": 1.5}, {"decay_start": 3, "decay_factor": 0.5},
    {"suppress_tokens": [1, 5, 60, EOS]}, {"begin_suppress_tokens": [1, 5, 60]},
]  # fmt: skip


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_a_processor_is_its_reference(settings):
    expected_MV = [by_hand(*row, settings) for row in zip(LOGITS, CONTEXTS, REPLIES, LIMITS, strict=True)]
    got_MV = processed(settings)
    np.testing.assert_allclose(got_MV[:, :VOCAB], expected_MV, rtol=TOLERANCE, atol=TOLERANCE)
    if settings.get("no_repeat_ngram") not in (4, 9) and settings.get("dry_range") != 1:  # which nobody has said
        assert (got_MV != LOGITS).any()
    np.testing.assert_array_equal(processed(settings, pad=5), got_MV)
    np.testing.assert_array_equal(processed(settings, pad=-7), got_MV)


def test_a_worked_example_of_the_block():
    """[4 5 6 4 5] was said in the bot's own turn, and the reply is [4 5]: 6 would say "4 5 6" again."""
    assert np.flatnonzero(np.isinf(processed({"no_repeat_ngram": 3, "ngram_scope": "own"})[0])).tolist() == [6]
    assert np.flatnonzero(np.isinf(processed({"no_repeat_ngram": 2, "ngram_scope": "own"})[0])).tolist() == [6]
    assert not np.isinf(processed({"no_repeat_ngram": 3})[0]).any()
    assert np.flatnonzero(np.isinf(processed({"no_repeat_ngram": 3})[2])).tolist() == [4]  # 9 5 4 5 9 5
    # The reply's first token, where its context's end counts: 5 EOS was said, and what follows 3 EOS is 4.
    assert np.isinf(processed({"no_repeat_ngram": 2, "ngram_scope": "context"})[1]).sum() == 0


def test_worked_examples_of_dry():
    """Row 2: after "9 5" came 4, so that carries on two tokens; after "5" came 9 and 7, one. EOS is never lowered."""
    lowered_MV = LOGITS - processed(DRY)
    lowered = [{int(v): round(float(row_V[v]), 4) for v in np.flatnonzero(row_V)} for row_V in lowered_MV]
    assert lowered == [{6: 2.0}, {}, {4: 2.0, 7: 1.0, 9: 1.0}, {3: 2.0, 5: 1.0}]


def test_the_longest_repeat_of_a_token_counts():
    """The last row is llama.cpp's example, a b c c b c y a b c. In the others 3 follows "1 2", n 2, and "5 2", n 1."""
    replies = [[1, 2, 3, 9, 5, 2, 3, 8, 1, 2], [5, 2, 3, 8, 1, 2, 3, 9, 1, 2], [1, 2, 3, 3, 2, 3, 7, 1, 2, 3]]
    sampling = Sampling(dry_multiplier=1.0, dry_base=2.0, dry_allowed_length=1, dry_scope="reply")
    state = state_of(sampling)
    state = ReplyState(np.array(replies), np.full(3, 10), np.full(3, 20), {}, state.lists, EOS)
    lowered_MV = -np.asarray(jax.jit(lower_repeats)(np.zeros((3, VOCAB)), state, by_row(sampling, 3)))
    lowered = [{int(v): float(row_V[v]) for v in np.flatnonzero(row_V)} for row_V in lowered_MV]
    assert lowered == [{3: 2.0}, {3: 2.0}, {3: 4.0, 7: 2.0, 2: 1.0}]


def test_texts_are_the_ids_of_a_tokenizer():
    tokenizer = fakes.tiny_tokenizer()
    given = {
        "bad_words": ["rain", 3],
        "logit_bias": {"the": -2.0, 5: 1.0},
        "dry_multiplier": 1,
        "dry_breakers": ["th", 4],
    }
    got = texts_as_ids(Sampling(**given), tokenizer)
    assert got.bad_words == (*[tuple(tokenizer.encode(word)) for word in ("rain", " rain")], (3,))
    assert got.logit_bias == (*[(tuple(tokenizer.encode(word)), -2.0) for word in ("the", " the")], ((5,), 1.0))
    held = [i for i in range(tokenizer.vocab_size) if "th" in tokenizer.decode([i])]
    assert len(held) > 2
    assert got.dry_breakers == (*held, 4)
    assert texts_as_ids(got, tokenizer) is got
    with pytest.raises(
        ValueError, match=r"^dry_breakers: no token holds 'in the rain'; give a shorter text, or a token id$"
    ):
        texts_as_ids(Sampling(dry_multiplier=1, dry_breakers=["in the rain"]), tokenizer)


def test_own_turns_are_every_second_one_from_the_end():
    lengths_B = np.array([len(c) for c in CONTEXTS], np.int32)
    own_BS = history_of("own", pad_right(CONTEXTS, WIDTH, EOS), lengths_B, WIDTH, EOS)
    for row, expected in enumerate([[4, 5, 6, 4, 5], [], [9, 9, 4, 5, 7], [4, 5, 6]]):
        assert [token for token in own_BS[row].tolist() if token != NO_TOKEN] == expected
    traced_BS = jax.jit(lambda *x: history_of("own", *x, WIDTH, EOS))(pad_right(CONTEXTS, WIDTH, EOS), lengths_B)
    np.testing.assert_array_equal(traced_BS, own_BS)


def test_numbers_are_each_row_s_own():
    each = {"no_repeat_ngram": np.array([3, 1, 2, 4]), "presence_penalty": np.array([0.5, 1.0, -1.0, 2.0])}
    got_MV = processed(each)
    for row in range(4):
        alone_MV = processed({name: float(values[row]) for name, values in each.items()})
        np.testing.assert_array_equal(got_MV[row], alone_MV[row])


def test_all_together_are_one_program_and_other_numbers_and_lists_none():
    processed(ALL)
    other = {
        **ALL, "logit_bias": {1: -1.0, (2, 3, 4, 1): 2.0}, "bad_words": [(3, 3)], "suppress_tokens": [EOS, 4, 6],
        "repetition_penalty": 2, "no_repeat_ngram": 4, "min_new_tokens": 3, "decay_start": 4, "forced_tokens": [1, 2, 3],
    }  # fmt: skip
    other["logit_bias"] |= dict.fromkeys(range(30, 36), 0.1) | {(1, 2, 3, 4, 5): 1.0}
    other["bad_words"] = [*other["bad_words"], 9, 10, 11, 13, (1, 2, 3, 4, 5, 6, 7, 8)]
    with count_compilations() as programs:
        processed(other)
    assert programs == []


def test_what_is_off_is_absent():
    sampling = Sampling(temperature=None, min_new_tokens=None)
    program = jax.make_jaxpr(lambda x_MV, state: process(x_MV, state, sampling=by_row(sampling, 4)))
    assert program(LOGITS, state_of(sampling)).eqns == []


# Within a reply of the model.


def reply(sampling, rows=slice(None), **more):
    call = generate_candidates if more else generate
    how = {"sampling": sampling, "max_new_tokens": 12, "keys": KEYS[rows], **more}
    return jax.device_get(call(PARAMS, CONFIG, TOKENS[rows], LENGTHS[rows], **how))


def texts(out):
    return [tokens[:length].tolist() for tokens, length in zip(out.tokens, out.lengths, strict=True)]


def test_a_reply_says_nothing_twice():
    """Greedy replies of a tiny model go in circles; with a block of 2 none says two tokens in a row again."""
    free, blocked = reply(Sampling(0, min_new_tokens=12)), reply(Sampling(0, min_new_tokens=12, no_repeat_ngram=2))

    def repeats(text):
        pairs = list(itertools.pairwise(text))
        return len(pairs) - len(set(pairs))

    assert any(repeats(text) for text in texts(free))
    assert not any(repeats(text) for text in texts(blocked))
    whole = reply(Sampling(0, min_new_tokens=12, no_repeat_ngram=2, ngram_scope="context"))
    for prompt, text in zip(prompts(), texts(whole), strict=True):
        before = set(itertools.pairwise(prompt))
        new = list(zip([prompt[-1], *text], text, strict=False))
        assert len(set(new)) == len(new)
        assert not before & set(new)


def test_a_row_alone_is_the_row_in_a_batch_and_candidates_share_no_history():
    sampling = Sampling(no_repeat_ngram=1, frequency_penalty=0.5, bad_words=[3, (4, 5)], penalty_scope="context")
    batch = reply(sampling, candidates=3)
    for row in range(4):
        alone = reply(sampling, rows=slice(row, row + 1))
        assert alone.tokens[0].tolist() == batch.tokens[row, 0].tolist()
        for n in range(3):
            text = batch.tokens[row, n, : batch.lengths[row, n]].tolist()
            assert len(set(text)) == len(text)
            assert 3 not in text
    assert len(set(map(tuple, batch.tokens.reshape(12, -1).tolist()))) == 12


def test_forced_tokens_and_a_forced_end():
    out = reply(Sampling(forced_tokens=[7, 8, 9], forced_end=True, min_new_tokens=50))
    assert [text[:3] for text in texts(out)] == [[7, 8, 9]] * 4
    assert out.lengths.tolist() == [12] * 4
    assert out.finished.all()
    assert all(text[-1] == EOS and EOS not in text[:-1] for text in texts(out))


# Functions of the caller's.


def only_even(logits_MV, state):
    """After an even token an odd one, and the other way round; nothing on the first."""
    last_M = jnp.take_along_axis(state.tokens_MR, jnp.maximum(state.counts_M - 1, 0)[:, None], axis=1)
    same_MV = (jnp.arange(logits_MV.shape[1])[None] - last_M) % 2 == 0
    return jnp.where(same_MV & (state.counts_M > 0)[:, None], -jnp.inf, logits_MV)


def lower_context(weight, logits_MV, state):
    context_MT = state.history["context"]
    seen_MV = (context_MT[:, :, None] == jnp.arange(logits_MV.shape[1])[None, None]).any(axis=1)
    return jnp.where(seen_MV, logits_MV - weight, logits_MV)


def test_a_function_runs_in_the_loop():
    for text in texts(reply(Sampling(processors=[only_even]))):
        assert all((one - other) % 2 for one, other in itertools.pairwise(text))
        assert len(text) > 1 or text == [EOS]
    with count_compilations() as programs:
        reply(Sampling(temperature=0.4, processors=[only_even]))
    assert programs == []


def test_a_function_with_a_number_is_one_program():
    def with_weight(weight):
        return reply(Sampling(0, processors=[jax.tree_util.Partial(lower_context, jnp.float32(weight))]))

    plain, heavy = texts(reply(GREEDY)), texts(with_weight(1e9))
    with count_compilations() as programs:
        light = texts(with_weight(0.0))
    assert programs == []
    assert light == plain
    assert heavy != plain
    assert not any(set(text) & set(prompt) - {EOS} for text, prompt in zip(heavy, prompts(), strict=True))


# What cannot be.


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"no_repeat_ngram": 0}, "no_repeat_ngram is 0; it must be a whole number from 1"),
        ({"no_repeat_ngram": 2.5}, "no_repeat_ngram is 2.5"),
        ({"logit_bias": {VOCAB: 1.0}}, f"logit_bias: token id {VOCAB} is outside the vocabulary of {VOCAB}"),
        ({"logit_bias": {(1, VOCAB + 3): 1.0}}, f"logit_bias: token id {VOCAB + 3} is outside"),
        ({"bad_words": [(2, 99)]}, "bad_words: token id 99 is outside the vocabulary"),
        ({"suppress_tokens": [1, 61]}, "suppress_tokens: token id 61 is outside"),
        ({"forced_tokens": [400]}, "forced_tokens: token id 400 is outside"),
        ({"suppress_tokens": [-1]}, "a token of suppress_tokens is -1"),
        ({"suppress_tokens": [[1]]}, "a token of suppress_tokens is [1]"),
        ({"suppress_tokens": 5}, "suppress_tokens is 5; give a list of token ids"),
        ({"suppress_tokens": "word"}, "suppress_tokens is 'word'; give a list of token ids"),
        ({"bad_words": [[]]}, "bad_words holds a list of no tokens"),
        ({"bad_words": "damn"}, "bad_words is 'damn'; give a list of token ids, of lists of them and of texts"),
        (
            {"bad_words": ["damn"]},
            "bad_words holds a text, and there is no tokenizer here; ask a Bot, or give token ids",
        ),
        ({"bad_words": [""]}, "bad_words holds a text of nothing"),
        ({"logit_bias": {"damn": -2.0}}, "logit_bias holds a text, and there is no tokenizer here"),
        ({"dry_multiplier": 1, "dry_breakers": ["."]}, "dry_breakers holds a text, and there is no tokenizer here"),
        (
            {"dry_multiplier": 1, "dry_breakers": [[1, 2]]},
            "dry_breakers is [[1, 2]]; give a list of token ids and of texts",
        ),
        ({"dry_multiplier": 1, "dry_breakers": [61]}, "dry_breakers: token id 61 is outside the vocabulary"),
        ({"dry_multiplier": -1}, "dry_multiplier is -1; it must be a number from 0"),
        ({"dry_multiplier": 1, "dry_base": 0.5}, "dry_base is 0.5; it must be a number from 1"),
        ({"dry_base": 2}, "dry_base goes with dry_multiplier; give both, or leave dry_base out"),
        ({"dry_multiplier": 1, "dry_allowed_length": 0}, "dry_allowed_length is 0; it must be a whole number from 1"),
        ({"dry_multiplier": 1, "dry_range": 0}, "dry_range is 0; it must be a whole number from 1"),
        ({"xtc_threshold": 0.2}, "xtc_threshold goes with xtc_probability"),
        ({"xtc_probability": 1.5}, "xtc_probability is 1.5; it must be a number from 0 to 1"),
        ({"xtc_probability": 1, "xtc_threshold": 0}, "xtc_threshold is 0; it must be a number over 0"),
        ({"bad_words": [[1, [2]]]}, "a token of bad_words is [2]"),
        ({"logit_bias": [1, 2]}, "logit_bias is [1, 2]; give a number for each token id"),
        ({"logit_bias": {4: float("nan")}}, "a number of logit_bias is nan"),
        ({"logit_bias": {4: float("inf")}}, "a number of logit_bias is inf"),
        ({"penalty_scope": "all"}, "penalty_scope is 'all'; it must be one of reply, own, context"),
        ({"decay_start": 3}, "decay_start and decay_factor go together"),
        ({"decay_start": -1, "decay_factor": 1.1}, "decay_start is -1"),
        ({"typical_p": 0}, "typical_p is 0; it must be a number over 0"),
        ({"epsilon_cutoff": 1.0}, "epsilon_cutoff is 1.0"),
        ({"top_n_sigma": 0}, "top_n_sigma is 0"),
        ({"processors": only_even}, "give a list of functions of (logits_MV, state)"),
        ({"processors": [3]}, "processors is [3]"),
    ],
    ids=lambda given: re.sub(" at 0x[0-9a-f]+", "", str(given)),  # one name in every process
)
def test_a_mistake_is_one_clear_line(settings, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        assemble(CONFIG, TOKENS, LENGTHS, sampling=Sampling(**settings), max_new_tokens=3, keys=KEYS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [lambda x, _: x[:, :5], lambda x, _: x.astype(jnp.bfloat16), lambda x, _: None])
def test_a_function_that_gives_no_logits_is_named(wrong):
    wrong.__name__ = "my_function"
    with pytest.raises(ValueError, match=r"my_function of processors gave .*it must give logits, float32 \(4, 128\)"):
        reply(Sampling(0, processors=[wrong]))
