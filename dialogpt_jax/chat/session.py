"""A conversation that keeps its turns, and the cache between them: texts in, replies out.

The cache is nothing but a shortcut. `_cached` says which ids its slots hold; a turn prefills from the first id that differs
from the context it wants. So undo, retry, a dropped window, an abandoned stream and a loaded file need no case of their
own, and every reply equals that of a fresh prefill.
"""

import contextlib
import json
import os
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from dialogpt_jax.chat.settings import DEFAULT_MAX_NEW_TOKENS, DEFAULT_SAMPLING, few_buckets, row_keys
from dialogpt_jax.decoding import stream as streaming
from dialogpt_jax.decoding.generate import bucket_of
from dialogpt_jax.decoding.logits import Sampling, as_arrays, top_k_bucket
from dialogpt_jax.text.dialogue import Turns, as_turns, texts_of

if TYPE_CHECKING:
    from dialogpt_jax.chat.bot import Bot

FORMAT = "dialogpt_jax chat 1"


class ChatError(ValueError):
    """There is nothing to undo or retry, or a file holds no chat."""


class Chat:
    """A conversation with a bot.

    The user speaks first and the turns alternate. A reply is a function of the turns, the seed and the number of tries,
    so the same line after `undo` gets the same reply, and `retry` another.

    Attributes:
      seed, sampling, max_new_tokens: as given; the last two may be set between turns.
      finished: whether the last reply ended by itself.
    """

    def __init__(
        self,
        bot: "Bot",
        *,
        seed: int = 0,
        sampling: Sampling = DEFAULT_SAMPLING,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        turns: Turns = (),
    ):
        self.seed, self.sampling, self.max_new_tokens = seed, sampling, max_new_tokens
        self.finished, self.context_tokens = True, 0
        self._bot, self._turns, self._attempt = bot, texts_of(turns), 0
        self._cache: Any = None
        self._cached: list[int] = []
        # Weak, so that a stream which its reader drops is closed at once, and recorded.
        self._running: Callable[[], Generator[str, None, None] | None] = lambda: None

    @property
    def turns(self) -> list[str]:
        """The texts so far, the user's first; a copy. A reply that is still being streamed is not among them."""
        return list(self._turns)

    def say(self, text: str) -> str:
        """The reply to the next turn."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Generator[str, None, None]:
        """The reply in pieces. Left before its end, what was said by then is the reply; an error takes the turn back."""
        self._settle()
        text = as_turns([*self._turns, text])[-1]
        return self._run(self._turns, text, attempt=0)

    def undo(self) -> str:
        """Takes the last turn and its reply back; the user's text."""
        self._settle()
        if not self._turns:
            raise ChatError("nothing to undo: the chat has no reply yet")
        text = self._turns[-2]
        self._turns, self._attempt = self._turns[:-2], 0
        return text

    def retry(self) -> str:
        """Another reply to the last turn."""
        return "".join(self.retry_stream())

    def retry_stream(self) -> Generator[str, None, None]:
        """`retry` in pieces; the old reply stays until the new one has begun to be said."""
        self._settle()
        if not self._turns:
            raise ChatError("nothing to retry: the chat has no reply yet")
        return self._run(self._turns[:-2], self._turns[-2], attempt=self._attempt + 1)

    def reset(self) -> None:
        """Forgets all turns."""
        self._settle()
        self._turns, self._attempt = [], 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes turns, seed and settings as one JSON object; its `turns` are a line of training data."""
        self._settle()
        state = {
            "format": FORMAT,
            "turns": self._turns,
            "seed": self.seed,
            "attempt": self._attempt,
            "max_new_tokens": self.max_new_tokens,
            "sampling": dict(vars(self.sampling)),
        }
        path = Path(path)
        part = path.parent / (path.name + ".part")
        try:
            part.write_text(json.dumps(state, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(part, path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str], bot: "Bot") -> "Chat":
        """The chat of a file, to go on as it would have gone on.

        Raises:
          ChatError: the file holds no chat.
        """
        try:
            state = json.loads(Path(path).read_text(encoding="utf-8"))
            if state["format"] != FORMAT:
                raise ValueError(f"its format is {state['format']!r}")
            turns = state["turns"]
            if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns) or len(turns) % 2:
                raise ValueError("its turns are not pairs of texts")
            seed, attempt, length = state["seed"], state["attempt"], state["max_new_tokens"]
            "".join(turns).encode()  # a lone surrogate would break every later turn
            for number, least, most in ((seed, 0, 2**63), (attempt, 0, 2**32), (length, 1, 2**31)):
                if isinstance(number, bool) or not isinstance(number, int) or not least <= number < most:
                    raise ValueError(f"its numbers are out of range: {number!r}")
            sampling = Sampling(**state["sampling"])
            if any(isinstance(value, list | dict) for value in vars(sampling).values()):
                raise ValueError("its sampling holds no numbers")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ChatError(f"{path}: not a saved chat ({error})") from None
        chat = cls(bot, seed=seed, sampling=sampling, max_new_tokens=length, turns=turns)
        chat._attempt = attempt
        return chat

    def _settle(self) -> None:
        """Ends a stream that someone still holds, so that what it said is a turn."""
        running = self._running()
        if running is not None:
            running.close()

    def _run(self, before: list[str], text: str, *, attempt: int) -> Generator[str, None, None]:
        pieces = self._stream(before, text, attempt)
        self._running = weakref.ref(pieces)
        return pieces

    def _stream(self, before: list[str], text: str, attempt: int) -> Generator[str, None, None]:
        tokenizer, eos = self._bot.tokenizer, self._bot.config.eos_token_id
        context = self._bot.encode([*before, text], max_new_tokens=self.max_new_tokens)
        keys_B = row_keys(self.seed, [0], [len(before) + 1], [attempt])
        self.context_tokens = len(context)
        ids: list[int] = []
        said, record = "", False
        try:
            for token in self._tokens(context, keys_B):
                ids.append(token)
                whole = tokenizer.decode(ids).rstrip("\ufffd")  # the rest of a character may still come
                if len(whole) > len(said):
                    piece, said = whole[len(said) :], whole
                    yield piece
            rest = tokenizer.decode(ids)[len(said) :]
            said, record = said + rest, True
            if rest:
                yield rest
        except GeneratorExit:
            record = record or bool(said)
            raise
        finally:
            if record:
                self.finished = bool(ids) and ids[-1] == eos
                self._turns, self._attempt = [*before, text, said], attempt

    def _tokens(self, context: list[int], keys_B: Any) -> Iterator[int]:
        """The reply's ids one by one. The cache is taken out, and put back when a call has returned it."""
        bot, config, sampling = self._bot, self._bot.config, as_arrays(self.sampling)
        bucket = top_k_bucket(self.sampling, config.vocab_size)
        same = _shared_length(self._cached, context[:-1])
        cache, self._cache, self._cached = self._cache, None, []
        if cache is None:
            dtype, same = bot.params["wte"]["embedding"].dtype, 0
            cache = streaming.empty_cache(config, 1, config.n_positions, dtype)
        new = context[same:]
        tokens_BT = np.zeros((1, few_buckets(len(new), config.n_positions)), np.int32)
        tokens_BT[0, : len(new)] = new
        lengths_B = np.array([len(context)], np.int32)
        cache, state = streaming.start(
            bot.params,
            config,
            tokens_BT,
            np.array([len(new)], np.int32),
            np.array([same], np.int32),
            cache,
            np.array([min(self.max_new_tokens, config.n_positions - len(context))], np.int32),
            keys_B,
            sampling,
            self._seen(context),
            slots=bucket_of(self.max_new_tokens, config.n_positions),
            bucket=bucket,
        )
        ids: list[int] = []
        done = False
        while not done:
            last, finished, count, limit = jax.device_get(
                (state.last_M, state.finished_M, state.counts_M, state.limits_M)
            )
            self._cache, self._cached = cache, context  # the prefill has come back sound
            ids, done = [*ids, int(last[0])], bool(finished[0] or count[0] >= limit[0])
            if not done:
                yield ids[-1]
                self._cache, self._cached = None, []  # an error in the step leaves nothing to trust
                state = streaming.step(bot.params, config, cache, lengths_B, state, keys_B, sampling, bucket=bucket)
        self._cache, self._cached = None, []
        self._cache = streaming.keep(config, cache, lengths_B, state.cache)
        self._cached = context + ids[:-1]  # the last token drawn was never fed
        yield ids[-1]

    def _seen(self, context: list[int]) -> np.ndarray | None:
        if self.sampling.repetition_penalty is None:
            return None
        seen_BV = np.zeros((1, self._bot.config.padded_vocab_size), bool)
        if self.sampling.penalize_context:
            seen_BV[0, context] = True
        return seen_BV


def _shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences have in common from their start."""
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)
