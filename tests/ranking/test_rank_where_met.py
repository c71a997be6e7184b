"""A rank where a user meets it: batches, files that go on, commands, tables that fit; each gives what `bot.rank` gives."""

import dataclasses
import io
import json

import numpy as np
import pytest
from fakes import tiny_bot
from rich.console import Console

import dialogpt_jax as dg
from dialogpt_jax.chat.session import ChatError
from dialogpt_jax.chat.terminal import Terminal
from dialogpt_jax.cli.main import main
from dialogpt_jax.data.formats import held_out
from dialogpt_jax.decoding import stream as streaming
from dialogpt_jax.evaluation import harness
from dialogpt_jax.evaluation.contexts import Context, cut
from dialogpt_jax.evaluation.replies import RepliesFileError, read_replies
from dialogpt_jax.evaluation.settings import Settings
from dialogpt_jax.ranking.report import Ranked, Ranking
from dialogpt_jax.ranking.table import print_ranking
from dialogpt_jax.replies.language_model import LanguageModel
from dialogpt_jax.replies.token_colors import END, spans_of, token_texts

RANK = dg.Rank("mmi", hypotheses=4, backward_weight=0.6)
FLAGS = ["--rank", "mmi", "--hypotheses", "4", "--backward-weight", "0.6", "--max-new-tokens", "9"]
DIALOGUES = [
    ["Hello, how are you today?"],
    ["Hi", "I am fine.", "And you?"],
    *(["Do you like it?", "No."] for _ in "345"),
]
HOW = {"max_new_tokens": 9}


@pytest.fixture(scope="module")
def bot():
    forward, backward = tiny_bot(end=4.0), tiny_bot(1, end=4.0)
    return dg.Bot(forward.params, forward.config, forward.tokenizer, backward)


@pytest.fixture(scope="module")
def ranking(bot):
    return bot.rank("Do you like the rain?", RANK, **HOW)


@pytest.fixture(scope="module")
def folders(bot, tmp_path_factory):
    """Flags that name the bot's two models."""
    folder = tmp_path_factory.mktemp("rank")
    bot.save(folder / "forward")
    bot.reverse.save(folder / "backward")
    return ["--no-compilation-cache", "--model", str(folder / "forward"), "--reverse", str(folder / "backward")]


@pytest.mark.long
def test_a_batch_a_file_and_a_part_give_one_order(bot, tmp_path):
    expected = [r[0] for r in bot.rankings(DIALOGUES, RANK, batch_size=4, **HOW)]
    assert [c.text for c in bot.answers(DIALOGUES, rank=RANK, batch_size=4, **HOW)] == [c.text for c in expected]
    assert bot.replies(DIALOGUES, rank=RANK, batch_size=4, **HOW) == [c.text for c in expected]
    contexts = [Context(turns, "", i) for i, turns in enumerate(DIALOGUES)]
    settings = Settings(dg.PAPER, max_new_tokens=9, rows=4, rank=RANK)
    out, counts = tmp_path / "out.jsonl", []
    found = harness.answer(bot, contexts, settings, out=out, progress=lambda new, left: counts.append((len(new), left)))
    assert [(r.text, r.tokens, r.finished) for r in found] == [(c.text, len(c.tokens), c.finished) for c in expected]
    assert counts == [(4, 1), (1, 0)]
    whole = out.read_bytes()
    out.write_bytes(whole[: whole.index(b"\n", whole.index(b"\n") + 1) + 9])  # within its second reply
    harness.answer(bot, contexts, settings, out=out)
    assert out.read_bytes() == whole
    assert len(read_replies(out)) == 5
    for change in ({"backward_weight": 0.7}, {"hypotheses": 5}, {"source": "all"}, {"temperature": 1.0}):
        other = dataclasses.replace(settings, rank=dataclasses.replace(RANK, **change))
        with pytest.raises(RepliesFileError):
            harness.answer(bot, contexts, other, out=out)
    another = dg.Bot(bot.params, bot.config, bot.tokenizer, tiny_bot(2, end=4.0))
    with pytest.raises(RepliesFileError, match="reverse"):
        harness.answer(another, contexts, settings, out=out)


def test_words_of_a_sampling_are_ids_where_hypotheses_are_drawn(bot, monkeypatch):
    class FoundError(Exception):
        pass

    def look(*_, sampling, **__):
        raise FoundError(sampling.bad_words)

    monkeypatch.setattr("dialogpt_jax.ranking.propose.generate_candidates", look)
    with pytest.raises(FoundError) as found:
        bot.reply("Hi", rank=RANK, sampling=dg.Sampling(bad_words=["rain"]))
    assert found.value.args[0] == tuple(tuple(bot.tokenizer.encode(word)) for word in ("rain", " rain"))


def test_the_command_draws_a_picture(folders, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "p.png"
    assert main(["reply", *folders, *FLAGS, "Do you like the rain?", "--plot", str(picture)]) == 0
    assert picture.stat().st_size > 10_000


@pytest.mark.long
def test_the_command_gives_what_the_library_gives(bot, ranking, folders, capsys, tmp_path):
    words = ["reply", *folders, *FLAGS, "Do you like the rain?"]
    assert main(words) == 0
    assert capsys.readouterr().out == ranking[0].text + "\n"
    assert main([*words, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    expected = {"seed": 0} | ranking.to_dict()
    assert list(shown) == list(expected)
    assert [h["why"] for h in shown["hypotheses"]] == [h["why"] for h in expected["hypotheses"]]
    assert sorted(h["number"] for h in shown["hypotheses"]) == [0, 1, 2, 3]
    assert main([*words, "--explain"]) == 0
    table = capsys.readouterr().out
    assert "\x1b" not in table
    assert all(name in table.splitlines()[1] for name in ("score", "forward", "backward", "pmi", "tokens"))
    assert table.index("given") < table.index(ranking[1].why)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"turns": turns}) + "\n" for turns in DIALOGUES))
    assert main(["reply", *folders, *FLAGS, "--data", str(tmp_path / "data.jsonl")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["reply"] for line in lines] == bot.replies(DIALOGUES, rank=RANK, batch_size=4, **HOW)
    out = str(tmp_path / "eval.jsonl")
    data = ["--data", str(tmp_path / "data.jsonl"), "--batch-size", "4", "--bootstrap", "0", "--out", out]
    flags = ["--rank-hypotheses" if flag == "--hypotheses" else flag for flag in FLAGS]
    assert main(["eval", *folders, *flags, *data, "--part", "1/1"]) == 0
    asked = [context.turns for context in cut(held_out(str(tmp_path / "data.jsonl"))[0], None)]
    assert main(["eval", *FLAGS, "--data", "x"]) == 2
    assert "--rank-hypotheses N says how many" in capsys.readouterr().err
    told = [reply.text for reply in read_replies(out).values()]
    assert told == [c.text for c in bot.answers(asked, rank=RANK, batch_size=4, **HOW)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rank", "mmi", "--beams", "2"], "--rank and --beams are two ways to a reply; give one of them"),
        (["--hypotheses", "4"], "--hypotheses goes with --rank RULE"),
        (["--rank-temperature", "1"], "--rank-temperature goes with --rank RULE"),
        (["--reverse", "x"], "--reverse goes with --rank RULE"),
        (["--rank", "pmi", "--backward-weight", "1"], "--backward-weight goes with --rank mmi"),
        (["--rank", "rpt"], "--rank rpt needs --ranker MODEL"),
        (["--rank", "mmi", "--candidates", "2"], "--candidates goes without --rank"),
        (["--explain"], "--explain goes with --rank RULE"),
        (["--rank", "pmi", "--explain", "--json"], "--json has all that --explain shows"),
        (["--rank", "pmi", "--plot", "x.txt"], "--plot is x.txt; name a file that ends in .png"),
        (
            ["--rank", "mmi", "--backward-weight", "1.5"],
            "backward_weight is 1.5; it must be a finite number from 0 to 1",
        ),
        (["--rank", "mmi", "--hypotheses", "0"], "hypotheses is 0"),
        (["--rank", "mmi", "--rank-temperature", "-1"], "temperature is -1"),
        (["--rank", "best"], "--rank"),
    ],
)
def test_what_does_not_go_together_is_one_line_before_a_model_is_loaded(words, said, capsys):
    assert main(["reply", "--model", "/nowhere", "Hi", *words]) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err.splitlines()[-1]


def test_a_backward_model_of_another_vocabulary_is_one_line(folders, capsys, monkeypatch):
    monkeypatch.setattr("dialogpt_jax.ranking.propose.generate_candidates", None)
    assert main(["reply", *folders[:-2], "--rank", "mmi", "Hi"]) == 1
    assert "needs a backward model with this model's vocabulary" in capsys.readouterr().err
    assert main(["reply", *folders[-2:], "--rank", "mmi", "--no-compilation-cache", "Hi"]) == 1
    assert "the backward model has another vocabulary" in capsys.readouterr().err


def a_ranking(text, tokenizer):
    ids = np.array([*tokenizer.encode(text), tokenizer.end_of_text_id], np.int32)
    logprobs = np.linspace(-0.1, -9, len(ids)).astype(np.float32)
    known = {"backward": -3.5, "ranker": None, "repetition": 0.0, "number": 0, "score": -3.5, "pmi": 1.25}
    how = {"tokens": ids, "logprobs": logprobs, "logprob": float(logprobs.sum()), "finished": True}
    pieces = token_texts(tokenizer, ids.tolist())
    first = Ranked(text=text, **how, **known, flags=(), why="given for a score of -3.50", pieces=pieces)
    other = dataclasses.replace(first, flags=("copies what was said", "cut"), why="out: copies what was said")
    return Ranking([first, other], ["Hi"], "mmi", "Hm.")


def shown(ranking, width, **how):
    console = Console(file=io.StringIO(), width=width, legacy_windows=False, **how)
    print_ranking(ranking, console)
    return console.file.getvalue()


def test_the_table_fits_its_window_and_colours_only_where_there_are_some(bot, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = "I like the rain, 雨が好き, and \x1b]0;title\x07 " + "€" * 20 + " in the evening."
    ranking = a_ranking(text, bot.tokenizer)
    for width in (24, 40, 80, 200):
        table = shown(ranking, width)
        lines = table.splitlines()
        assert all(Console().measure(line.rstrip()).maximum <= width for line in lines)
        assert "\x1b" not in table
        joined = "".join(table.split())
        for word in ("\\x1b]0;title\\x07", "-3.50", "1.25", "given", "out:copieswhatwassaid", "cut", "好き"):
            assert word in joined, (width, word)
    colored = shown(ranking, 80, force_terminal=True, color_system="256")
    assert "\x1b[32m" in colored
    assert "\x1b[31m" in colored
    assert "p ≥ 0.5" in colored
    monkeypatch.setenv("NO_COLOR", "1")
    plain = shown(ranking, 80, force_terminal=True, color_system="256")
    assert "\x1b[3" not in plain
    assert "p ≥ 0.5" not in plain


def test_tokens_by_their_log_probability(bot, ranking):
    """A character of several tokens is one piece with all they cost; the pieces are the text, in HTML too."""
    ranked = a_ranking("Hi <b>€", bot.tokenizer)[0]
    spans = spans_of(ranked)
    assert "".join(span.text for span in spans) == "Hi <b>€" + END
    assert len(spans) < len(ranked.tokens)
    assert sum(span.logprob for span in spans) == pytest.approx(ranked.logprob)
    page = ranked._repr_html_()
    assert "&lt;" in page
    assert "<b>" not in page
    assert page.count("<span") == len(spans)
    cut = ranked.tokens[:-2].tolist()
    assert "".join(token_texts(bot.tokenizer, cut)) == bot.tokenizer.decode(cut)
    assert all("".join(h.pieces) == h.text for h in ranking)
    assert ranking[0]._repr_html_().startswith("<p><span style='background:")


@pytest.mark.long
def test_a_ranked_chat_goes_on_from_the_winner(bot, monkeypatch, tmp_path, capsys):
    """Its replies are `bot.reply`'s, and a turn feeds only what the winner left new."""
    letters = [i for i in range(320) if not (bot.tokenizer.token(i).isalpha() and bot.tokenizer.token(i).isascii())]
    sampling = dataclasses.replace(dg.PAPER, suppress_tokens=[i for i in letters if i != bot.config.eos_token_id])
    chat, starts, real = bot.chat(rank=RANK, sampling=sampling, **HOW), [], streaming.start

    def look(params, config, request, cache):
        starts.append(int(request.starts_B[0]))
        return real(params, config, request, cache)

    monkeypatch.setattr(streaming, "start", look)
    held, kept, numbers = [], [], []
    for text in ("Hi", "no", "And you?", "Well."):
        expected = bot.reply([*chat.turns, text], rank=RANK, sampling=sampling, **HOW)
        context = bot.encode([*chat.turns, text], max_new_tokens=9)
        same = next((i for i, (a, b) in enumerate(zip(held, context[:-1], strict=False)) if a != b), len(held))
        assert chat.say(text) == expected
        assert starts[-1] == min(same, len(context) - 1)
        kept.append(starts[-1] - len(held) if held else None)
        held = [*context, *chat.ranking[0].tokens.tolist()[:-1]]
        numbers.append(chat.ranking[0].number)
    assert 0 in kept  # all that the winner had said was still there
    assert any(numbers)  # which was not the first of the proposed
    assert chat.retry() != chat.ranking[1].text
    assert chat.turns[-1] != expected
    chat.save(tmp_path / "chat.json")
    other = dg.Chat.load(tmp_path / "chat.json", bot)
    assert other.rank == RANK
    lines = (
        "Do you?\n/why\n/settings\n/settings rank off\n/settings\n/settings hypotheses 4\n/settings rank pmi beams 4\n"
    )
    monkeypatch.setattr("sys.stdin", io.StringIO(lines + "/settings rank best\n/undo\n/why\n"))
    Terminal(bot, other, name="x").run()
    out, err = capsys.readouterr()
    assert out == chat.say("Do you?") + "\n"
    assert chat.ranking[0].why in err
    assert err.count("the best of 4 by mmi, backward_weight 0.6") == 1
    assert "hypotheses goes with a rank" in err
    assert "rank and beams are two ways to a reply" in err
    assert "rank is by 'best'; give mmi" in err
    assert err.splitlines()[-1].startswith("the last reply was not chosen among others")


def test_what_does_not_go_with_a_ranked_chat(bot, tmp_path):
    with pytest.raises(ValueError, match="rank and beams are two ways"):
        bot.chat(rank="pmi", beams=2)
    with pytest.raises(ValueError, match="ranking by rpt needs a ranker"):
        bot.chat(rank="rpt")
    with pytest.raises(TypeError, match="a rank needs a Bot"):
        dg.Chat(LanguageModel(bot.params, bot.config, bot.tokenizer), rank="pmi")
    with pytest.raises(ChatError, match="the function by which its replies are ranked"):
        bot.chat(rank=lambda turns, texts: [0] * len(texts)).save(tmp_path / "x.json")
    assert bot.chat(rank="pmi").sampling == dg.PAPER
    assert bot.chat().sampling != dg.PAPER
    with pytest.raises(TypeError, match="rank"):
        bot.stream("Hi", rank="pmi")
