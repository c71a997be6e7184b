"""Searches of a bot and of a chat: alone, in a batch and in a kept chat a row gets the same; a mistake is one line."""

import dataclasses
import io
import json
import re
import sys

import fakes
import numpy as np
import pytest

import dialogpt_jax as dg
from dialogpt_jax.chat import session
from dialogpt_jax.chat.terminal import Terminal
from dialogpt_jax.cli.main import main
from dialogpt_jax.decoding.beam_options import BeamOptions

HOW = {"beams": 3, "length_penalty": 0.8, "early_stopping": "never", "max_new_tokens": 8}
LINES = ("Hello", "no", "why?")


@pytest.fixture(scope="module")
def bot():
    return fakes.tiny_bot()


@pytest.mark.long
def test_replies_with_beams_are_those_of_each_dialogue_alone(bot):
    dialogues = [["Hello"], ["no", "why?", "Hello"], ["reading the news this evening, and the rain " * 2], ["no"]]
    done = []
    found = bot.answers(dialogues, **HOW, batch_size=3, progress=lambda *counts: done.append(counts))
    assert done == [(3, 4), (4, 4)]
    assert len({len(answer.tokens) for answer in found}) > 1
    for dialogue, answer in zip(dialogues, found, strict=True):
        alone = bot.candidates(dialogue, n=1, **HOW)[0]
        assert answer.text == alone.text
        assert answer.tokens.tolist() == alone.tokens.tolist()
        assert answer.finished == alone.finished
    assert bot.replies(dialogues, **HOW, batch_size=3) == [answer.text for answer in found]
    assert bot.replies([], beams=3) == []
    blocked = dg.Sampling(0, suppress_tokens=list(range(320)))
    with pytest.raises(ValueError, match="dialogue 3: no reply is possible"):
        bot.replies(dialogues, **HOW, batch_size=3, sampling=blocked)


def test_a_chat_with_beams_answers_whole_and_keeps_its_cache(bot, monkeypatch):
    starts = []

    def noted(params, config, request, rules, cache):
        starts.append(int(request.starts_B[0]))
        return program(params, config, request, rules, cache)

    program = session.beam_program_behind
    monkeypatch.setattr(session, "beam_program_behind", noted)
    chat, turns = bot.chat(**HOW), []
    for text in LINES:
        expected = bot.reply([*turns, text], **HOW)
        assert list(chat.stream(text)) == ([expected] if expected else [])
        turns += [text, expected]
        assert chat.turns == turns
        assert chat.finished == bot.candidates(turns[:-1], n=1, **HOW)[0].finished
    contexts = [len(bot.encode(turns[:i], max_new_tokens=8)) for i in (1, 3, 5)]
    assert starts == [0, contexts[0], contexts[1]]  # all of the last context, and what was said since is new
    assert chat.undo() == LINES[2]
    assert chat.say(LINES[2]) == turns[-1]


@pytest.mark.long
def test_beams_of_a_chat_come_and_go_and_are_saved(bot, tmp_path):
    chat = bot.chat(seed=3, max_new_tokens=8)
    chat.say("Hello")
    chat.beams = 3
    chat.beams = dataclasses.replace(chat.beams, length_penalty=0.8, early_stopping="never")
    chat.sampling = dg.GREEDY
    assert chat.say("no") == bot.reply([*chat.turns[:2], "no"], **HOW)
    assert "greedy, 3 beams, length_penalty 0.8, early_stopping never" in repr(chat)
    chat.save(tmp_path / "chat.json")
    again = dg.Chat.load(tmp_path / "chat.json", bot)
    assert again.beams == BeamOptions(3, 0.8, "never")
    assert again.say("why?") == chat.say("why?")
    chat.beams = None
    assert chat.say("no") == bot.reply([*chat.turns[:-2], "no"], sampling=dg.GREEDY, max_new_tokens=8)
    (tmp_path / "chat.json").write_text((tmp_path / "chat.json").read_text().replace('"beams": 3', '"beams": "3"'))
    with pytest.raises(dg.ChatError, match="not a saved chat"):
        dg.Chat.load(tmp_path / "chat.json", bot)


def test_beams_are_typed_in_a_chat(bot, monkeypatch, capsys):
    settings = ("length_penalty 1", "beams 3", "length_penalty 0.8", "early_stopping never")
    typed = "".join(f"/settings {line}\n" for line in settings) + "Hello\n"
    wrong = {
        "beams 200": "beams is 200; a vocabulary of 320 has room for 160",
        "beams 0": "beams is 0; it must be a whole number",
        "beams few": "beams: 'few' is not a whole number",
        "beam_groups 2": "beams is 3 and beam_groups 2; give a number of groups that divides it",
        "early_stopping soon": "early_stopping: 'soon' is none of no, yes, never",
        "diversity_penalty 1": "diversity_penalty goes with beam_groups over 1",
    }
    typed += "".join(f"/settings {line}\n" for line in wrong) + "/settings beams none\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    terminal = Terminal(bot, bot.chat(max_new_tokens=8), name="fake")
    assert terminal.run() == 0
    out, err = capsys.readouterr()
    assert terminal.chat.turns == ["Hello", bot.reply("Hello", **HOW)]
    assert out.count("\n") == 1
    told = err.splitlines()
    assert told[0] == "length_penalty goes with beams; give both, such as beams=4, or leave it out"
    assert told[3].startswith("greedy, 3 beams, length_penalty 0.8, early_stopping never, max_new_tokens 8, seed 0")
    for line, words in zip(told[4:-1], wrong.values(), strict=True):
        assert line.startswith(words)
    assert told[-1].startswith("temperature 0.3, top_k 50")


def test_a_contrastive_reply(bot):
    how = {"max_new_tokens": 8}
    found = {bot.reply("Hello", penalty_alpha=alpha, **how) for alpha in (0.0, 0.6)}
    assert len(found) == 2
    assert bot.reply("Hello", sampling=dg.GREEDY, **how) in found
    context = bot.encode("Hello")
    out = dg.contrastive_search(bot.params, bot.config, [context], [len(context)], **how)
    assert bot.tokenizer.decode(np.asarray(out.tokens)[0, : out.lengths[0]]) == bot.reply(
        "Hello", penalty_alpha=0.6, **how
    )


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        ("bot.stream('Hi', beams=4)", TypeError, "unexpected keyword argument 'beams'"),
        ("bot.replies([['Hi']], beams=161)", ValueError, "beams is 161; a vocabulary of 320 has room for 160"),
        ("bot.replies([['Hi']], beams=True)", ValueError, "beams is True; it must be a whole number"),
        ("bot.replies([['Hi']], beams=3, beam_groups=2)", ValueError, "beams is 3 and beam_groups 2; give a number of"),
        ("bot.answers([['Hi']], length_penalty=0.8)", ValueError, "length_penalty goes with beams; give both"),
        ("bot.answers([['Hi']], beams=2, beam=3)", TypeError, "beam is no argument; with beams there are length_penalty,"),
        ("bot.answers([['Hi']], beams=2, beam_groups=2, sampling=dg.PAPER)", ValueError, "and this sampling draws"),
        ("bot.candidates('Hi', 5, beams=4)", ValueError, "n_best is 5, and there are 4 beams; give at most as many"),
        ("bot.chat(beams=0)", ValueError, "beams is 0"),
        ("bot.chat(beams=161)", ValueError, "beams is 161; a vocabulary of 320 has room for 160"),
        ("bot.chat(beams=2, early_stopping=1)", ValueError, "early_stopping is 1; give True, False or 'never'"),
        ("bot.chat(length_penalty=2)", ValueError, "length_penalty goes with beams"),
        ("bot.chat(beams=2, beam_groups=2, sampling=dg.PAPER).say('Hi')", ValueError, "and this sampling draws"),
        ("setattr(bot.chat(), 'beams', 'many')", ValueError, "beams is 'many'; it must be a whole number"),
        ("bot.reply('Hi', beams=2, diversity_penalty=0.5)", ValueError, "diversity_penalty goes with beam_groups over 1"),
        ("bot.reply('Hi', penalty_alpha=2)", ValueError, "penalty_alpha is 2; it must be a finite number from 0 to 1"),
        ("bot.reply('Hi', penalty_alpha=0.6, top_k=0)", ValueError, "top_k is 0; it must be a whole number from 1 to 320"),
        ("bot.reply('Hi', top_k=4)", ValueError, "top_k goes with penalty_alpha; to draw among the k best, give sampling="),
        ("bot.reply('Hi', beams=2, penalty_alpha=0.6)", ValueError, "beams and penalty_alpha are two ways to a reply"),
        ("bot.reply('Hi', penalty_alpha=0.6, beam_groups=2)", ValueError, "beam_groups goes with beams"),
        ("bot.reply('Hi', penalty_alpha=0.6, sampling=dg.PAPER)", ValueError, "contrastive search draws nothing"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line(bot, call, error, said):
    with pytest.raises(error, match=re.escape(said)) as caught:
        eval(call, {"bot": bot, "dg": dg})
    assert "\n" not in str(caught.value)


def test_contrastive_search_of_the_command(bot, tmp_path, capsys):
    """--top-k is the search's own; a file's replies are those of each alone, in batches of any size."""
    bot.save(tmp_path / "model")
    model = ["--no-compilation-cache", "--model", str(tmp_path / "model"), "--max-new-tokens", "8"]
    how = {"penalty_alpha": 0.9, "top_k": 12, "max_new_tokens": 8}
    flags = ["--penalty-alpha", "0.9", "--top-k", "12", *model]
    expected = [bot.reply(line, **how) for line in LINES]
    assert expected != [bot.reply(line, penalty_alpha=0.9, max_new_tokens=8) for line in LINES]
    assert main(["reply", *flags, LINES[0]]) == 0
    assert capsys.readouterr().out == expected[0] + "\n"
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"turns": [line, line]}) + "\n" for line in LINES))
    assert main(["eval", *flags, "--data", str(data), "--batch-size", "2", "--bootstrap", "0", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown["systems"]) == ["contrastive"]
    assert (shown["settings"]["penalty_alpha"], shown["settings"]["top_k"]) == (0.9, 12)
    data.write_text("".join(json.dumps({"turns": [line]}) + "\n" for line in LINES))
    out = ["--out", str(tmp_path / "out.jsonl")]
    assert main(["reply", *flags, "--data", str(data), *out]) == 0
    kept = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["reply"] for line in kept] == expected
    assert main(["reply", *flags[:2], "--top-k", "4", *model, "--data", str(data), *out]) == 1
    assert "replies of another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reply", "--rank", "mmi", "Hi"], "--penalty-alpha and --rank are two ways to a reply"),
        (["reply", "--beams", "2", "Hi"], "--penalty-alpha and --beams are two ways to a reply"),
        (["reply", "--temperature", "1", "Hi"], "--penalty-alpha draws nothing; leave --temperature out"),
        (["reply", "--json", "Hi"], "--penalty-alpha gives one reply, as text; with --data FILE, JSON lines"),
        (["chat"], "--penalty-alpha is for `dialogpt reply` and `dialogpt eval`; a chat takes --beams or --rank"),
        (["reply", "--top-k", "0", "Hi"], "top_k is 0; it must be a whole number"),
        (["eval", "--hypotheses", "x"], "--penalty-alpha needs --data"),
        (["eval", "--decode", "topk", "--data", __file__], "--penalty-alpha draws nothing; leave --decode topk out"),
    ],
)
def test_contrastive_words_that_do_not_go_together(words, said, capsys):
    assert main([words[0], "--penalty-alpha", "0.6", *words[1:]]) in (1, 2)
    assert said in capsys.readouterr().err.splitlines()[-1]
