"""A bot with drafts says what it says without them, in every way to a reply, and tells how often they were right.

The draft model is the bot itself, whose drafts are all right, or one a little off, whose are so now and then.
"""

import dataclasses
import re

import fakes
import jax
import numpy as np
import pytest

import dialogpt_jax as dg
from dialogpt_jax.decoding import stream as streaming
from dialogpt_jax.evaluation.contexts import Context
from dialogpt_jax.evaluation.harness import answer, describe_run
from dialogpt_jax.evaluation.replies import EvaluationFile
from dialogpt_jax.evaluation.settings import Settings
from dialogpt_jax.replies.language_model import draft_by

BOT = fakes.tiny_bot()
NEAR = jax.tree.map(
    lambda x: x + 0.03 * np.random.default_rng(7).standard_normal(x.shape).astype(np.float32), BOT.params
)
SMALL = dataclasses.replace(BOT, params=NEAR)
DRAFTS = {"lookup": dg.Draft(), "itself": draft_by(BOT, BOT, 2)}
# Some that leave little room, so that rows end by themselves, by their limit, and by the last position.
DIALOGUES = [
    ["Hi!"],
    ["no", "Hello", "yes, a"],
    ["the rain " * 14],
    ["Hello, how are you?"],
    ["a a a"],
    ["rain", "no", "a"],
]
WARM = dg.Sampling(temperature=0.9, top_k=30, no_repeat_ngram=2, ngram_scope="own", stop_strings=["rain"])
HOW = {"sampling": WARM, "max_new_tokens": 18}
# Capital letters, each a token of its own: so a chat's reply has the same ids again in the next turn's context.
CAPITALS = [i for i in range(BOT.config.vocab_size) if BOT.tokenizer.decode([i]) in list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")]
CHATTY = dataclasses.replace(
    WARM, min_new_tokens=9, stop_strings=(), ngram_scope="reply",
    suppress_tokens=sorted({*range(BOT.config.vocab_size)} - {*CAPITALS, BOT.config.eos_token_id}),
)  # fmt: skip


def ids_of(answers):
    return [answer.tokens.tolist() for answer in answers]


@pytest.fixture(scope="module")
def plainly():
    found = BOT.answers(DIALOGUES, batch_size=4, **HOW)
    assert len({len(answer.tokens) for answer in found}) > 2
    assert all(answer.forwards is answer.accepted is None for answer in found)
    return found


@pytest.mark.long
@pytest.mark.parametrize("drafts", DRAFTS)
def test_all_ways_to_a_reply(drafts, plainly, monkeypatch):
    bot = dataclasses.replace(BOT, draft=DRAFTS[drafts])
    found = bot.answers(DIALOGUES, batch_size=4, **HOW)  # rows are given to other dialogues
    assert ids_of(found) == ids_of(plainly)
    for reply in found:
        assert reply.forwards + reply.accepted - len(reply.tokens) + 1 in (0, 1)
    several = bot.candidates(DIALOGUES[1], n=3, **HOW)  # on a shared prefix
    assert ids_of(several) == ids_of(BOT.candidates(DIALOGUES[1], n=3, **HOW))
    assert bot.reply(DIALOGUES[1], **HOW) == several[0].text
    ours, theirs = (one.chat(sampling=CHATTY, max_new_tokens=18) for one in (bot, BOT))
    starts, real = [], streaming.start

    def noted(params, config, request, *rest):
        starts.append(int(request.starts_B[0]))
        return real(params, config, request, *rest)

    monkeypatch.setattr(streaming, "start", noted)
    for text in ("Hi!", "yes, a", "no"):
        kept = len(ours._cached)
        assert ours.say(text) == theirs.say(text)
        assert starts[-2] == kept  # all that the caches hold, of the replies all but two tokens,
        if drafts == "itself":  # is read again by neither model, and right in both
            more = len(ours._cached) - ours.context_tokens + 1
            assert more > 7
            assert (ours.forwards, ours.accepted) == (-(-more // 3), more - more // 3)
    assert ours.retry() == theirs.retry()
    assert ours.turns == theirs.turns
    if drafts == "itself":  # so the draft model's cache is right in each way, too
        for reply in (*found, *several):
            more = len(reply.tokens) - 1
            assert (reply.forwards, reply.accepted) == (-(-more // 3), more - more // 3)
        assert max(reply.forwards for reply in found) > 1


@pytest.mark.long
def test_an_evaluation_s_file_has_what_was_accepted(tmp_path):
    bot = dataclasses.replace(BOT, draft=draft_by(BOT, SMALL, 2))
    contexts = [Context(turns, "yes", number) for number, turns in enumerate(DIALOGUES)]
    settings, path = Settings(WARM, max_new_tokens=18, rows=4), tmp_path / "out.jsonl"
    found = answer(bot, contexts, settings, out=path, devices=jax.devices()[:1])
    plain = answer(BOT, contexts, settings, devices=jax.devices()[:1])
    assert [reply.text for reply in found] == [reply.text for reply in plain]
    assert all(reply.forwards > 0 for reply in found)
    assert 0 < sum(reply.accepted for reply in found) < sum(2 * reply.forwards for reply in found)
    kept = EvaluationFile(path, describe_run(bot, contexts, settings), contexts).read()
    assert [kept[i] for i in range(len(contexts))] == found
    with pytest.raises(ValueError, match="draft"):  # other programs, whose replies may differ in half precision
        EvaluationFile(path, describe_run(BOT, contexts, settings), contexts).read()


def test_what_does_not_go_together_is_one_line():
    bot, chat = dataclasses.replace(BOT, draft=dg.Draft()), dataclasses.replace(BOT, draft=dg.Draft()).chat()
    other_end = dataclasses.replace(BOT, config=dataclasses.replace(BOT.config, eos_token_id=3))
    other_ids = dataclasses.replace(BOT, tokenizer=dg.Tokenizer.train([text[::-1] for text in fakes.SENTENCES], 320))
    calls = (
        (lambda: bot.reply("Hi!", beams=2), "beams goes without drafts"),
        (lambda: bot.answers(DIALOGUES, beams=2), "beams goes without drafts"),
        (lambda: setattr(chat, "beams", 2), "beams goes without drafts"),
        (lambda: bot.reply("Hi!", rank="pmi"), "a rank goes without drafts"),
        (lambda: setattr(chat, "rank", "likelihood"), "a rank goes without drafts"),
        (lambda: bot.reply("Hi!", penalty_alpha=0.6), "penalty_alpha goes without drafts"),
        (lambda: dg.load(draft=BOT), "another vocabulary (320 tokens, the model 8,192)"),
        (lambda: dg.load(draft="lookup", draft_tokens=16), "draft_tokens is 16"),
        (lambda: dg.load(draft_tokens=4), "draft_tokens is 4 and draft is not given"),
        (lambda: dg.load(draft=""), "draft is ''; give"),
        (lambda: dg.load(draft="lookupp"), "draft is 'lookupp'; did you mean 'lookup'? As a model's name: lookupp: "),
        (lambda: dg.load(draft="look up"), "draft is 'look up'; did you mean 'lookup'?"),
        (lambda: draft_by(BOT, other_end, 3), "another vocabulary (EOS is 3, the model's 319)"),
        (lambda: draft_by(BOT, other_ids, 3), "another vocabulary (id 256 is 'ni', the model's 'in')"),
        (lambda: draft_by(BOT, fakes.tiny_bot(n_positions=64), 3), None),
    )
    for call, words in calls:
        if words is None:
            with pytest.raises(ValueError, match="64 positions, the model 96"):
                dataclasses.replace(BOT, draft=call())
            continue
        with pytest.raises(ValueError, match=re.escape(words)) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(
        TypeError, match=r"draft is Draft.*; give 'lookup', a model's directory or name, or a LanguageModel"
    ):
        dg.load(draft=dg.Draft())
    with pytest.raises(TypeError, match="config of a Draft is dict; give a GPT2Config"):
        dg.Draft(BOT.params, {"n_layer": 2})
    assert "3 tokens looked up for each forward" in repr(bot)


def test_what_is_told_of_drafts_is_the_last_reply_s():
    chat = dataclasses.replace(BOT, draft=dg.Draft()).chat(**HOW)
    chat.say("the rain the rain")
    assert chat.forwards > 0
    pieces = chat.stream("yes, a")
    next(pieces)
    pieces.close()
    assert (chat.forwards, chat.accepted) == (0, 0)  # of a reply that was left, nobody has counted
    out = dg.Generated(*[np.ones((1, 2), int)] * 4, forwards=np.ones(1), accepted=np.ones(1))
    assert "1 draft accepted in 1 forward" in repr(out)
