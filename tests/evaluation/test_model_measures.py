"""What a model is worth: hits@k and perplexities against one dialogue at a time; and `dialogpt eval --data`."""

import dataclasses
import gzip
import json
import os
import re

import jax
import numpy as np
import pytest
from fakes import SENTENCES, draw_head, tiny_bot

from dialogpt_jax.bundled import card
from dialogpt_jax.bundled.prompts import Prompts, read_prompts
from dialogpt_jax.cli.main import main
from dialogpt_jax.decoding.score import score
from dialogpt_jax.evaluation import hits, model_measures, perplexity
from dialogpt_jax.evaluation.contexts import cut
from dialogpt_jax.evaluation.perplexity import bits_per_byte, measure_dialogues
from dialogpt_jax.evaluation.replies import Reply
from dialogpt_jax.evaluation.settings import Settings
from dialogpt_jax.ranking.rank_options import Rank

# Of mean log-probabilities in float32, computed in another shape.
RTOL = 1e-4
DIALOGUES = [[SENTENCES[(d + 2 * i) % 6][: 10 + (d * 7 + i * 5) % 11] for i in range(2 + d % 3)] for d in range(12)] + [
    ["alone"]
]


@pytest.fixture(scope="module")
def bot():
    return tiny_bot()


def log_probability(bot, context, reply):
    """(total, mean) of one reply after one context, alone."""
    ids = [*context, *reply]
    row_BT = np.array([ids + [0] * (96 - len(ids))], np.int32)
    scores = score(bot.params, bot.config, row_BT, np.array([len(context)]), np.array([len(ids)]))
    return float(scores.total[0]), float(scores.mean[0])


def test_ranks_are_those_of_scores_one_by_one(bot, monkeypatch):
    contexts = cut(DIALOGUES)
    monkeypatch.setattr(hits, "LONGEST_REPLY", 16)
    found, gains = hits.ranks(bot, contexts, candidates=4, seed=5)
    assert set(found) == set(gains) == {0, 1, 2, 3}
    assert (found != gains).any()
    assert (found == hits.ranks(bot, contexts, candidates=4, seed=5).by_mean).all()
    assert (found != hits.ranks(bot, contexts, candidates=4, seed=6).by_mean).any()
    eos = bot.config.eos_token_id
    for i in range(len(contexts)):
        others = [
            j for j, c in enumerate(contexts) if c.dialogue != contexts[i].dialogue and c.truth != contexts[i].truth
        ]
        drawn = np.random.default_rng((5, i)).choice(others, 3, replace=False)
        prompt = bot.encode(contexts[i].turns, max_new_tokens=16)
        turns = [[*bot.tokenizer.encode(contexts[j].truth), eos][:16] for j in [i, *drawn]]
        totals, means = zip(*(log_probability(bot, prompt, turn) for turn in turns), strict=True)
        assert found[i] == sum(mean >= means[0] for mean in means[1:])
        added = [total - log_probability(bot, [eos], turn)[0] for total, turn in zip(totals, turns, strict=True)]
        assert gains[i] == sum(gain >= added[0] for gain in added[1:])


def test_too_few_others_are_said(bot):
    with pytest.raises(ValueError, match="needs 9 turns of other dialogues for each context; context 0 has 1"):
        hits.ranks(bot, cut([["a", "b"], ["c", "d"]]))


def test_perplexities_by_hand(bot):
    eos = bot.config.eos_token_id
    nats, tokens = [], []
    for turns in DIALOGUES:
        first, *rest = [[*bot.tokenizer.encode(turn), eos] for turn in turns]
        rest = [token for turn in rest for token in turn]
        nats.append(-log_probability(bot, first, rest)[0] if rest else 0.0)
        tokens.append(len(rest))
    nats, tokens = np.array(nats), np.array(tokens)
    assert max(len(turns) for turns in DIALOGUES) > 2  # so the two perplexities differ
    spent = measure_dialogues(bot.params, bot.config, bot.tokenizer, DIALOGUES, rows=5)
    np.testing.assert_allclose(spent.nats_D, nats, rtol=RTOL)
    assert spent.tokens_D.tolist() == tokens.tolist()
    num_bytes = sum(len(turn) for turns in DIALOGUES for turn in turns[1:])
    assert spent.bytes_D.sum() == num_bytes
    found = {e.name: e for e in model_measures.measure_predictions(bot, cut(DIALOGUES), DIALOGUES, resamples=20)}
    some = tokens > 0
    assert found["bits per byte"].value == pytest.approx(nats.sum() / np.log(2) / num_bytes, rel=RTOL)
    assert found["perplexity"].value == pytest.approx(np.exp(nats.sum() / tokens.sum()), rel=10 * RTOL)
    assert found["sample perplexity"].value == pytest.approx(np.exp((nats[some] / tokens[some]).mean()), rel=10 * RTOL)
    assert found["perplexity"].value != pytest.approx(found["sample perplexity"].value, rel=0.01)
    assert found["hits@1"].value <= found["hits@2"].value <= found["hits@5"].value
    totals = bits_per_byte(bot.params, bot.config, bot.tokenizer, DIALOGUES, rows=5)
    assert totals["bits_per_byte"] == pytest.approx(found["bits per byte"].value, rel=RTOL)
    assert (totals["tokens"], totals["bytes"]) == (tokens.sum(), num_bytes)


def test_windows_are_as_wide_as_their_bucket(bot, monkeypatch):
    """Short dialogues and one long one: only the batch of the long one is wide; what is found is the same."""
    dialogues = [*DIALOGUES[:3], ["a" * 60, "b" * 30, "c"], *DIALOGUES[3:]]
    by_itself = [measure_dialogues(bot.params, bot.config, bot.tokenizer, [d], rows=1) for d in dialogues]
    widths, real = [], perplexity._losses

    def spy(params, config, tokens_BT):
        widths.append(tokens_BT.shape[1])
        return real(params, config, tokens_BT)

    monkeypatch.setattr(perplexity, "_losses", spy)
    spent = measure_dialogues(bot.params, bot.config, bot.tokenizer, dialogues, rows=2)
    assert widths == sorted(widths)
    assert widths[0] < widths[-1] <= bot.config.n_positions
    np.testing.assert_allclose(spent.nats_D, [s.nats_D[0] for s in by_itself], rtol=RTOL)
    np.testing.assert_array_equal(spent.tokens_D, [s.tokens_D[0] for s in by_itself])


def test_hits_are_left_out_where_there_are_not_enough_turns(bot):
    few = DIALOGUES[:3]
    names = [e.name for e in model_measures.measure_predictions(bot, cut(few), few, resamples=0)]
    assert names == ["bits per byte", "perplexity", "sample perplexity"]


def test_shares_of_replies():
    contexts = cut([["a", "b"]] * 4)
    texts = [("x y z w x y z w", True), ("yes", True), ("yes", False), ("no", True)]
    answers = [Reply(i, 0, 1, 0, text, "b", finished, 1, -1.0) for i, (text, finished) in enumerate(texts)]
    found = {e.name: e.value for e in model_measures.measure_replies(contexts, answers, resamples=0)}
    assert (found["ended"], found["repeating"], found["commonest"]) == (0.75, 0.25, 0.5)
    assert {"BLEU-4", "NIST-4", "Ent-4", "Dist-4", "length", "repetition"} < set(found)


@pytest.mark.long
def test_a_card_shows_what_the_command_prints(bot, evaluate, tmp_path, monkeypatch):
    monkeypatch.setattr(card, "NUM_CONTEXTS", 20)
    monkeypatch.setattr(card, "SETTINGS", Settings(max_new_tokens=9, rows=4))
    monkeypatch.setattr(card, "DECODE", "greedy")
    monkeypatch.setattr(card, "RANK", Rank("sense", hypotheses=4))
    monkeypatch.setattr(card, "RANKED", Settings(max_new_tokens=9, rank=card.RANK))
    valid, everyday = {"one": DIALOGUES[:7], "two": DIALOGUES[7:]}, {"everyday": DIALOGUES[:4]}
    monkeypatch.setattr(card, "TEMPERATURES", (0.5,))
    monkeypatch.setattr(card, "NUM_EVERYDAY", 4)
    few = Prompts(["short", "long"], [("Hello",), ("Hi", "Yes", "No")], [("Hello",) * 8], read_prompts().rule)
    monkeypatch.setattr(card, "read_prompts", lambda: few)
    run = {
        "curve": [(10, 2.5), (20, 1.25)],
        "command": "make it",
        "how": {"a": "dialogpt train so", "b": "python -m x"},
    }
    card.write_card(tmp_path, dataclasses.replace(bot, sense=draw_head(bot.config)), valid, everyday, **run)
    text = (tmp_path / card.CARD).read_text(encoding="utf-8")
    words = (*RUN, "--contexts", 20, "--bootstrap", 1000, "--markdown")
    _, shown, _ = evaluate(*words)
    assert shown.strip() in text
    assert "| measure | one drawn | the most sensible of 16 |" in text
    assert "| 0.5, of 4 |" in text
    assert "| step | 10 | 20 |" in text
    assert "\nmake it\n" in text
    assert "\ndialogpt train so\npython -m x\n" in text
    spent = bits_per_byte(bot.params, bot.config, bot.tokenizer, valid["two"])
    assert f"| two | 6 | {spent['bits_per_byte']:.3f} |" in text
    assert (
        text.count("| not marked |\n") == 2 + 4 + 1
    )  # of each reply, for no mark is another model's; and a table's head
    assert "dialogpt eval --model MODEL --data CORPUS/valid.jsonl.gz --contexts 1000 --decode chat --markdown" in text


@pytest.fixture(scope="module")
def folder(bot, tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    (folder / "model").mkdir()
    bot.save(folder / "model")
    lines = "".join(json.dumps({"turns": turns}) + "\n" for turns in DIALOGUES)
    with gzip.open(folder / "d.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(lines)
    return folder


@pytest.fixture
def evaluate(folder, capsys, monkeypatch):
    """(status, stdout, stderr) of `dialogpt eval` in that folder."""
    monkeypatch.chdir(folder)
    first = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: first)

    def evaluate(*words):
        status = main(["eval", *map(str, words)])
        return status, *capsys.readouterr()

    return evaluate


RUN = ("--model", "model", "--data", "d.jsonl.gz", "--no-compilation-cache", "--bootstrap", 20, "--max-new-tokens", 9)
RUN = (*RUN, "--batch-size", 4)
DROPPED = "d.jsonl.gz: dropped 1 of 13 lines, the first line 13: one turn; a dialogue has at least two\n"


def test_command(evaluate, folder):
    status, shown, told = evaluate(*RUN, "--contexts", 16, "--json", "--out", "g.jsonl")
    assert status == 0
    found = json.loads(shown)
    assert set(found["systems"]) == {"greedy"}
    assert {"BLEU-4", "Ent-4", "ended", "perplexity", "sample perplexity", "hits@1"} <= set(found["systems"]["greedy"])
    assert found["settings"]["sampling"] == "greedy"
    assert "16 replies, " in told
    assert "tokens/s" in told
    first = (folder / "g.jsonl").read_bytes()
    assert first.count(b"\n") == 17
    status, again, told = evaluate(*RUN, "--contexts", 16, "--json", "--out", "g.jsonl")
    assert (again, told) == (shown, DROPPED)  # nothing was left to do
    assert (folder / "g.jsonl").read_bytes() == first

    words = (*RUN, "--decode", "topk", "--top-k", 3, "--temperature", 0.5, "--contexts", 16, "--compare", "g.jsonl")
    _, shown, _ = evaluate(*words)
    assert shown.startswith("16 contexts of 12 dialogues, temperature 0.5, top_k 3, seed 0\n")
    head = shown.splitlines()[2].split()
    assert head[:2] == ["measure", "topk"]
    assert "g.jsonl" in head
    assert head[-1] == "p"
    status, _, told = evaluate(*RUN, "--decode", "topk", "--contexts", 16, "--out", "g.jsonl")
    assert status == 1
    assert "g.jsonl, line 1: replies of another run (sampling greedy, now temperature 1, top_k 10)" in told
    assert (folder / "g.jsonl").read_bytes() == first
    status, _, told = evaluate(*RUN, "--contexts", 15, "--compare", "g.jsonl")
    assert status == 1
    assert "g.jsonl has replies to 16 contexts; --data and --contexts give 15" in told

    alone = (*RUN[:-1], 1, "--contexts", 16)  # with one row a part is of eight contexts
    evaluate(*alone, "--out", "alone.jsonl")
    for part in (1, 2):
        status, shown, told = evaluate(*alone, "--part", f"{part}/2", "--out", f"p{part}")
        assert (status, shown) == (0, "")
        assert f"8 of 16 replies in p{part}" in told
    (folder / "p").write_bytes((folder / "p1").read_bytes() + (folder / "p2").read_bytes())
    evaluate(*alone, "--out", "p")
    assert (folder / "p").read_bytes() == (folder / "alone.jsonl").read_bytes()


LINE = b'{"turns": ["a", "b"]}\n'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "none.jsonl: No such file or directory"),
        (b"", "data.jsonl: none of 0 lines is a dialogue; the file is empty"),
        (
            b'{"turns": ["a"]}\n',
            "data.jsonl: none of 1 line is a dialogue; line 1: one turn; a dialogue has at least two",
        ),
        (b'{"turns": ["a"]}\noops\n', "data.jsonl: none of 2 lines is a dialogue; line 1: one turn"),
        (LINE, "data.jsonl.gz, line 1: the gzip file is broken"),
        (gzip.compress(LINE * 9, mtime=0)[:-9], "data.jsonl.gz, line 10: the gzip file is broken"),
    ],
)
def test_data_without_a_dialogue_or_a_broken_gzip_is_one_line(evaluate, tmp_path, data, message):
    path = tmp_path / re.split("[:,]", message)[0]
    if data is not None:
        path.write_bytes(data)
    status, shown, told = evaluate("--data", path)
    assert (status, shown) == (1, "")
    assert len(told.splitlines()) == 1
    assert message in told


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LINE + b"\xff\n", "data.jsonl: dropped 1 of 2 lines, the first line 2: byte 1 (0xff) is not UTF-8"),
        (LINE + b"{\n", "data.jsonl: dropped 1 of 2 lines, the first line 2: not JSON"),
        (LINE + b'{"turns": "hello"}\n', "data.jsonl: dropped 1 of 2 lines, the first line 2: `turns` is no list"),
        (LINE + b'{"turns": ["a", 1]}\n', "data.jsonl: dropped 1 of 2 lines, the first line 2: turn 2 has no text"),
    ],
)
def test_lines_that_are_no_dialogue_are_dropped_and_told(evaluate, tmp_path, data, message):
    path = tmp_path / message.partition(":")[0]
    path.write_bytes(data)
    status, _, told = evaluate(*RUN, "--data", path)
    assert status == 0
    assert message in told.splitlines()[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data", "d.jsonl.gz", "--references", "x"), "--references does not go with --data"),
        (("--data", "d.jsonl.gz", "--clean"), "--clean does not go with --data"),
        (("--data", "d.jsonl.gz", "--part", "1/2"), "--part needs --out"),
        (("--data", "d.jsonl.gz", "--temperature", "-1"), "temperature is -1;"),
        (("--data", "d.jsonl.gz", "--compare", "none"), "none: No such file or directory"),
        (("--hypotheses", "x", "--out", "y"), "--out needs --data"),
    ],
)
def test_flags_that_do_not_go_together(evaluate, words, message):
    status, _, told = evaluate(*words)
    assert status == 1
    assert message in told
    assert len(told.replace(DROPPED, "").splitlines()) == 1


def test_fewer_contexts_than_were_asked_for_are_all_taken_and_told(evaluate, tmp_path):
    (tmp_path / "data.jsonl").write_text('["Hi", "no"]\n["Hi", "no", "why?"]\n')
    status, table, told = evaluate(*RUN, "--data", tmp_path / "data.jsonl", "--contexts", 99)
    assert status == 0
    assert table.startswith("3 contexts of 2 dialogues")
    assert "data.jsonl: 3 contexts, not the 99 asked for; all of them are taken" in told


@pytest.mark.parametrize("word", ["0/2", "3/2", "2", "a/b"])
def test_a_part_that_is_none(evaluate, word):
    assert evaluate("--data", "d.jsonl.gz", "--part", word)[0] == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_one_line_that_names_the_file(evaluate, folder):
    os.symlink("/dev/full", folder / "full.jsonl.part")
    status, _, told = evaluate(*RUN, "--contexts", 16, "--out", "full.jsonl")
    assert (status, told.splitlines()[-1]) == (1, "dialogpt eval: full.jsonl: No space left on device")
