"""What a `Sampling` and the contexts are for processors: lists and tokens in, arrays out, one of each row.

Letters: B rows of contexts, S columns, W words, L tokens of the longest word.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding.processors import NO_TOKEN, TokenLists, Words
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.text.tokenizer import Tokenizer
from dialogpt_jax.token_arrays import Array, array_library

WITH_TEXTS = ("bad_words", "logit_bias", "dry_breakers")  # lists that may hold texts, too


def texts_as_ids(sampling: Sampling, tokenizer: Tokenizer) -> Sampling:
    """A sampling whose texts are token ids: a word stands for its tokens as written and behind a space, each once; one
    that breaks repeats for all tokens that hold it.

    Raises:
      ValueError: no token holds a text of `dry_breakers`.
    """
    if not any(isinstance(word[0], str) for word in sampling.logit_bias) and not any(
        isinstance(word, str) for word in (*sampling.bad_words, *sampling.dry_breakers)
    ):
        return sampling

    def both(word: Any) -> list[tuple[int, ...]]:
        return [tuple(tokenizer.encode(text)) for text in (word, f" {word}")] if isinstance(word, str) else [word]

    breakers: list[int] = []
    for word in sampling.dry_breakers:
        breakers += _tokens_with(tokenizer, word) if isinstance(word, str) else [word]
    biases: Any = sampling.logit_bias
    return dataclasses.replace(
        sampling,
        logit_bias=[(ids, bias) for word, bias in biases for ids in both(word)],
        bad_words=[ids for word in sampling.bad_words for ids in both(word)],
        dry_breakers=breakers,
    )


@functools.lru_cache(maxsize=32)
def _tokens_with(tokenizer: Tokenizer, text: str) -> list[int]:
    found = [i for i in range(tokenizer.vocab_size) if text.encode() in tokenizer.token_bytes(i)]
    if not found:
        raise ValueError(f"dry_breakers: no token holds {text!r}; give a shorter text, or a token id")
    return found


def token_lists(sampling: Sampling, rows: int, config: GPT2Config) -> TokenLists:
    """The lists as arrays; their shapes are buckets, so that other lists are rarely another program.

    Raises:
      ValueError: an id outside the vocabulary.
    """
    for name in (*WITH_TEXTS, "suppress_tokens", "begin_suppress_tokens", "forced_tokens"):
        for item in getattr(sampling, name):
            ids = item[0] if name == "logit_bias" else item
            if isinstance(ids, str):
                raise ValueError(f"{name} holds a text, and there is no tokenizer here; ask a Bot, or give token ids")
            ids = ids if isinstance(ids, tuple) else (ids,)
            if max(ids) >= config.vocab_size:
                raise ValueError(f"{name}: token id {max(ids)} is outside the vocabulary of {config.vocab_size}")

    def packed(words: Sequence[Sequence[int]], *, few: int) -> Any:
        width = _bucket(max(map(len, words)), 1)
        ids_WL = np.full((_bucket(len(words), few), width), NO_TOKEN, np.int32)
        for w, word in enumerate(words):
            ids_WL[w, width - len(word) :] = word
        return np.broadcast_to(ids_WL, (rows, *ids_WL.shape))

    def with_values(words: Sequence[Sequence[int]], values: Sequence[float]) -> Words | None:
        if not words:
            return None
        ids_MWL = packed(words, few=4)
        values_W = np.zeros(ids_MWL.shape[1], np.float32)
        values_W[: len(values)] = values
        values_MW: Any = np.broadcast_to(values_W, (rows, len(values_W)))
        return Words(ids_MWL, values_MW)

    def plain(ids: Sequence[int]) -> Any:
        return packed([(i,) for i in ids], few=4)[..., 0] if ids else None

    bad_words: Any = sampling.bad_words  # each a tuple by now
    biases: Any = sampling.logit_bias
    breaks_MV: Any = None
    if sampling.dry_multiplier is not None and sampling.dry_breakers:
        breaks_V = np.zeros(config.padded_vocab_size, bool)
        breaks_V[np.array(sampling.dry_breakers)] = True
        breaks_MV = np.broadcast_to(breaks_V, (rows, len(breaks_V)))
    return TokenLists(
        biases=with_values([ids for ids, _ in biases], [bias for _, bias in biases]),
        bad_words=with_values(bad_words, [-np.inf] * len(bad_words)),
        suppressed_MW=plain(sampling.suppress_tokens),
        begin_MW=plain(sampling.begin_suppress_tokens),
        forced_MJ=plain(sampling.forced_tokens),
        breaks_MV=breaks_MV,
    )


def _bucket(size: int, least: int) -> int:
    while least < size:
        least *= 4
    return least


def scopes_of(sampling: Sampling) -> set[str]:
    """The scopes that need a history."""
    penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
    found: set[str] = {"context"} if sampling.processors else set()
    if any(number is not None for number in penalties):
        found.add(sampling.penalty_scope)
    if sampling.no_repeat_ngram is not None:
        found.add(sampling.ngram_scope)
    if sampling.dry_multiplier is not None:
        found.add(sampling.dry_scope)
    return found - {"reply"}


def history_of(scope: str, contexts_BT: Array, lengths_B: Array, width: int, eos: int) -> Any:
    """The tokens of contexts that are in a scope, each in its column but moved to the right end of `width`, int32.

    "own" are the bot's turns: the last turn is the user's, the one before it the bot's, and so on back; each ends in EOS,
    which is not among them.

        [u EOS v w EOS x EOS pad], length 7, width 8:   context  [– u EOS v w EOS x EOS]     own  [– – – v w – – –]
    """
    library = array_library(contexts_BT, lengths_B)
    rows, length = contexts_BT.shape
    from_BS = library.arange(width)[None] - (width - lengths_B[:, None])
    taken_BS = library.take_along_axis(contexts_BT, library.clip(from_BS, 0, length - 1), axis=1)
    real_BS = from_BS >= 0
    if scope == "own":
        ends_BS = real_BS & (taken_BS == eos)
        after_BS = library.flip(library.cumsum(library.flip(ends_BS, axis=1), axis=1), axis=1)  # 1 in the last turn
        real_BS = real_BS & (after_BS > 0) & (after_BS % 2 == 0) & ~ends_BS
    return library.where(real_BS, taken_BS, NO_TOKEN).astype(library.int32).reshape(rows, width)
