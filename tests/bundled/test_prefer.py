"""The last stage: marked replies become pairs, pairs become gains, and what the corpus says is kept."""

import collections
import gzip
import itertools
import json
import random
import re
import types

import jax
import numpy as np
import pytest
from fakes import tiny_bot

from dialogpt_jax.bundled import prefer
from dialogpt_jax.bundled.marked import Marked, MarksError, read_marked
from dialogpt_jax.bundled.prompts import MARKS, read_prompts
from dialogpt_jax.chat.loading import load
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding.score_batches import score_replies
from dialogpt_jax.model import forward

MARKED = [
    Marked(["Hello"], {"sensible": ["I am fine"], "passable": ["What is this"], "nonsense": ["this is", "am"]}),
    Marked(["How are you", "fine", "What"], {"sensible": [], "passable": ["you are"], "nonsense": ["Hello"]}),
]
CORPUS = [[["Hello", "How are you"]], [["What is this", "I am fine", "you are"]]]  # two sources


@pytest.fixture(scope="module")
def bot():
    return tiny_bot()


def test_a_pair_is_two_marks_of_one_context_the_better_first():
    found = prefer.lessons(MARKED, random.Random(0))
    marks = {(turns[0], text): mark for turns, replies in MARKED for mark, texts in replies.items() for text in texts}
    pairs = collections.Counter((marks[turns[0], better], marks[turns[0], worse]) for turns, better, worse, _ in found)
    assert pairs == {("sensible", "nonsense"): 2, ("passable", "nonsense"): 3, ("sensible", "passable"): 1}
    assert all(sensible == (marks[turns[0], better] == "sensible") for turns, better, _, sensible in found)


def test_only_a_reply_and_its_end_are_learned(bot):
    (tokens_BT, weights_BT), sensible_P = next(prefer.batches(bot, MARKED, random.Random(0)))
    assert tokens_BT.shape == (64, 32)
    assert set(sensible_P.tolist()) == {0.0, 1.0}
    said = {bot.tokenizer.decode(row[weight > 0][:-1]) for row, weight in zip(tokens_BT, weights_BT, strict=True)}
    assert said == {text for _, replies in MARKED for texts in replies.values() for text in texts}
    assert {row[weight > 0][-1] for row, weight in zip(tokens_BT, weights_BT, strict=True)} == {bot.config.eos_token_id}
    read = prefer.corpus_rows(bot, CORPUS, random.Random(0))
    for row, weight in zip(*read, strict=True):
        first = int(np.flatnonzero(row == bot.config.eos_token_id)[0])
        assert not weight[: first + 1].any()
        assert weight[first + 1] == 1
    begin = [bot.tokenizer.decode(row[: int(np.flatnonzero(row == bot.config.eos_token_id)[0])]) for row in read[0]]
    assert begin == ["Hello", "What is this"] * 6  # a source after the other


@pytest.mark.slow
def test_the_loss_is_that_of_the_paper_and_what_is_kept_and_read(bot):
    """Again, from probabilities, in NumPy; the model has moved away from the first, or half of it were 0."""
    pairs, sensible_P = next(prefer.batches(bot, MARKED, random.Random(0)))
    corpus = prefer.corpus_rows(bot, CORPUS, random.Random(0))
    moved = jax.tree.map(lambda x: x * 1.1, bot.params)

    def log_probs(params, tokens_BT):
        logits_BTV = np.asarray(forward(params, bot.config, tokens_BT), np.float64)[:, :-1]
        return logits_BTV - np.log(np.exp(logits_BTV).sum(axis=-1, keepdims=True))

    def came(params, rows):
        return np.take_along_axis(log_probs(params, rows.tokens_BT), rows.tokens_BT[:, 1:, None], axis=-1)[..., 0]

    learned_BT = pairs.weights_BT[:, 1:]
    gains_B = ((came(moved, pairs) - came(bot.params, pairs)) * learned_BT).sum(axis=1)
    preferred = -np.log(1 / (1 + np.exp(-prefer.BETA * (gains_B[:32] - gains_B[32:])))).mean()
    sensible_PT = learned_BT[:32] * sensible_P[:, None]
    likelihood = -(came(moved, pairs)[:32] * sensible_PT).sum() / sensible_PT.sum()
    weights_RT = corpus.weights_BT[:, 1:]
    before_RTV, now_RTV = log_probs(bot.params, corpus.tokens_BT), log_probs(moved, corpus.tokens_BT)
    kept = ((np.exp(before_RTV) * (before_RTV - now_RTV)).sum(axis=-1) * weights_RT).sum() / weights_RT.sum()
    read = -(came(moved, corpus) * weights_RT).sum() / weights_RT.sum()
    assert min(abs(preferred - np.log(2)), kept) > 0.01  # or a part that is left out would not show
    found = prefer.preference_loss(moved, bot.config, bot.params, pairs, sensible_P, corpus)
    whole = preferred + prefer.LIKELIHOOD * likelihood + prefer.KEPT * kept + prefer.READ * read
    assert float(found) == pytest.approx(whole, rel=1e-4)


@pytest.mark.slow
def test_the_better_replies_gain_on_the_worse_and_the_same_seed_repeats_them(bot, monkeypatch):
    monkeypatch.setattr(prefer, "RATE", 1e-2)
    monkeypatch.setattr(prefer, "LENGTHS", {32: 4})
    one, again = (prefer.learn_preferences(bot, MARKED, CORPUS, steps=3, seed=4) for _ in range(2))
    for a, b in zip(*map(jax.tree.leaves, (one, again)), strict=True):
        np.testing.assert_array_equal(a, b)

    def margins(params):
        found = []
        for turns, replies in MARKED:
            contexts = [bot.encode(turns, max_new_tokens=1)]
            totals = {
                mark: [
                    float(score_replies(params, bot.config, contexts, [[[*ids, bot.config.eos_token_id]]])[0][0].sum())
                    for ids in bot.tokenizer.encode_batch(texts)
                ]
                for mark, texts in replies.items()
                if texts
            }
            found += [
                a - b for x, y in itertools.combinations(MARKS, 2) for a in totals.get(x, []) for b in totals.get(y, [])
            ]
        return np.array(found)

    assert (margins(one) > margins(bot.params)).all()


@pytest.mark.slow
def test_the_command_writes_a_model_that_loads(bot, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(prefer, "LENGTHS", {32: 4})
    monkeypatch.setattr(prefer.learn_preferences, "__kwdefaults__", {"steps": 2, "seed": 0})
    assert prefer.main(command(bot, tmp_path)) == 0
    assert "step 2 of 2, loss" in capsys.readouterr().out
    found = load(tmp_path / "new")
    assert found.config == bot.config
    moved = [
        not np.array_equal(np.asarray(a, np.float16), np.asarray(b, np.float16))
        for a, b in zip(*map(jax.tree.leaves, (found.params, bot.params)), strict=True)
    ]
    assert any(moved)


def command(bot, folder):
    """The words of a command whose files are all there."""
    bot.save(folder / "old")
    lines = [json.dumps({"turns": turns, **replies}) for turns, replies in MARKED]
    (folder / "marked.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    for name, dialogues in zip("ab", CORPUS, strict=True):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, dialogues)))
    words = f"--init {folder}/old --export {folder}/new --marked {folder}/marked.gz --dialogues {folder}/a.jsonl"
    return [*words.split(), f"{folder}/b.jsonl"]


LINE = {"turns": ["Hello"], "sensible": ["fine"], "passable": [], "nonsense": []}


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (None, r"marked\.gz: No such file or directory"),
        (b"no gzip", r"marked\.gz: is no whole gzip file of UTF-8 \(Not a gzipped file"),
        (gzip.compress(json.dumps(LINE).encode())[:-9], r"marked\.gz: is no whole gzip file"),
        (gzip.compress(b"{"), r"marked\.gz, line 1: is no JSON"),
        (gzip.compress(json.dumps({**LINE, "turns": []}).encode()), r"line 1: has no turn"),
        (gzip.compress(json.dumps({**LINE, "nonsense": "fine"}).encode()), r'line 1: "nonsense" is no list of texts'),
        (gzip.compress(json.dumps(LINE).encode()), r"of 0 pairs of 1 context none fits in 64 tokens"),
    ],
    ids=["none", "other", "cut", "json", "turns", "list", "marks"],
)
def test_what_is_wrong_with_the_marks_is_one_line_and_nothing_is_written(bot, tmp_path, held, said):
    words = command(bot, tmp_path)
    (tmp_path / "marked.gz").unlink() if held is None else (tmp_path / "marked.gz").write_bytes(held)
    with pytest.raises(SystemExit, match=said) as ended:
        prefer.main(words)
    assert "\n" not in str(ended.value)
    assert not (tmp_path / "new").exists()


def test_a_model_whose_tokens_do_not_fit_is_told_before_the_first_step(bot):
    long = [Marked(["Hello"], {"sensible": ["zq" * 40], "passable": [], "nonsense": ["fine"]})]
    with pytest.raises(MarksError, match="of 1 pair of 1 context none fits in 64 tokens of this model's tokenizer"):
        prefer.learn_preferences(bot, long, CORPUS)
    with pytest.raises(ValueError, match="has 48 positions; rows of 64 tokens"):
        prefer.learn_preferences(types.SimpleNamespace(config=GPT2Config(n_positions=48)), MARKED, CORPUS)


def test_no_marked_context_is_near_to_what_a_release_is_judged_by():
    def words(text):
        return set(re.findall(r"[a-z']+", text.lower()))

    judged = [words(text) for turns in (*read_prompts().prompts, *read_prompts().chats) for text in turns]
    near = {
        turn
        for turns, _ in read_marked()
        for turn in turns
        for other in judged
        if len(words(turn) & other) > 0.5 * len(words(turn) | other)
    }
    assert near == set()


def test_each_marked_context_stands_once_and_says_each_reply_once():
    marked = read_marked()
    assert (len(marked), sum(len(texts) for _, replies in marked for texts in replies.values())) == (4877, 48590)
    assert len({json.dumps(turns) for turns, _ in marked}) == len(marked)
    for turns, replies in marked:
        texts = [text for mark in MARKS for text in replies[mark]]
        assert len(set(texts)) == len(texts) > 0, turns
        assert not re.search(r"https?:|www\.|\S@\S|\d{6}", " ".join([*turns, *texts]))
