"""DialogRPT, which scores replies by what people would make of them: a dialogue and its candidates in, probabilities out.

    turns, replies ─encode→ "turn EOS turn EOS", "reply" ─read_contexts, score_replies→ scores ─sigmoid→ probabilities

Each turn of the context is followed by EOS; the reply is not, and the score is read at its last token. A context is
computed once for all its candidates, which continue it.

Letters: B contexts, T tokens, N candidates of a context, R tokens of a reply, M = B·N, D model.

Source: Gao et al. 2020 (arXiv 2009.06978); golsun/DialogRPT `src/model.py` (`predict`, `JointScorer`) and
`restore/ensemble.yml`.
"""

import dataclasses
import functools
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialogpt_jax.arguments import as_path, as_plain, shown
from dialogpt_jax.cache import KVCache, cache_dtype, init_cache, init_reply
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import pad_right
from dialogpt_jax.decoding.request import bucket_of
from dialogpt_jax.decoding.soundness import NonFiniteLogits
from dialogpt_jax.int8 import dtype_name
from dialogpt_jax.model import Params, hidden
from dialogpt_jax.score_row import add_score_row, check_ranker, score_of, trunk_of
from dialogpt_jax.text.dialogue import TruncationWarning, Turns, as_turns, encode
from dialogpt_jax.text.tokenizer import Tokenizer
from dialogpt_jax.weights.directory import load_ranker_params, write_directory
from dialogpt_jax.weights.hub import resolve

MOST_TOGETHER = 32  # candidates in one program's call, the authors' number too: a thousand would fill the memory

# `restore/ensemble.yml`: a reply must look as a human's to this context, and then please.
PRIOR: Mapping[str, float] = {"human_vs_rand": 0.5, "human_vs_machine": 0.5}
CONDITION: Mapping[str, float] = {"updown": 1.0, "depth": 0.48, "width": -0.5}


@functools.partial(jax.jit, static_argnames="config")
def read_contexts(
    params: Params, config: GPT2Config, context_BT: jax.Array, lengths_B: jax.Array
) -> tuple[jax.Array, KVCache]:
    """The score of each context by itself, which is that of an empty reply, float32 (B,); and the cache it left."""
    rows, width = context_BT.shape
    empty = init_cache(config, rows, width, cache_dtype(params))
    x_BTD, prefix = hidden(trunk_of(params), config, context_BT, 0, empty)
    last_BD = jnp.take_along_axis(x_BTD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
    return score_of(params, last_BD), prefix


@functools.partial(jax.jit, static_argnames="config")
def score_replies(
    params: Params,
    config: GPT2Config,
    empty_B: jax.Array,
    prefix: KVCache,
    lengths_B: jax.Array,
    replies_BNR: jax.Array,
    counts_BN: jax.Array,
) -> jax.Array:
    """Scores of N replies to each context, float32 (B, N), before the sigmoid.

    Args:
      params, config: a ranker's.
      empty_B, prefix: what `read_contexts` gave.
      lengths_B: int32, real tokens of each context.
      replies_BNR: int32, right-padded by ids in range; no EOS at their ends.
      counts_BN: int32, real tokens of each reply. One of none has the score of its context.

        reply [r r r pad], count 3:   read at index 2
    """
    rows, candidates, slots = replies_BNR.shape
    positions_MR = jnp.repeat(lengths_B, candidates)[:, None] + jnp.arange(slots)[None]
    cache = init_reply(config, prefix, lengths_B, candidates, slots)
    x_MRD, _ = hidden(trunk_of(params), config, replies_BNR.reshape(-1, slots), positions_MR, cache)
    last_M = jnp.maximum(counts_BN.reshape(-1) - 1, 0)
    last_MD = jnp.take_along_axis(x_MRD, last_M[:, None, None], axis=1)[:, 0]
    return jnp.where(counts_BN > 0, score_of(params, last_MD).reshape(rows, candidates), empty_B[:, None])


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Ranker:
    """A model that scores replies, with its tokenizer; get one from `load_ranker`.

    Attributes:
      params: those of a GPT-2, and `score`, the scoring row; the computation has their dtype.
      config: the sizes.
      tokenizer: text to ids.

    Raises:
      TypeError: one of the three is something else.
      ValueError: they do not fit each other, or the parameters have no scoring row.

    Example:
      >>> ranker = dg.Ranker.untrained(bot.params, bot.config, bot.tokenizer)  # `dialogpt train --pairs` trains one
      >>> ranker.score(["Hi!", "Hello.", "How are you?"], ["Fine, and you?", "No."]).shape
      (2,)
      >>> ranker.save("my_ranker")
    """

    params: Params
    config: GPT2Config
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        check_ranker(self.params, self.config)
        if not isinstance(self.tokenizer, Tokenizer):
            raise TypeError(f"tokenizer is {shown(self.tokenizer)}; give a Tokenizer, such as `Tokenizer.load(folder)`")
        if self.tokenizer.vocab_size > self.config.vocab_size:
            ids, rows = self.tokenizer.vocab_size, self.config.vocab_size
            raise ValueError(f"the tokenizer has {ids} ids, the ranker a vocabulary of {rows}; give the ranker's own")

    def __repr__(self) -> str:
        config, count = self.config, self.config.num_parameters + self.config.n_embd
        return (
            f"Ranker({count:,} parameters in {dtype_name(self.params)}: {config.n_layer} layers of width {config.n_embd}, "
            f"{config.n_head} heads, {config.n_positions} positions, {self.tokenizer.vocab_size:,} token ids)"
        )

    @classmethod
    def untrained(cls, params: Params, config: GPT2Config, tokenizer: Tokenizer) -> "Ranker":
        """A ranker that begins as a language model: its row is the head's row of EOS, as with the authors."""
        return cls(*add_score_row(params, config), tokenizer)

    def score(self, turns: Turns, replies: Sequence[str]) -> np.ndarray:
        """How probable it is that people take each reply well, float32 (N,), from 0 to 1; the order is that of `replies`.

        What "well" is, is what the ranker was trained for: `updown`, for one, is to be voted up. The probabilities of one
        dialogue's candidates can be compared, those of two dialogues less so.

        Args:
          turns: what was said: a text, a list of texts or of messages. Turns and replies are stripped. Half of the
            positions are the context's, its oldest turns left out where it needs more; the other half a reply's.
          replies: candidates, each a text; an empty one has the score of saying nothing. A candidate's score does not
            depend on the others.

        Warns:
          TruncationWarning: the newest turn alone was too long and lost its start, or a reply its end.

        Raises:
          DialogueError: no turn, or nothing in the newest.
          TypeError: `replies` is no list of texts.
          NonFiniteLogits: the scores are NaN or infinite.
        """
        texts, half = _as_texts(replies), self.config.n_positions // 2
        context = encode(
            self.tokenizer,
            [turn.strip() for turn in as_turns(turns)],
            eos=self.config.eos_token_id,
            n_positions=self.config.n_positions,
            max_new_tokens=half,
        )
        ids = self._encode_replies(texts, half)
        context_BT, lengths_B = pad_right([context], bucket_of(len(context), self.config.n_positions))
        empty_B, prefix = read_contexts(self.params, self.config, context_BT, lengths_B)
        slots = bucket_of(max(map(len, ids), default=1), self.config.n_positions)
        found = []
        for start in range(0, len(ids), MOST_TOGETHER):
            part = ids[start : start + MOST_TOGETHER]
            rows = min(1 << (len(part) - 1).bit_length(), MOST_TOGETHER)
            replies_NR, counts_N = pad_right([*part, *[[]] * (rows - len(part))], slots)
            scores_BN = score_replies(
                self.params, self.config, empty_B, prefix, lengths_B, replies_NR[None], counts_N[None]
            )
            found.append(np.asarray(scores_BN)[0, : len(part)])
        scores_N = np.concatenate(found) if found else np.zeros(0, np.float32)
        if not np.isfinite(scores_N).all():
            raise NonFiniteLogits("the ranker's scores are NaN or infinite; its weights are damaged")
        return probabilities(scores_N)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes a model directory that `load_ranker`, and transformers' `GPT2ForSequenceClassification`, load."""
        write_directory(as_path("directory", directory), self.params, self.config, self.tokenizer)

    def _encode_replies(self, texts: list[str], most: int) -> list[list[int]]:
        ids = self.tokenizer.encode_batch([text.strip() for text in texts])
        longest = max(map(len, ids), default=0)
        if longest > most:
            warnings.warn(
                f"a reply has {longest} tokens; what is behind its first {most} was left out (n_positions is "
                f"{self.config.n_positions})",
                TruncationWarning,
                stacklevel=3,
            )
        return [list(reply[:most]) for reply in ids]


def probabilities(scores: np.ndarray) -> np.ndarray:
    """The sigmoid of scores, float32. (By tanh, which does not overflow; in float64, so that small ones stay apart.)"""
    return (0.5 + 0.5 * np.tanh(0.5 * np.asarray(scores, np.float64))).astype(np.float32)


def _as_texts(replies: Any) -> list[str]:
    plain = as_plain(replies)
    if isinstance(plain, str | bytes | Mapping) or not isinstance(plain, Sequence):
        raise TypeError(f"replies is {shown(replies)}; give a list of texts, one for each candidate")
    for number, reply in enumerate(plain):
        if not isinstance(reply, str):
            raise TypeError(f"reply {number} is {shown(reply)}; give a text")
    return list(plain)


def ensemble_score(scores: Mapping[str, Any]) -> np.ndarray:
    """The authors' one score of five rankers: (rand + machine) / 2 · (updown + 0.48 depth − 0.5 width) / 0.98.

    The first factor says whether the reply is a human's to this very context, the second how well people take it.

    Args:
      scores: of the same replies by `human_vs_rand`, `human_vs_machine`, `updown`, `depth` and `width`: probabilities, as
        `Ranker.score` gives them.

    Returns:
      Float32, a score for each reply; it may leave 0 to 1, as width counts against.

    Raises:
      ValueError: a ranker is missing or unknown, or they scored different numbers of replies.

    Source: golsun/DialogRPT `restore/ensemble.yml`.

    Example:
      >>> five = {"human_vs_rand": [0.9], "human_vs_machine": [0.7], "updown": [0.6], "depth": [0.5], "width": [0.4]}
      >>> dg.ensemble_score(five).round(3)
      array([0.522], dtype=float32)
    """
    names = (*PRIOR, *CONDITION)
    if not isinstance(scores, Mapping) or set(scores) != set(names):
        given = ", ".join(map(str, scores)) if isinstance(scores, Mapping) else shown(scores)
        raise ValueError(f"scores are of {given or 'no ranker'}; give those of {', '.join(names)}")
    arrays = {name: np.asarray(scores[name], np.float64) for name in names}
    if len({array.shape for array in arrays.values()}) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"the rankers scored different replies: {shapes}; score the same list by each")

    def mean(weights: Mapping[str, float]) -> np.ndarray:
        return np.sum([weight * arrays[name] for name, weight in weights.items()], axis=0) / sum(weights.values())

    return (mean(PRIOR) * mean(CONDITION)).astype(np.float32)


def load_ranker(model: str | os.PathLike[str], *, dtype: str | None = None, revision: str | None = None) -> Ranker:
    """A ranker from a model directory or the Hub.

    Args:
      model: a directory, of `Ranker.save`, `dialogpt train --pairs` or `dialogpt convert updown.pth DIR`; or a name on the
        Hub: "microsoft/DialogRPT-updown", "-width", "-depth", "-human-vs-rand", "-human-vs-machine".
      dtype: "float32" (the default, whatever the file holds), "bfloat16" or "float16".
      revision: of a Hub repository: a branch, tag or commit.

    Raises:
      ValueError: a language model, which has no scoring row; what `load_params` refuses.

    Example:
      >>> ranker = dg.load_ranker("my_ranker")
      >>> ranker.score("I love NLP!", ["Me too!", "Here is a free textbook, in case anyone needs it."]).dtype
      dtype('float32')
    """
    as_path("model", model)
    folder = resolve(model, revision=revision)
    params, config = load_ranker_params(folder, dtype=dtype)
    tokenizer = Tokenizer.load(folder)
    try:
        return Ranker(params, config, tokenizer)
    except ValueError as error:  # the weights and the tokenizer do not belong together
        raise ValueError(f"{folder}: {error}") from None
