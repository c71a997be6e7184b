"""Several hypotheses, one order: each rule by hand, guards before scores, and a reply that does not depend on its batch."""

import json
import math
import warnings

import jax
import numpy as np
import pytest
from fakes import tiny_bot

import dialogpt_jax as dg
from dialogpt_jax.ranking import propose
from dialogpt_jax.ranking.backward import bundled_reverse
from dialogpt_jax.ranking.choose import Evidence, choose, scores_by
from dialogpt_jax.ranking.guards import COPIES, CUT, DUPLICATE, EMPTY, NOT_FINITE, REPEATS, flags_of, words_of
from dialogpt_jax.ranking.mmi import backward_scores, information, source_of

ATOL = 2e-4  # of a sum of some thirty log-probabilities in float32, computed in batches of other shapes
DIALOGUES = [
    ["Hello, how are you today?"],
    ["Hi", "I am fine, thanks.", "And you?"],
    ["€" * 24, "no", "Do you like the rain?"],
]
HOW = {"max_new_tokens": 12, "seed": 2}


@pytest.fixture(scope="module")
def bot():
    forward, backward = tiny_bot(end=4.0), tiny_bot(1, end=4.0)
    return dg.Bot(forward.params, forward.config, forward.tokenizer, backward)


@pytest.fixture(scope="module")
def ranking(bot):
    return bot.rank(DIALOGUES[1], dg.Rank("mmi", hypotheses=6, source="all", backward_weight=1), **HOW)


def by_hand(model, ids, start):
    """log P of the tokens from `start` on, of one row that is as wide as it is long."""
    logits_TV = np.asarray(jax.nn.log_softmax(dg.forward(model.params, model.config, np.array([ids, ids]))[0]))
    return sum(float(logits_TV[t - 1, ids[t]]) for t in range(start, len(ids)))


def test_the_backward_score_is_of_the_source_after_the_hypothesis(bot, ranking):
    """The source's turns stand in reversed order, each with its EOS: as the backward model was trained."""
    eos, tokenizer = bot.config.eos_token_id, bot.tokenizer
    source = [i for turn in reversed(DIALOGUES[1]) for i in [*tokenizer.encode(turn), eos]]
    assert len(ranking) == 6
    assert {h.finished for h in ranking} == {True, False}
    for h in ranking:
        said = [*h.tokens.tolist(), *([] if h.finished else [eos])]
        assert h.backward == pytest.approx(by_hand(bot.reverse, [*said, *source], len(said)), abs=ATOL)
        assert h.score == h.backward
        alone = by_hand(bot, [eos, *h.tokens.tolist()], 1)
        context = bot.encode(DIALOGUES[1], max_new_tokens=12)
        within = by_hand(bot, [*context, *h.tokens.tolist()], len(context))
        assert h.logprob == pytest.approx(within, abs=ATOL)
        assert h.pmi == pytest.approx(within - alone, abs=ATOL)


def test_the_last_turn_is_the_source_unless_all_are(bot):
    eos, encode = bot.config.eos_token_id, bot.tokenizer.encode
    turns = ["Hi", "no", "And you?"]
    assert source_of(bot, turns, "last", room=90) == [*encode("And you?"), eos]
    everything = [*encode("And you?"), eos, *encode("no"), eos, *encode("Hi"), eos]
    assert source_of(bot, turns, "all", room=90) == everything
    assert source_of(bot, turns, "all", room=len(everything) - 1) == everything[: -len(encode("Hi")) - 1]
    assert source_of(bot, turns, "last", room=2) == [encode("And you?")[0], eos]


def test_scores_do_not_depend_on_their_batch(bot):
    hypotheses = [[5, 9, bot.config.eos_token_id], [7] * 11, [8, 3]]
    together = backward_scores(bot.reverse, hypotheses, DIALOGUES, "all")
    known = information(bot, hypotheses, [0.0, 1.0, 2.0])
    for i in range(3):
        assert backward_scores(bot.reverse, [hypotheses[i]], [DIALOGUES[i]], "all") == pytest.approx(
            [together[i]], abs=ATOL
        )
        assert information(bot, [hypotheses[i]], [float(i)]) == pytest.approx([known[i]], abs=ATOL)


def test_one_rule_gives_one_reply_however_it_is_asked(bot):
    rank = dg.Rank("pmi", hypotheses=6)
    rankings = [bot.rank(turns, rank, **HOW) for turns in DIALOGUES[:2]]
    assert [bot.reply(turns, rank=rank, **HOW) for turns in DIALOGUES[:2]] == [r[0].text for r in rankings]
    together = bot.rankings(DIALOGUES[:2], rank, **HOW)
    assert together[0][0].text == rankings[0][0].text  # row 0 has the key of a call of its own
    proposed = bot.candidates(DIALOGUES[0], n=6, sampling=dg.PAPER, **HOW)
    assert sorted(h.text for h in rankings[0]) == sorted(c.text for c in proposed)


def test_the_rules_by_hand():
    evidence = Evidence([-8.0, -12.0], [-2.0, -1.0], [-30.0, -20.0], [5.0, 3.0], [0.3, 0.2], [0.1, 0.9])
    assert scores_by(dg.Rank("mmi", backward_weight=1), evidence) == [-30.0, -20.0]
    assert scores_by(dg.Rank("mmi", backward_weight=0.25), evidence) == [-13.5, -14.0]
    assert scores_by(dg.Rank("mmi", backward_weight=0), evidence) == [-8.0, -12.0]
    means = evidence._replace(backward_mean=[-3.0, -2.0])
    assert scores_by(dg.Rank("mmi", backward_weight=0.25, mix="mean"), means) == [-2.25, -1.25]
    assert scores_by(dg.Rank("pmi"), evidence) == [5.0, 3.0]
    assert scores_by(dg.Rank("rpt"), evidence) == [0.3, 0.2]
    assert scores_by(dg.Rank("likelihood"), evidence) == [-2.0, -1.0]
    assert scores_by(dg.Rank(lambda turns, texts: [0] * len(texts)), evidence) == [0.1, 0.9]


def test_a_mix_of_means_is_a_token_of_each_side(bot, ranking):
    """Half of log P(source | reply) a token of the source, EOS included, and half of log P(reply | context) a token."""
    source = len(bot.tokenizer.encode(DIALOGUES[1][-1])) + 1
    rank = dg.Rank("mmi", hypotheses=6, backward_weight=0.5, mix="mean")
    last = bot.rank(DIALOGUES[1], rank, **HOW)
    for h in last:
        assert h.score == pytest.approx(0.5 * h.backward / source + 0.5 * h.logprob / len(h.tokens), abs=ATOL)
    kept = bot.order(DIALOGUES[1], last, rank)
    assert [h.text for h in kept] == [h.text for h in last]
    sums = bot.rank(DIALOGUES[1], dg.Rank("mmi", hypotheses=6, backward_weight=0.5), **HOW)
    assert [h.text for h in sums] != [h.text for h in last]
    assert {h.text for h in sums} == {h.text for h in last}


@pytest.mark.parametrize(
    ("weight", "why"), [(0.25, "less likely to be said: -9.0"), (0.75, "harder to guess from it: -22.0")]
)
def test_what_weighs_more_is_the_reason(weight, why):
    """The second lost 2 backward and 1 forward."""
    evidence = Evidence([-8.0, -9.0], [-2.0, -2.0], [-20.0, -22.0])
    found = choose(dg.Rank("mmi", backward_weight=weight), evidence, [(), ()], np.random.default_rng(0))
    assert [verdict.number for verdict in found] == [0, 1]
    assert why in found[1].why


def order_of(scores, flags=None, rank="pmi", uniform_seed=0, **numbers):
    evidence = Evidence([0.0] * len(scores), [0.0] * len(scores), pmi=scores)
    flags = [()] * len(scores) if flags is None else flags
    found = choose(dg.Rank(rank, **numbers), evidence, flags, np.random.default_rng(uniform_seed))
    return [verdict.number for verdict in found], found


def test_a_flag_counts_before_any_score():
    order, found = order_of([9.0, 1.0, 8.0, 2.0, 7.0], [(COPIES,), (), (DUPLICATE,), (), (CUT,)])
    assert order == [3, 1, 4, 0, 2]
    assert found[0].why.startswith("given for a score of 2.00, the next has 1.00")
    assert [verdict.why for verdict in found[2:]] == [
        "out: cut",
        "out: copies what was said",
        "says what another one says",
    ]
    assert order_of([9.0, 1.0], [(COPIES,), ()])[1][0].why == "given for a score of 1.00"
    order, found = order_of([1.0, 2.0], [(EMPTY,), (REPEATS, CUT)])
    assert order == [1, 0]
    assert found[0].why == "given, though it is flagged (repeats itself, cut): so is every other one"


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_comes_last(broken):
    order, found = order_of([broken, 1.0, 2.0], [(), (), (COPIES,)])
    assert order == [1, 2, 0]
    assert found[2].flags == (NOT_FINITE,)


def test_a_tempered_choice_follows_the_softmax_of_the_scores():
    scores, flags = [1.0, 0.0, 5.0], [(), (), (COPIES,)]
    draws = [order_of(scores, flags, temperature=0.5, uniform_seed=i)[0] for i in range(400)]
    share = np.mean([order[0] == 0 for order in draws])
    assert abs(share - 1 / (1 + math.exp(-2))) < 0.06  # a deviation of 400 draws is 0.016
    assert {order[0] for order in draws} == {0, 1}  # what is flagged is not drawn
    assert all(sorted(order) == [0, 1, 2] for order in draws)


def test_the_guards():
    turns = ["What a day", "I like the rain in the evening"]

    def flags(*texts, finished=True):
        return flags_of(texts, turns, finished=[finished] * len(texts))

    assert flags("Yes.", "", "  ") == [(), (EMPTY,), (EMPTY,)]
    assert flags("No!", "no", "no way") == [(), (DUPLICATE,), ()]
    assert flags(":)", "?") == [(), ()]
    assert flags("A cat and a cat and a cat") == [(REPEATS,)]
    assert flags("no no no no", "ha ha ha") == [(REPEATS,), ()]
    assert flags("I think so. Well, I think so. Well.") == [(REPEATS,)]
    assert flags("what a day!", "I LIKE the rain in the evening, too.") == [(COPIES,), (COPIES,)]
    assert flags("You like the rain") == [()]
    assert flags("Yes", finished=False) == [(CUT,)]
    assert words_of("Don't you?") == ["don't", "you"]


def test_a_known_failure_is_guarded(bot, monkeypatch):
    """A backward model's best score goes to a copy of the source: it is behind every other reply, and says so."""
    source, others = DIALOGUES[0][0], ["Fine, thanks.", "no no no no", "Fine, thanks"]
    encode, eos = bot.tokenizer.encode, bot.config.eos_token_id

    def proposed(text):
        ids = np.array([*encode(text), eos], np.int32)
        return propose.Candidate(text, ids, np.full(len(ids), -1.0, np.float32), -float(len(ids)), True)

    monkeypatch.setattr(propose, "backward_scores", lambda model, ids, dialogues, source: [-1.0, -9.0, -2.0, -9.0])
    own = [proposed(text) for text in [source, *others]]
    draws = [np.random.default_rng(0)]
    pure = dg.Rank("mmi", backward_weight=1)
    [ranking] = propose.order(bot, bot.reverse, None, None, None, [DIALOGUES[0]], [own], pure, draws)
    assert [h.text for h in ranking] == ["Fine, thanks.", source, "no no no no", "Fine, thanks"]
    assert [h.flags for h in ranking] == [(), (COPIES,), (REPEATS,), (DUPLICATE,)]


def test_a_function_ranks(bot):
    seen = []

    def longest(turns, texts):
        seen.append(turns)
        return np.array([len(text) for text in texts])

    found = bot.rank(DIALOGUES[1], dg.Rank(longest, hypotheses=5), **HOW)
    unflagged = [h for h in found if not h.flags]
    assert [h.score for h in unflagged] == sorted((h.score for h in unflagged), reverse=True)
    assert (seen, found.rule) == ([DIALOGUES[1]], "longest")
    for wrong in (1.0, [1.0], ["a"] * 5, [10**400] * 5, np.ones(5) + 1j):
        with pytest.raises(ValueError, match="it must give a number for each"):
            bot.reply("Hi", rank=dg.Rank(lambda turns, texts, wrong=wrong: wrong, hypotheses=5), **HOW)


def test_a_temperature_next_to_zero_takes_the_best_without_a_warning():
    evidence, draw = Evidence([-1.0, -2.0], [-1.0, -2.0]), np.random.default_rng(0)
    with warnings.catch_warnings(action="error"):
        found = choose(dg.Rank("likelihood", temperature=5e-324), evidence, [(), ()], draw)
    assert [verdict.number for verdict in found] == [0, 1]


def test_a_ranker_ranks(bot):
    ranker = dg.Ranker.untrained(bot.params, bot.config, bot.tokenizer)
    ranked = dg.Bot(bot.params, bot.config, bot.tokenizer, ranker=ranker)
    found = ranked.rank(DIALOGUES[1], dg.Rank("rpt", hypotheses=6), **HOW)
    assert [h.score for h in found] == pytest.approx(ranker.score(DIALOGUES[1], [h.text for h in found]).tolist())
    unflagged = [h.score for h in found if not h.flags]
    assert unflagged == sorted(unflagged, reverse=True)
    with pytest.raises(ValueError, match="ranking by rpt needs a ranker"):
        bot.reply("Hi", rank="rpt")
    with pytest.raises(TypeError, match="ranker is 'updown'; give a directory to `load`"):
        dg.Bot(bot.params, bot.config, bot.tokenizer, ranker="updown")


def test_what_is_wrong_is_one_line_before_anything_runs(bot, monkeypatch):
    monkeypatch.setattr(propose, "generate_candidates", None)
    for rank, said in (
        ("mmx", "rank is by 'mmx'; give mmi, pmi, rpt, likelihood, sense, or a function"),
        (3, "rank is by 3; give mmi"),
    ):
        with pytest.raises(ValueError, match=said):
            bot.reply("Hi", rank=rank)
    for numbers, said in (
        ({"backward_weight": 1.5}, "backward_weight is 1.5; it must be a finite number from 0 to 1"),
        ({"backward_weight": math.nan}, "backward_weight is nan"),
        ({"mix": "both"}, "mix is 'both'; give 'sum' or 'mean'"),
        ({"hypotheses": 0}, "hypotheses is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"source": "first"}, "source is 'first'; give 'last' or 'all'"),
    ):
        with pytest.raises(ValueError, match=said):
            dg.Rank("mmi", **numbers)
    with pytest.raises(ValueError, match="rank and beams are two ways"):
        bot.reply("Hi", rank="pmi", beams=2)
    with pytest.raises(ValueError, match="ranking by mmi needs a backward model with this model's vocabulary"):
        dg.Bot(bot.params, bot.config, bot.tokenizer).reply("Hi", rank="mmi")
    with pytest.raises(ValueError, match="the backward model has another vocabulary"):
        dg.Bot(bot.params, bot.config, bot.tokenizer, bundled_reverse("float32"))
    with pytest.raises(TypeError, match="reverse is str; give a model's directory to `load`"):
        dg.Bot(bot.params, bot.config, bot.tokenizer, "reverse")
    with pytest.raises(ValueError, match="a hypothesis has 96 tokens and the backward model has 96 positions"):
        backward_scores(bot.reverse, [[1] * 95], [["Hi"]], "last")


def test_a_ranking_shows_itself(ranking, tmp_path):
    lines = repr(ranking).splitlines()
    assert lines[0] == "Ranking(6 hypotheses by mmi)"
    assert len(lines) == 7
    assert repr(dg.Ranking(ranking[:1], ranking.turns, "mmi", "")).startswith("Ranking(1 hypothesis by mmi)")
    assert repr(ranking[0]).startswith("Ranked(")
    assert ranking._repr_html_().count("<tr>") == 7
    found = json.loads(json.dumps(ranking.to_dict(), allow_nan=False))
    assert found["turns"] == DIALOGUES[1]
    assert [h["text"] for h in found["hypotheses"]] == [h.text for h in ranking]
    pytest.importorskip("matplotlib")
    ranking.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_the_bundled_pair_ranks():
    whole = dg.load()
    assert whole.reverse is None
    found = whole.rank("Do you like the rain?", dg.Rank("mmi", hypotheses=2), max_new_tokens=8)
    assert all(h.backward < 0 for h in found)
