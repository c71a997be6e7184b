"""A conversation that keeps its turns, and the cache between them: texts in, replies out.

The cache is nothing but a shortcut. `_cached` says which ids its slots hold; a turn prefills from the first id that differs
from the context it wants. So undo, retry, a dropped window, an abandoned stream and a loaded file need no case of their
own, and every reply equals that of a fresh prefill.
"""

import contextlib
import html
import inspect
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, Unpack

import numpy as np

from dialogpt_jax.arguments import shown
from dialogpt_jax.cache import cache_dtype
from dialogpt_jax.chat.pieces import pieces_of
from dialogpt_jax.chat.saved_chat import ChatError, SavedChat, read_chat, write_chat
from dialogpt_jax.decoding import stream as streaming
from dialogpt_jax.decoding.beam_options import BeamOptions, BeamWords, beam_options, check_room, describe_beams
from dialogpt_jax.decoding.beam_search import beam_program_behind, check_groups, rules_of
from dialogpt_jax.decoding.generate import draft_scopes
from dialogpt_jax.decoding.request import Request, assemble, bucket_of
from dialogpt_jax.decoding.sampling import Sampling, describe_sampling
from dialogpt_jax.errors import counted
from dialogpt_jax.ranking.rank_options import Rank, RankFunction, as_rank, describe_rank
from dialogpt_jax.ranking.ranking_model import RankingModel
from dialogpt_jax.ranking.report import Ranking
from dialogpt_jax.replies.candidates import candidate_of, on_one_line
from dialogpt_jax.replies.keys import row_keys
from dialogpt_jax.replies.language_model import LanguageModel, refuse_draft
from dialogpt_jax.replies.settings import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_SEED,
    checked_length,
    checked_sampling,
    sampling_for,
    seed_or_drawn,
)
from dialogpt_jax.text.dialogue import Turn, Turns, as_turns, texts_of

_SHOWN_TURNS = 12
SMALLEST_CACHE = 128  # slots; a longer context takes the next power of two, for attention reads them all
# New tokens of a turn, padded to this or the next power of two. GPT-2 small on one core of a Zen 5, float32: 16 tokens take
# 34 ms, 32 take 42, 64 take 72, 128 take 126, and a program 2.3 s to compile. So most turns share one.
SMALLEST_PREFILL = 32
_BEGINNING = threading.Lock()  # held while a thread looks whether a chat is free, and takes it
_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "seed": seed_or_drawn,
    "sampling": checked_sampling,
    "max_new_tokens": checked_length,
    "beams": lambda beams: beam_options(beams, {}),
    "rank": lambda rank: None if rank is None else as_rank(rank),
}


class Chat:
    """A conversation with a bot.

    The turns alternate and the next one is the user's. A reply is a function of the turns, the seed and the number of
    tries, so the same line after `undo` gets the same reply, and `retry` another. One thread at a time: what another calls
    while a reply is being made is a `ChatError`.

    Args:
      model: a `Bot`, or any `LanguageModel`.
      seed, sampling, max_new_tokens, beams: as for a `Bot`, with the words that go with `beams`; one number each, since
        there is one dialogue. With beams a reply comes whole, streamed or not.
      rank: as for `Bot.reply`: several replies are made, and the best one comes, whole.
      turns: what was said before, as texts or messages.

    Attributes:
      seed, sampling, max_new_tokens: as given; they may be set between turns.
      beams: `None`, or how beams are searched; it may be set to a number of them.
      rank: `None`, or how one of several replies is chosen; it may be set.
      ranking: of a ranked reply, the last one's `Ranking`: what was proposed and why it won.
      finished: whether the last reply ended by itself.
      context_tokens: how many tokens of context the last reply had.
      forwards, accepted: of a bot with a draft: how often the model read drafts for the last reply, and how many of these
        became tokens; 0 before the first, and of a reply that was left before its end.

    Example:
      >>> chat = bot.chat(seed=7)
      >>> chat.say("Hi!")
      '...'
      >>> chat.turns
      ['Hi!', '...']
      >>> chat.undo()
      'Hi!'
    """

    seed: int
    sampling: Sampling
    max_new_tokens: int
    beams: Any = None  # a number comes back as `BeamOptions`
    rank: Any = None  # a rule comes back as `Rank`

    def __init__(
        self,
        model: LanguageModel,
        *,
        seed: int | None = DEFAULT_SEED,
        sampling: Sampling | None = None,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        turns: Turns = (),
        beams: int | BeamOptions | None = None,
        rank: str | RankFunction | Rank | None = None,
        **search: Unpack[BeamWords],
    ):
        if not isinstance(model, LanguageModel):
            raise TypeError(f"a chat is with a Bot; got {shown(model)}; `load` gives one")
        self._model, self._turns, self._attempt = model, texts_of(turns), 0
        self.beams = beam_options(beams, search)
        self.rank = rank
        self.sampling = sampling_for(sampling, self.beams, self.rank)
        self.seed, self.max_new_tokens = seed_or_drawn(seed), max_new_tokens
        self.finished, self.context_tokens = True, 0
        self.forwards, self.accepted = 0, 0
        self.ranking: Ranking | None = None
        self._cache: Any = None
        self._cached: list[int] = []
        self._ends_at: int | None = None  # the tokens at which the coming reply ends by itself, once known
        # Weak, so that a stream which its reader drops is closed at once, and recorded.
        self._running: Callable[[], Generator[str, None, None] | None] = lambda: None
        self._thread = 0  # the thread that began the running reply

    def __setattr__(self, name: str, value: Any) -> None:
        value = _CHECKS[name](value) if name in _CHECKS else value
        if name == "beams" and value is not None:
            refuse_draft(self._model, "beams")
            check_room(value, self._model.config.vocab_size)
        if name == "rank" and value is not None:
            if not isinstance(self._model, RankingModel):
                raise TypeError(f"a rank needs a Bot, which proposes several replies; got {shown(self._model)}")
            refuse_draft(self._model, "a rank")
            self._model.backward_of(value)  # which may be missing
        others = {"beams": self.rank, "rank": self.beams}
        if value is not None and others.get(name) is not None:
            raise ValueError("rank and beams are two ways to a reply; give one of them")
        super().__setattr__(name, value)

    @property
    def turns(self) -> list[str]:
        """The texts so far, the user's first; a copy. A reply that is still being streamed is not among them."""
        return list(self._turns)

    def say(self, text: Turn) -> str:
        """The reply to the next turn."""
        return "".join(self.stream(text))

    def stream(self, text: Turn) -> Generator[str, None, None]:
        """The reply in pieces. Left before its end, what was said by then is the reply; an error takes the turn back."""
        with self._free():
            said: list[Any] = [*self._turns, text]
            return self._run(self._turns, as_turns(said)[-1], attempt=0)

    def undo(self) -> str:
        """Takes the last turn and its reply back; the user's text."""
        with self._free():
            text = self._last_answered("undo")
            self._turns, self._attempt, self.ranking = self._turns[:-2], 0, None
            return text

    def retry(self) -> str:
        """Another reply to the last turn."""
        return "".join(self.retry_stream())

    def retry_stream(self) -> Generator[str, None, None]:
        """`retry` in pieces; the old reply stays until the new one has begun to be said."""
        with self._free():
            text = self._last_answered("retry")
            return self._run(self._turns[:-2], text, attempt=self._attempt + 1)

    def reset(self) -> None:
        """Forgets all turns."""
        with self._free():
            self._turns, self._attempt, self.ranking = [], 0, None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes turns, seed and settings as one JSON object; its `turns` are a line of training data."""
        with self._free():
            saved = SavedChat(self._turns, self.seed, self._attempt, self.max_new_tokens, self.sampling, self.beams)
            saved = saved._replace(rank=self.rank)
        write_chat(path, saved)

    @classmethod
    def load(cls, path: str | os.PathLike[str] | SavedChat, model: LanguageModel) -> "Chat":
        """The chat of a file, or of what `read_chat` made of one, to go on as it would have gone on.

        Raises:
          ChatError: the file holds no chat.
        """
        saved = path if isinstance(path, SavedChat) else read_chat(path)
        how: dict[str, Any] = saved._asdict()
        attempt = how.pop("attempt")
        chat = cls(model, **how)
        chat._attempt = attempt
        return chat

    def __repr__(self) -> str:
        first = max(len(self._turns) - _SHOWN_TURNS, 0)
        lines = [f"Chat({counted(len(self._turns), 'turns')}; seed {self.seed}, {self.described()})"]
        lines += [f"  … {counted(first, 'turns')} before"] if first else []
        return "\n".join([*lines, *(f"  {who}: {on_one_line(text)}" for who, text in self._said()[first:])])

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><th>{who}</th><td style='text-align:left'>{html.escape(text)}</td></tr>" for who, text in self._said()
        )
        return f"<table>{''.join(rows)}</table>"

    def described(self) -> str:
        """How replies are made, for a person."""
        searched = "" if self.beams is None else f", {describe_beams(self.beams)}"
        ranked = "" if self.rank is None else f", {describe_rank(self.rank)}"
        return f"{describe_sampling(self.sampling)}{searched}{ranked}"

    def _said(self) -> list[tuple[str, str]]:
        """Who said what: the last turn is the bot's, the one before it the user's, and so on back."""
        last = len(self._turns) - 1
        return [("bot" if (last - i) % 2 == 0 else "user", text) for i, text in enumerate(self._turns)]

    def _last_answered(self, what: str) -> str:
        """The user's text before the last reply."""
        if len(self._turns) < 2:
            raise ChatError(f"nothing to {what}: the chat has no reply yet; say something first")
        return self._turns[-2]

    @contextlib.contextmanager
    def _free(self) -> Iterator[None]:
        """The chat with no reply on its way. A stream that this thread still holds ends: what it said is a turn.

        Raises:
          ChatError: another thread's reply is not at its end.
        """
        with _BEGINNING:
            running = self._running()
            state = inspect.GEN_CLOSED if running is None else inspect.getgeneratorstate(running)
            if running is not None and state != inspect.GEN_CLOSED:
                if state == inspect.GEN_RUNNING or self._thread != threading.get_ident():
                    raise ChatError(
                        "the chat is replying in another thread; wait for the end of that reply, or give each thread a "
                        "chat of its own"
                    )
                running.close()
            yield

    def _run(self, before: list[str], text: str, *, attempt: int) -> Generator[str, None, None]:
        pieces = self._stream(before, text, attempt)
        self._running, self._thread = weakref.ref(pieces), threading.get_ident()
        return pieces

    def _stream(self, before: list[str], text: str, attempt: int) -> Generator[str, None, None]:
        tokenizer = self._model.tokenizer
        context = self._model.encode([*before, text], max_new_tokens=self.max_new_tokens)
        keys_B = row_keys(self.seed, [0], [len(before) + 1], [attempt])
        self.context_tokens = len(context)
        ids: list[int] = []
        said, record, safety = "", False, getattr(self._model, "safety", None)
        held_back, self._ends_at, self.ranking, self.forwards, self.accepted = False, None, None, 0, 0
        pieces: Iterable[str]
        try:
            if self.rank is not None:
                pieces = [self._ranked(context, keys_B, [*before, text], attempt, ids)]
            else:
                tokens = self._tokens(context, keys_B) if self.beams is None else self._best(context, keys_B)
                pieces = pieces_of(tokens, tokenizer, ids=ids, safety=safety)
            for piece in pieces if self.beams is None else ["".join(pieces)]:
                said += piece
                yield piece
            record, held_back = True, safety is not None and said != tokenizer.decode(ids)
        except GeneratorExit:
            record = record or bool(said)
            raise
        finally:
            if record:
                self.finished = held_back or len(ids) == self._ends_at
                self._turns, self._attempt = [*before, text, said], attempt

    def _begun(self, context: list[int], keys_B: Any, candidates: int) -> tuple[Request, Any]:
        """What to ask for, and the cache, taken out: it holds the context from its start on, as far as it can be kept."""
        params, config = self._model.params, self._model.config
        same = streaming.shared_length(self._cached, context[:-1])
        cache, self._cache, self._cached = self._cache, None, []
        slots = bucket_of(max(len(context) + self.max_new_tokens, SMALLEST_CACHE), config.n_positions)
        if cache is None:
            same, cache = 0, streaming.empty_cache(config, 1, slots, cache_dtype(params), self._model.draft)
        elif cache.num_slots < slots:
            cache = streaming.with_slots(cache, slots=slots)
        request = assemble(
            config,
            [context],
            [len(context)],
            sampling=self._model.with_ids(self.sampling),
            max_new_tokens=self.max_new_tokens,
            keys=keys_B,
            candidates=candidates,
            starts_B=[same],
            width=bucket_of(max(len(context) - same, SMALLEST_PREFILL), config.n_positions),
            history_width=cache.num_slots,
            stops=self._model.stops(self.sampling),
            scopes=draft_scopes(self._model.draft, config),
        )
        return request, cache

    def _best(self, context: list[int], keys_B: Any) -> list[int]:
        """The ids of the best reply that a search with beams finds. The cache comes back with the context, without them."""
        check_groups(self.beams, self.sampling)
        params, config = self._model.params, self._model.config
        request, cache = self._begun(context, keys_B, self.beams.beams)
        out, self._cache = beam_program_behind(params, config, request, rules_of(self.beams, 1), cache)
        self._cached = context
        best = [np.asarray(x)[0, 0] for x in (out.tokens, out.logprobs, out.lengths, out.finished)]
        found = candidate_of(self._model.tokenizer, *best)
        self._ends_at = len(found.tokens) if found.finished else None
        return found.tokens.tolist()

    def _ranked(self, context: list[int], keys_B: Any, turns: list[str], attempt: int, ids: list[int]) -> str:
        """The best of several replies; its ids go into `ids`. The cache goes on from it by one write."""
        config, rank = self._model.config, self.rank
        request, cache = self._begun(context, keys_B, rank.hypotheses)
        state, _ = streaming.start(self._model.params, config, request, cache)
        state, said = streaming.steps(self._model.params, config, state, self.max_new_tokens, request.processors)
        replies, finished, _ = streaming.read(said)
        assert isinstance(self._model, RankingModel)
        senses, logprobs_MR = self._model.senses(rank, state.cache, state.counts_M), np.asarray(state.logprobs_MR)
        proposed = [
            candidate_of(self._model.tokenizer, np.array(own, np.int32), logprobs_R, len(own), ended, sense=sense)
            for own, logprobs_R, ended, sense in zip(replies, logprobs_MR, finished, senses, strict=True)
        ]
        self.ranking = self._model.order(turns, proposed, rank, seed=self.seed, attempt=attempt)
        best = self.ranking[0]
        ids += best.tokens.tolist()
        self._ends_at = len(ids) if best.finished else None
        self._cache = streaming.keep(config, state, np.array([best.number]))
        self._cached = (context + ids[:-1])[: self._cache.num_slots]
        return self.ranking.reply

    def _tokens(self, context: list[int], keys_B: Any) -> Iterator[int]:
        """The reply's ids one by one. The cache is taken out, and put back when a call has returned it."""
        params, config, draft = self._model.params, self._model.config, self._model.draft
        request, cache = self._begun(context, keys_B, 1)
        state, said = streaming.start(params, config, request, cache, draft)
        told, most, done = 0, 1, False
        while not done:
            # The next call runs while the last one's tokens are read and shown; when all is said it does nothing.
            state, next_said = streaming.steps(params, config, state, most, request.processors, draft)
            began = time.perf_counter()
            (ids,), (finished,), done = streaming.read(said)
            said, most = next_said, streaming.tokens_a_call(most, time.perf_counter() - began)
            if done:
                if state.drafting is not None:
                    self.forwards, self.accepted = int(state.drafting.forwards_M[0]), int(state.drafting.accepted_M[0])
                self._cache = streaming.keep(config, state, draft=draft)  # without the last token drawn, or two
                self._cached = (context + ids[: -1 if draft is None else -2])[: self._cache.num_slots]
            else:
                self._cache, self._cached = streaming.prefix_of(state), context
            self._ends_at = len(ids) if finished else None
            yield from ids[told:]
            told = len(ids)
            if not done:
                self._cache, self._cached = None, []  # an error in the next call leaves nothing to trust
