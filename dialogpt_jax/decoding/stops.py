"""Texts that end a reply: strings and a tokenizer's bytes in, a table out that tells of tokens alone whether one was said.

    "stop", the tokens "s", "to", "pper" …:   state 0 ─s→ "s" ─to→ "sto" ─pper→ said

The table is the automaton of Aho and Corasick (1975), a step a token: so a text is found however the model cuts it into
tokens, across the bytes of a character too. Nothing is carried from step to step: the last tokens, as many as the longest
text has bytes, are read again.

Letters: M rows, R reply slots, Q states, V vocabulary (padded).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialogpt_jax.text.tokenizer import Tokenizer

_BEGUN, _SAID = 0, 1  # states: nothing of any text yet; one is whole, and stays so


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stops:
    """What ends a reply.

    Attributes:
      next_QV: uint8 or int32, the state after each token; NumPy's, for a stream gives its state, this too, away.
      window: static, how many of the last tokens are read.
    """

    next_QV: jax.Array
    window: int = dataclasses.field(metadata={"static": True})


def stops_of(tokenizer: Tokenizer, texts: Sequence[str], vocab: int) -> Stops | None:
    """The table of some texts, `None` for none; `vocab` is the padded size of the vocabulary."""
    return _stops_of(tokenizer, tuple(texts), vocab) if texts else None


@functools.lru_cache(maxsize=8)
def _stops_of(tokenizer: Tokenizer, texts: tuple[str, ...], vocab: int) -> Stops:
    byte_next = automaton([text.encode() for text in texts])
    states = _bucket(len(byte_next))
    next_QV = np.tile(np.arange(states, dtype=np.int32)[:, None], (1, vocab))
    ids = np.arange(tokenizer.vocab_size)
    tokens = [tokenizer.token_bytes(int(i)) for i in ids]
    lengths = np.array([len(token) for token in tokens])
    for place in range(lengths.max()):
        ids = ids[lengths[ids] > place]
        bytes_I = np.array([tokens[i][place] for i in ids])
        now_QI = next_QV[: len(byte_next), ids]
        next_QV[: len(byte_next), ids] = byte_next[now_QI, bytes_I[None]]
    table_QV: Any = next_QV.astype(np.uint8) if states <= 256 else next_QV
    return Stops(table_QV, _bucket(max(len(text.encode()) for text in texts)))


def automaton(texts: Sequence[bytes]) -> np.ndarray:
    """The state after each byte, (states, 256): states are what may be the beginning of a text, the longest such end."""
    whole = set(texts)
    begun = {text[:i] for text in texts for i in range(len(text))}
    states = [b"", None, *sorted(begun - {b""})]
    number = {begin: i for i, begin in enumerate(states) if begin is not None}
    table = np.full((len(states), 256), _SAID, np.int32)
    for begin, row in number.items():
        for byte in range(256):
            ends = [(begin + bytes([byte]))[i:] for i in range(len(begin) + 2)]
            if not any(end in whole for end in ends):
                table[row, byte] = next(number[end] for end in ends if end in number)
    return table


def said_a_stop(tokens_MR: jax.Array, counts_M: jax.Array, stops: Stops) -> jax.Array:
    """Whether the tokens of each row end in a text, or hold one among the last of them."""
    next_QV = jnp.asarray(stops.next_QV)

    def read(back: jax.Array, state_M: jax.Array) -> jax.Array:
        place_M = counts_M - stops.window + back
        token_M = jnp.take_along_axis(tokens_MR, jnp.maximum(place_M, 0)[:, None], axis=1)[:, 0]
        return jnp.where(place_M >= 0, next_QV[state_M, token_M].astype(jnp.int32), state_M)

    return jax.lax.fori_loop(0, stops.window, read, jnp.full_like(counts_M, _BEGUN)) == _SAID


def _bucket(size: int) -> int:
    bucket = 4
    while bucket < size:
        bucket *= 4
    return bucket
