"""A kept chat: whatever has happened to it, its next reply is that of a fresh prefill of the turns it still holds.

The tokens are compared exactly, in float32.
"""

import dataclasses
import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import fakes
import jax
import numpy as np
import pytest
from compile_counter import count_compilations

import dialogpt_jax as dg
from dialogpt_jax.chat.session import ChatError
from dialogpt_jax.data.formats import read_dialogues
from dialogpt_jax.decoding import stream as streaming
from dialogpt_jax.text.dialogue import TruncationWarning

LENGTH = 12
LINES = ("Hello", "how are you today?", "☕ and rain", "no", "reading the news this evening", "why?")


@pytest.fixture(scope="module")
def bot():
    return fakes.tiny_bot()


@pytest.fixture
def chat(bot):
    return bot.chat(seed=3, max_new_tokens=LENGTH)


def fresh(chat, text, bot, attempt=0):
    """The reply to `text` after the chat's turns, from nothing but the turns."""
    other = dg.Chat(bot, seed=chat.seed, sampling=chat.sampling, max_new_tokens=chat.max_new_tokens, turns=chat.turns)
    assert attempt == 0
    reply = other.say(text)
    assert reply == bot.reply(
        [*chat.turns, text], seed=chat.seed, sampling=chat.sampling, max_new_tokens=chat.max_new_tokens
    )
    return reply


def say_as_fresh(chat, text, bot):
    expected = fresh(chat, text, bot)
    before = chat.turns
    assert chat.say(text) == expected
    assert chat.turns == [*before, text, expected]
    return expected


@pytest.mark.long
def test_every_turn_equals_a_fresh_prefill_past_the_end_of_the_context(bot, chat):
    contexts, all_tokens = [], 0
    for k in range(20):
        text = f"{LINES[k % 6]} {k}"
        all_tokens += len(bot.tokenizer.encode(text)) + 1
        reply = say_as_fresh(chat, text, bot)
        all_tokens += len(bot.tokenizer.encode(reply)) + 1
        contexts.append(chat.context_tokens)
    assert all_tokens > 2 * bot.config.n_positions
    assert max(contexts) <= bot.config.n_positions - LENGTH
    assert any(later < sooner for sooner, later in itertools.pairwise(contexts))  # turns dropped out
    assert len(set(chat.turns[1::2])) > 15


def test_the_cache_is_used_and_not_only_right(bot, chat, monkeypatch):
    """Each turn feeds only what is new, until the window moves."""
    fed = []
    real = streaming.start

    def spy(params, config, request, cache, draft=None):
        start = int(request.starts_B[0])
        fed.append((start, int(request.settings.lengths_M[0]) - start))
        return real(params, config, request, cache)

    monkeypatch.setattr(streaming, "start", spy)
    for text in ("Hello", "no", "why?"):
        chat.say(text)
    assert fed[0][0] == 0
    assert all(start > 0 for start, _ in fed[1:])
    assert fed[2][1] < fed[2][0]


def test_undo_and_the_same_line_give_the_same_reply(bot, chat):
    chat.say("Hello")
    first = chat.say("no")
    assert chat.undo() == "no"
    assert len(chat.turns) == 2
    assert chat.say("no") == first
    chat.undo()
    say_as_fresh(chat, "another line", bot)
    for _ in range(2):
        chat.undo()
    assert chat.turns == []
    with pytest.raises(ChatError, match="nothing to undo"):
        chat.undo()
    say_as_fresh(chat, "Hello again", bot)


def test_retry_gives_another_reply_and_the_chat_goes_on_from_it(bot, chat):
    chat.say("Hello")
    replies = [chat.say("no"), *(chat.retry() for _ in range(4))]
    assert len(set(replies)) > 2
    assert chat.turns[-2:] == ["no", replies[-1]]
    assert len(chat.turns) == 4
    say_as_fresh(chat, "why?", bot)
    chat.undo()
    chat.undo()
    assert chat.say("no") == replies[0]  # tries are counted anew
    assert chat.retry() == replies[1]
    chat.reset()
    assert chat.turns == []
    with pytest.raises(ChatError, match="nothing to retry"):
        chat.retry()
    assert chat.say("no") == fresh(bot.chat(seed=3, max_new_tokens=LENGTH), "no", bot)


@pytest.mark.parametrize("how", ["closed", "dropped", "held", "not begun", "raised"])
def test_an_abandoned_stream_leaves_what_was_said(bot, chat, how):
    chat.say("Hello")
    whole = fresh(chat, "no", bot)
    pieces = chat.stream("no")
    said = "" if how == "not begun" else next(pieces) + next(pieces)
    if how == "closed":
        pieces.close()
    elif how in ("dropped", "not begun"):
        del pieces
    elif how == "raised":
        with pytest.raises(KeyError):
            pieces.throw(KeyError("the reader's"))
    elif how == "held":
        assert len(chat.turns) == 2  # still being said
    assert whole.startswith(said)
    assert whole != said
    after = chat.turns if how != "held" else [*chat.turns, "no", said]
    if how in ("not begun", "raised"):
        assert len(after) == 2
    else:
        assert after[2:] == ["no", said]
    if how == "held":
        expected = fresh(dg.Chat(bot, seed=3, max_new_tokens=LENGTH, turns=after), "why?", bot)
        assert chat.say("why?") == expected
        assert list(pieces) == []  # the old stream is over
    else:
        say_as_fresh(chat, "why?", bot)
    say_as_fresh(chat, "and now?", bot)


def test_an_abandoned_retry_replaces_the_reply_only_once_it_has_begun(bot, chat):
    first = chat.say("Hello")
    chat.retry_stream()
    assert chat.turns == ["Hello", first]
    pieces = chat.retry_stream()
    said = next(pieces)
    pieces.close()
    assert chat.turns == ["Hello", said]
    say_as_fresh(chat, "no", bot)


@pytest.mark.parametrize("where", ["start", "steps", "keep"])
def test_an_exception_takes_the_turn_back_and_the_next_reply_is_right(bot, chat, monkeypatch, where):
    chat.say("Hello")
    before = chat.turns
    real, calls = getattr(streaming, where), []

    def broken(*args, **named):
        calls.append(where)
        if len(calls) == (3 if where == "steps" else 1):
            real(*args, **named)  # as after a failure in the middle: what was donated is gone
            raise RuntimeError("the device went away")
        return real(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(streaming, where, broken)
        with pytest.raises(RuntimeError, match="went away"):
            chat.say("reading the news")
    assert chat.turns == before
    say_as_fresh(chat, "reading the news", bot)
    with monkeypatch.context() as patch:
        calls.clear()
        patch.setattr(streaming, where, broken)
        with pytest.raises(RuntimeError, match="went away"):
            chat.retry()
    assert len(chat.turns) == 4
    say_as_fresh(chat, "no", bot)


def test_bad_turns_leave_the_chat_as_it_was(bot, chat):
    chat.say("Hello")
    before = chat.turns
    for text in ("", "  \n", "\ud800", None, b"Hi", {"role": "user", "content": None}):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            chat.say(text)
        assert chat.turns == before
    say_as_fresh(chat, "no", bot)


def test_a_message_is_a_turn_too(bot, chat):
    expected = fresh(chat, "Hello", bot)
    assert chat.say({"role": "user", "content": "Hello"}) == expected
    assert chat.turns == ["Hello", expected]
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": expected}]
    again = dg.Chat(bot, seed=3, max_new_tokens=LENGTH, turns=messages)
    assert again.turns == chat.turns
    assert again.say("no") == chat.say("no")


def test_a_turn_that_is_too_long_warns_and_the_chat_goes_on(bot, chat):
    chat.say("Hello")
    with pytest.warns(TruncationWarning, match=r"the last turn has 301 tokens; its first 217 were left out"):
        assert chat.say("€" * 100)
    assert len(chat.turns) == 4
    say_as_fresh(chat, "no", bot)


@pytest.mark.long
def test_settings_may_change_between_turns(bot, chat):
    say_as_fresh(chat, "Hello", bot)
    own = {"no_repeat_ngram": 2, "ngram_scope": "own", "presence_penalty": 3.0, "penalty_scope": "own"}
    chat.sampling = dg.Sampling(temperature=0.9, top_k=20, **own)
    say_as_fresh(chat, "no", bot)
    chat.sampling = dataclasses.replace(chat.sampling, temperature=0.5, top_k=10)
    say_as_fresh(chat, "no", bot)
    chat.sampling, chat.max_new_tokens = dg.GREEDY, 30
    say_as_fresh(chat, "why?", bot)
    chat.max_new_tokens = 1000
    say_as_fresh(chat, "and now?", bot)


def test_finished_says_whether_the_reply_ended_by_itself(bot):
    chat = bot.chat(max_new_tokens=1)
    chat.say("Hello")
    assert not chat.finished
    chat.max_new_tokens = 80
    chat.say("no")
    assert chat.finished


def test_the_same_seed_repeats_a_conversation_and_another_does_not(bot):
    def talk(seed):
        chat = bot.chat(seed=seed, max_new_tokens=LENGTH)
        return [chat.say(text) for text in LINES[:3]]

    assert talk(1) == talk(1)
    assert talk(1) != talk(2)


def test_turns_are_a_copy(chat):
    chat.say("Hello")
    chat.turns.clear()
    assert len(chat.turns) == 2


def test_a_saved_chat_goes_on_as_it_would_have_gone_on(bot, chat, tmp_path):
    chat.sampling = dg.Sampling(temperature=0.8, top_k=30)
    chat.say("Hello ☕")
    chat.retry()
    file = tmp_path / "chat.json"
    chat.save(file)
    assert file.read_bytes().count(b"\n") == 1
    assert json.loads(file.read_text(encoding="utf-8"))["turns"] == chat.turns
    assert list(read_dialogues(file)) == [chat.turns]  # it is a line of training data
    assert [path.name for path in tmp_path.iterdir()] == ["chat.json"]
    loaded = dg.Chat.load(file, bot)
    assert (loaded.turns, loaded.seed, loaded.max_new_tokens) == (chat.turns, 3, LENGTH)
    assert vars(loaded.sampling) == vars(chat.sampling)
    assert loaded.retry() == chat.retry()
    assert [loaded.say(text) for text in LINES[:3]] == [chat.say(text) for text in LINES[:3]]
    chat.save(file)
    assert dg.Chat.load(str(file), bot).turns == chat.turns


GOOD = {
    "format": "dialogpt_jax chat 1",
    "turns": ["Hi", "Hello"],
    "seed": 0,
    "attempt": 0,
    "max_new_tokens": 12,
    "sampling": {"temperature": 0.7},
}


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'"text"',
        b"null",
        b"[" * 100_000,
        {},
        {**GOOD, "format": "another"},
        {**GOOD, "turns": "Hi"},
        {**GOOD, "turns": ["Hi", None]},
        {**GOOD, "turns": ["Hi", "\ud800"]},
        {**GOOD, "seed": -1},
        {**GOOD, "seed": 2**70},
        {**GOOD, "seed": None},
        {**GOOD, "attempt": 2**40},
        {**GOOD, "max_new_tokens": 0},
        {**GOOD, "max_new_tokens": True},
        {**GOOD, "sampling": {"temperature": -1}},
        {**GOOD, "sampling": {"heat": 1}},
        {**GOOD, "sampling": {"temperature": [1.0]}},
        {**GOOD, "sampling": None},
    ],
)
def test_a_broken_file_is_one_line_that_names_it(bot, tmp_path, broken):
    file = tmp_path / "chat.json"
    file.write_bytes(broken if isinstance(broken, bytes) else json.dumps(broken).encode())
    with pytest.raises(ChatError, match=r"chat\.json: not a saved chat") as caught:
        dg.Chat.load(file, bot)
    assert "\n" not in str(caught.value)


def test_a_chat_that_the_bot_began_has_nothing_to_undo_and_comes_back_from_its_file(bot, tmp_path):
    chat = dg.Chat(bot, seed=3, max_new_tokens=LENGTH, turns=["Hi, I am Pip"])
    for call in (chat.undo, chat.retry):
        with pytest.raises(ChatError, match=r"nothing to (undo|retry): the chat has no reply yet; say something first"):
            call()
    assert chat.say("no") == bot.reply(["Hi, I am Pip", "no"], seed=3, max_new_tokens=LENGTH)
    chat.save(tmp_path / "chat.json")
    assert dg.Chat.load(tmp_path / "chat.json", bot).turns == chat.turns
    assert chat.undo() == "no"
    assert chat.turns == ["Hi, I am Pip"]


def test_another_thread_is_told_that_the_chat_is_busy(bot, chat):
    def elsewhere(call):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(call).result()

    expected = fresh(chat, "Hello", bot)
    pieces = chat.stream("Hello")
    said = next(pieces)
    for call in (
        lambda: chat.say("no"),
        lambda: chat.stream("no"),
        chat.undo,
        chat.reset,
        lambda: chat.save("chat.json"),
    ):
        with pytest.raises(
            ChatError, match="the chat is replying in another thread; wait for the end of that reply, or"
        ):
            elsewhere(call)
    assert said + "".join(pieces) == expected  # untouched by the others
    assert elsewhere(lambda: chat.say("no")) == chat.turns[-1]  # it is free again
    assert chat.turns[:3] == ["Hello", expected, "no"]
    say_as_fresh(chat, "why?", bot)


def test_threads_that_speak_at_once_each_get_a_turn_or_an_error(bot, chat):
    def speak(k):
        try:
            return f"Hello {k}", chat.say(f"Hello {k}")
        except ChatError:
            return None

    with ThreadPoolExecutor(4) as pool:
        found = [turn for turn in pool.map(speak, range(12)) if turn]
    assert found
    pairs = list(zip(chat.turns[::2], chat.turns[1::2], strict=True))
    assert sorted(pairs) == sorted(found)
    say_as_fresh(chat, "why?", bot)


def test_a_chat_shows_its_turns_and_not_the_model(bot):
    turns = ["Hi", "Hello <b>", "x" * 5000, "\x1b[31mred"] * 4
    chat = dg.Chat(bot, turns=turns)
    lines = repr(chat).splitlines()
    assert lines[0] == "Chat(16 turns; seed 0, temperature 0.3, top_k 50, top_p 0.9, no_repeat_ngram 3)"
    assert lines[1] == "  … 4 turns before"
    assert lines[-2:] == [f"  user: '{'x' * 37}...{'x' * 38}'", "  bot: '\\x1b[31mred'"]
    assert len(lines) == 14
    table = chat._repr_html_()
    assert "<b>" not in table
    assert table.count("<tr>") == 16


def test_a_good_file_by_hand_loads(bot, tmp_path):
    file = tmp_path / "chat.json"
    file.write_text(json.dumps(GOOD))
    assert dg.Chat.load(file, bot).say("no")
    for old, scope in ((True, "context"), (False, "reply")):  # as 0.1.0 wrote it
        file.write_text(json.dumps({**GOOD, "sampling": {"repetition_penalty": 1.2, "penalize_context": old}}))
        assert dg.Chat.load(file, bot).sampling.penalty_scope == scope


def test_lists_of_a_sampling_are_saved_and_functions_are_refused(bot, tmp_path):
    lists = {
        "logit_bias": {5: -1.0, (3, 4): -np.inf},
        "bad_words": [7, (8, 9)],
        "forced_tokens": [5],
        "forced_end": True,
    }
    chat = dg.Chat(bot, seed=3, max_new_tokens=LENGTH, sampling=dg.Sampling(**lists))
    chat.save(tmp_path / "chat.json")
    assert vars(dg.Chat.load(tmp_path / "chat.json", bot).sampling) == vars(chat.sampling)
    chat.sampling = dg.Sampling(processors=[lambda logits_MV, _: logits_MV])
    with pytest.raises(ChatError, match="a file cannot hold the functions of its sampling"):
        chat.save(tmp_path / "other.json")


def test_a_chat_that_cannot_be_written_leaves_the_old_file(bot, chat, tmp_path):
    chat.say("Hello")
    with pytest.raises(OSError, match="No such file") as caught:
        chat.save(tmp_path / "nowhere" / "chat.json")
    assert caught.value.filename == str(tmp_path / "nowhere" / "chat.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        chat.save(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    with pytest.raises(OSError, match="No such file"):
        dg.Chat.load(tmp_path / "missing.json", bot)


def test_twenty_turns_compile_few_programs_and_the_later_ones_none():
    """The context fills twice. A config of its own, so that nothing is compiled yet."""
    bot = fakes.tiny_bot(n_positions=104)
    chat = bot.chat(max_new_tokens=LENGTH)
    jax.clear_caches()
    tokens = 0
    with count_compilations() as sooner:
        for k in range(10):
            text = f"{LINES[k % 6]} {k}"
            tokens += len(bot.tokenizer.encode(text + chat.say(text)))
    with count_compilations() as later:
        for k in range(10, 20):
            text = f"{LINES[k % 6]} {k}"
            tokens += len(bot.tokenizer.encode(text + chat.say(text)))
            numbers = {"temperature": 0.5 + k / 40, "top_k": 20 + k, "top_p": 0.5 + k / 50, "no_repeat_ngram": k}
            chat.sampling = dataclasses.replace(chat.sampling, **numbers)
    assert tokens > 2 * bot.config.n_positions
    assert 3 <= len(sooner) <= 8
    assert len(later) == 0


class Prefilled(Exception):
    """Stops a reply where its prefill would begin."""


@pytest.mark.parametrize(("tokens", "width"), [(3, 32), (32, 32), (33, 64), (65, 128), (150, 160)])
def test_a_turns_tokens_are_padded_to_few_widths_and_to_less_than_twice_as_many(monkeypatch, tokens, width):
    bot = fakes.tiny_bot(n_positions=160)
    widths = []

    def start(params, config, request, cache, draft=None):
        widths.append(request.tokens_BT.shape[1])
        raise Prefilled

    monkeypatch.setattr(streaming, "start", start)
    text = "a" * (tokens - 1)
    while len(bot.encode([text], max_new_tokens=4)) < tokens:  # some of them merge
        text += "b" if text.endswith("a") else "a"
    with pytest.raises(Prefilled):
        bot.chat(max_new_tokens=4).say(text)
    assert widths == [width]


def test_saving_touches_no_file_but_its_own(bot, tmp_path):
    """Nor does what another process is writing beside the same place."""
    other = tmp_path / "chat.json.part"
    other.write_text("somebody's")
    dg.Chat(bot, turns=["Hi", "Ho"]).save(tmp_path / "chat.json")
    assert other.read_text() == "somebody's"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["chat.json", "chat.json.part"]
