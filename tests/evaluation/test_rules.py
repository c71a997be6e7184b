"""Rules side by side: each by hand on made-up proposals; hits@1 of a made-up set; and the command, stopped and gone on."""

import json

import numpy as np
import pytest
from fakes import SENTENCES, tiny_bot

import dialogpt_jax as dg
from dialogpt_jax.cli.main import main
from dialogpt_jax.decoding.score_batches import score_replies
from dialogpt_jax.evaluation import hits, proposals, rule_tables, rules
from dialogpt_jax.evaluation.contexts import cut
from dialogpt_jax.evaluation.harness import group_by_length
from dialogpt_jax.evaluation.intervals import compare, estimates
from dialogpt_jax.evaluation.settings import Settings
from dialogpt_jax.ranking.guards import COPIES
from dialogpt_jax.ranking.mmi import backward_scores

ATOL = 2e-4  # of a sum of some thirty log-probabilities in float32, computed in batches of other shapes
DIALOGUES = [[SENTENCES[(d + 2 * i) % 6][: 10 + (d * 7 + i * 5) % 11] for i in range(2 + d % 2)] for d in range(12)]


@pytest.fixture(scope="module")
def bot():
    forward, backward = tiny_bot(end=4.0), tiny_bot(1, end=4.0)
    return dg.Bot(forward.params, forward.config, forward.tokenizer, backward)


@pytest.fixture(scope="module")
def contexts():
    return cut(DIALOGUES)[:12]


def made_up(context, texts, **given):
    """Proposals of three replies: the second is likeliest, by its mean the third; backward has the first, pmi the third."""
    known = {"forward": [-12.0, -8.0, -10.0], "tokens": [6, 4, 10], "backward": [-20.0, -30.0, -25.0]}
    known |= {"backward_mean": [-4.0, -6.0, -3.5]}
    known |= {"pmi": [1.0, 0.0, 3.0], "finished": [True, True, False], "ranker": None, "flags": [[], [], []]}
    return proposals.Proposals(context, texts, **(known | given))


def test_each_rule_chooses_by_its_own_figures():
    several = [made_up(0, ["a b", "c", "d e"]), made_up(1, ["x", "y", "z"], flags=[[COPIES], [], []])]
    assert list(rules.rules_for(several)) == ["likelihood", "pmi", "mmi, λ 1", "mmi, λ 0.5", "mean, λ 0.5"]
    given = {name: rules.choose_by(rule, several) for name, rule in rules.rules_for(several).items()}
    assert {name: [one.text for one in own] for name, own in given.items()} == {
        "likelihood": ["d e", "z"],
        "pmi": ["d e", "z"],
        "mmi, λ 1": ["a b", "z"],  # the guard holds x back
        "mmi, λ 0.5": ["a b", "z"],
        "mean, λ 0.5": ["d e", "z"],
    }
    assert [one.text for one in rules.choose_by(None, several)] == ["a b", "x"]
    assert given["pmi"][0].finished is False
    assert "mmi, λ 1" not in rules.rules_for([made_up(0, ["a", "b", "c"], backward=None)])
    assert "rpt" in rules.rules_for([made_up(0, ["a", "b", "c"], ranker=[0.1, 0.2, 0.3])])


def test_the_true_turn_must_be_liked_better_than_each_other():
    truths = [made_up(0, ["t", "u", "v"]), made_up(1, ["t", "u", "v"], backward=[-20.0, -20.0, -30.0])]
    truths.append(made_up(2, ["t", "u", "v"], forward=[-8.0, -12.0, -10.0]))  # likeliest, but not by its mean
    found = rules.hits_by(None, [], truths, {"none": None, **rules.rules_for(truths)}, anti=False)
    assert {name: own.tolist() for name, own in found.items()} == {
        "none": [0, 0, 1],  # by log P(reply | context)
        "likelihood": [0, 0, 0],
        "pmi": [0, 0, 0],
        "mmi, λ 1": [1, 0, 1],  # as good as another is no better
        "mmi, λ 0.5": [1, 0, 1],
        "mean, λ 0.5": [0, 0, 0],
    }


def test_differences_are_of_the_same_contexts_drawn_again(contexts):
    """Where one rule gives always what "none" gives, the difference is 0 in every resample: two draws would not be."""
    several = [made_up(i, ["a b c", "d", "e f"], forward=[-1.0 - i, -9.0, -9.0]) for i in range(len(contexts))]
    found = rules.measure_rules(None, contexts, several, resamples=50)
    assert list(found) == ["none", "likelihood", "pmi", "mmi, λ 1", "mmi, λ 0.5", "mean, λ 0.5"]
    assert found["none"].differences == []
    length = {
        name: next(d for d in own.differences if d.name == "length") for name, own in found.items() if name != "none"
    }
    assert (length["mmi, λ 1"].value, length["mmi, λ 1"].low, length["mmi, λ 1"].high) == (0, 0, 0)
    assert length["pmi"].value == length["pmi"].low == length["pmi"].high == -1
    by_hand = np.array([[len(one.text.split())] for one in rules.choose_by(dg.Rank("likelihood"), several)], float)
    other = np.full_like(by_hand, 3.0)
    one, two = (estimates(["x"], lambda s: s / 12, (x,), resamples=50, seed=0)[0] for x in (by_hand, other))
    wanted = compare(one, two)
    assert wanted.low < wanted.value < wanted.high
    assert length["likelihood"][1:] == wanted[1:]
    common = next(e for e in found["pmi"].estimates if e.name == rules.COMMON)
    assert common.value == 1  # all say the same


@pytest.mark.long
def test_scores_of_the_true_turns_are_those_of_each_alone(bot, contexts):
    found = proposals.score_truths(bot, contexts, candidates=4)
    sets = hits.draw_sets(contexts, candidates=4)
    eos = bot.config.eos_token_id
    for own, members, context in zip(found, sets, contexts, strict=True):
        assert own.texts == [contexts[j].truth for j in members]
        assert own.texts[0] == context.truth
        replies = [[*bot.tokenizer.encode(text), eos] for text in own.texts]
        assert own.tokens == [len(ids) for ids in replies]
        prompt = bot.encode(context.turns, max_new_tokens=hits.LONGEST_REPLY)
        [within] = score_replies(bot.params, bot.config, [prompt], [replies])
        [alone] = score_replies(bot.params, bot.config, [[eos]], [replies])
        np.testing.assert_allclose(own.forward, [x.sum() for x in within], atol=ATOL)
        np.testing.assert_allclose(own.pmi, [x.sum() - y.sum() for x, y in zip(within, alone, strict=True)], atol=ATOL)
        back = backward_scores(bot.reverse, replies, [context.turns] * 4, "last")
        np.testing.assert_allclose(own.backward, back, atol=ATOL)
        early = [y[: rules.ANTI_TOKENS].sum() for y in alone]
        scores = [x.sum() - rules.ANTI_WEIGHT * y for x, y in zip(within, early, strict=True)]
        hit = rules.hits_by(bot, contexts, found, {}, anti=True)["anti-LM"][own.context]
        assert hit == (scores[0] > max(scores[1:]))


@pytest.mark.long
def test_proposals_are_what_the_bot_ranks_and_a_file_goes_on(bot, contexts, tmp_path, monkeypatch):
    how = {"out": tmp_path / "p.jsonl"}
    monkeypatch.setattr(proposals, "ROWS", 4)
    settings = Settings(dg.PAPER, seed=3, max_new_tokens=12)
    whole = proposals.draw_proposals(bot, contexts, settings, 4, **how)
    [ranking] = bot.rankings(
        [contexts[5].turns], dg.Rank("mmi", hypotheses=4), seed=3, max_new_tokens=12, places=[5], everything=True
    )
    own = whole[5]
    chosen = rules.choose_by(dg.Rank("mmi"), [own])[0]
    assert chosen.text == ranking[0].text
    assert own.texts == [h.text for h in sorted(ranking, key=lambda h: h.number)]
    assert own.tokens == [len(h.tokens) for h in sorted(ranking, key=lambda h: h.number)]
    text = how["out"].read_text()
    lines = text.splitlines(keepends=True)
    first, *_, last = group_by_length([len(bot.encode(c.turns, max_new_tokens=12)) for c in contexts], 4)
    how["out"].write_text("".join([lines[0], *(lines[1 + i] for i in first), lines[1 + last[0]][:20]]))  # killed
    made = []
    again = proposals.draw_proposals(bot, contexts, settings, 4, progress=lambda new, left: made.extend(new), **how)
    assert again == whole
    assert how["out"].read_text() == text
    assert len(made) == 8
    for changed, other in ((settings, 5), (Settings(dg.PAPER, seed=4, max_new_tokens=12), 4)):
        with pytest.raises(ValueError, match="replies of another run"):
            proposals.draw_proposals(bot, contexts, changed, other, **how)
    how["out"].write_text('{"run": {}}\n')
    with pytest.raises(ValueError, match="line 1: replies of another run"):
        proposals.draw_proposals(bot, contexts, settings, 4, **how)
    assert how["out"].read_text() == '{"run": {}}\n'


def test_a_kept_line_that_is_wrong_is_named_with_what_to_do(tmp_path):
    run = {"reverse": "0a", "hypotheses": 3}
    file = proposals.ProposalsFile(tmp_path / "kept.jsonl", run)
    good = [made_up(i, ["a b", "c", "d e"], flags=[[], [COPIES], ["unsafe: a word"]]) for i in range(2)]
    lines = [file.head(), *map(file.line, good)]
    file.path.write_text("".join(lines))
    assert list(file.read().values()) == good
    for wrong in (
        {"context": [0]},
        {"context": True},
        {"context": -1},
        {"texts": "abc"},
        {"texts": 3},
        {"texts": ["a", 1, "c"]},
        {"texts": []},
        {"tokens": None},
        {"tokens": [6.5, 4, 10]},
        {"tokens": [6, 4]},
        {"finished": [1, 1, 0]},
        {"forward": ["-12", "-8", "-10"]},
        {"backward": None},  # though the run has a backward model
        {"backward_mean": -4.0},
        {"pmi": {"0": 1.0}},
        {"ranker": [0.1, 0.2, 0.3]},  # though the run has no ranker
        {"flags": ["", "", ""]},
        {"flags": [[], [], [7]]},
        {"flags": [[], [], ["odd"]]},
    ):
        file.path.write_text("".join([*lines[:2], json.dumps(good[1]._asdict() | wrong) + "\n"]))
        with pytest.raises(ValueError) as told:  # noqa: PT011  (all of it is compared)
            file.read()
        [name] = wrong
        end = f"{name} is not what a run writes there; take the line out, and it is made again"
        assert str(told.value) == f"{file.path}, line 3: {end}"
    file.path.write_text("".join([*lines, "[]\n"]))
    with pytest.raises(ValueError, match="line 4: no proposals; take the line out"):
        file.read()


@pytest.mark.long
def test_the_command_shows_all_rules_and_a_second_time_draws_nothing(bot, tmp_path, capsys, monkeypatch):
    bot.save(tmp_path / "forward")
    bot.reverse.save(tmp_path / "backward")
    data = tmp_path / "talk.jsonl"
    data.write_text("".join(json.dumps({"turns": turns}) + "\n" for turns in DIALOGUES))
    models = ["--no-compilation-cache", "--model", tmp_path / "forward", "--reverse", tmp_path / "backward"]
    words = ["rules", "--data", data, "--contexts", 12, "--hypotheses", 4, "--max-new-tokens", 12, "--bootstrap", 20]
    words = [*map(str, [*words, "--out", tmp_path / "kept", *models])]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("12 contexts of 12 dialogues, 4 hypotheses, temperature 1, top_k 10, seed 0\n")
    assert max(map(len, shown.splitlines())) <= 80
    for measure in rules.SHOWN:
        _, found, rest = shown.partition(f"\n{measure}")
        assert found
        names = [line[:14].strip() for line in rest.partition("\n\n")[0].splitlines()[2:]]
        assert names == ["none", "likelihood", "pmi", "mmi, λ 1", "mmi, λ 0.5", "mean, λ 0.5", "anti-LM"]
    monkeypatch.setattr(dg.Bot, "rankings", None)  # all is kept
    monkeypatch.setattr(proposals, "order", None)
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["hypotheses"] == 4
    mmi, none = (found["rules"][name]["length"] for name in ("mmi, λ 1", "none"))
    assert mmi["less none"]["value"] == pytest.approx(mmi["value"] - none["value"])
    assert mmi["less none"]["low"] <= mmi["less none"]["value"] <= mmi["less none"]["high"]
    assert "less none" not in none
    assert main([*words, "--markdown"]) == 0
    values, differences = capsys.readouterr().out.strip().split("\n\n")
    assert len(values.splitlines()) == 9
    assert len(differences.splitlines()) == 8
    assert len({line.count(" | ") for line in [*values.splitlines(), *differences.splitlines()]}) == 1


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--json", "--markdown"], 2, "give one of --markdown and --json"),
        (["--decode", "greedy"], 2, "at temperature 0 all hypotheses are one; give --decode topk"),
        (["--reverse", "nowhere"], 1, "nowhere"),
    ],
)
def test_wrong_words_are_one_line(words, status, said, tmp_path, capsys):
    data = tmp_path / "talk.jsonl"
    data.write_text('{"turns": ["Hi!", "Hello."]}\n')
    assert main(["rules", "--data", str(data), "--out", str(tmp_path / "kept"), *words]) == status
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_star_marks_a_difference_that_is_sure():
    named = rules.Measured(estimates(["length"], lambda s: s / 2, (np.array([[1.0], [3.0]]),), resamples=9, seed=0), [])
    sure, unsure = difference(0.5, 1.5), difference(-0.5, 1.5)
    found = {"none": named, "a": named._replace(differences=[sure]), "b": named._replace(differences=[unsure])}
    lines = rule_tables.rules_as_text(found).splitlines()
    assert [line.split()[5] for line in lines if line[:2] in ("a ", "b ")] == ["+1.0*", "+1.0"]


def difference(low, high):
    return rules.Difference("length", 1.0, low, high, 0.1)
