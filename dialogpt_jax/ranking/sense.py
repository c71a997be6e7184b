"""Whether replies make sense, by what the model that proposes them holds of them: its own cache in, a score each out.

    ReplyCache ─mean of the reply's values in some blocks→ features_MF ─two layers→ scores_M, 0 (nonsense) to 1 (sensible)

A model that has read a reply knows more of it than its probability says. A small head, trained on marked replies, looks at
the values that attention keeps anyway, so a ranking costs no second model and no second reading. A reply's last token, its
EOS, was never read; what counts are those before it.

Letters: B contexts, N candidates of each, M = B·N, R slots of a reply, L blocks, H heads, K head dim, F features, U units.

Source: Adiwardana et al. 2020 (arXiv 2001.09977), section 2.4, which draws several replies and ranks them; Thoppilan et al.
2022 (arXiv 2201.08239), section 6, where the model that speaks also says how sensible it is.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from dialogpt_jax.arguments import as_path, shown
from dialogpt_jax.cache import ReplyCache, cache_dtype, init_cache, init_reply
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import pad_right
from dialogpt_jax.decoding.request import bucket_of
from dialogpt_jax.int8 import Int8Rows
from dialogpt_jax.model import Params, hidden
from dialogpt_jax.replies.candidates import Candidate
from dialogpt_jax.replies.language_model import LanguageModel
from dialogpt_jax.replies.settings import DEFAULT_MAX_NEW_TOKENS
from dialogpt_jax.whole_writes import whole_file

BUNDLED = Path(__file__).resolve().parents[1] / "bundled" / "sense_head.safetensors"
MOST_TOGETHER = 32  # candidates in one program's call
_ARRAYS = {"kernel_UF": 2, "bias_U": 1, "row_U": 1, "offset": 0}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SenseHead:
    """Two layers on what some blocks of one model hold of a reply; `load` makes one of a file.

    Attributes:
      kernel_UF, bias_U: of the first layer, float32; F is the number of blocks times `n_embd`.
      row_U, offset: of the second.
      blocks: static, which blocks of the model, from 0.

    Example:
      >>> mine = bot.score("How are you?", ["The moon is a cheese.", "Fine, and you?"])
      >>> bot.order("How are you?", mine, "sense")[0].text
      'Fine, and you?'
    """

    kernel_UF: jax.Array
    bias_U: jax.Array
    row_U: jax.Array
    offset: jax.Array
    blocks: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def __call__(self, cache: ReplyCache, counts_M: jax.Array) -> jax.Array:
        """The scores of replies, float32 (M,): 1 is sensible, 0 is nonsense.

        Args:
          cache: a decoding loop's; slot i of a reply is its token i.
          counts_M: int32, tokens of each, the last of which is not in the cache.
        """
        return self.of_features(reply_features(cache, counts_M, self.blocks))

    def of_features(self, features_MF: jax.Array) -> jax.Array:
        """The same of what `reply_features` gives."""
        units_MU = jax.nn.gelu(features_MF @ self.kernel_UF.T + self.bias_U[None])
        return jax.nn.sigmoid(units_MU @ self.row_U + self.offset)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file, in float16, that `load` reads."""
        arrays = {name: np.asarray(getattr(self, name), np.float16) for name in _ARRAYS}
        arrays["blocks"] = np.asarray(self.blocks, np.int32)
        with whole_file(as_path("path", path)) as part:
            part.write_bytes(safetensors.save(arrays))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SenseHead":
        """The head of a file.

        Raises:
          OSError: there is no such file.
          ValueError: it holds something else.
        """
        path = as_path("path", path)
        try:
            held = safetensors.load(path.read_bytes())
        except SafetensorError as error:
            raise ValueError(
                f"{path} is no whole safetensors file ({error}); give what `SenseHead.save` wrote"
            ) from None
        sizes = {name: held[name].ndim for name in _ARRAYS if name in held}
        if sizes != _ARRAYS or set(held) != {*_ARRAYS, "blocks"} or held["blocks"].ndim != 1:
            names = [*sorted(held)[:4], *([f"{len(held) - 4} more"] if len(held) > 4 else [])]
            raise ValueError(f"{path} has {', '.join(names)}; a sense head has {', '.join(_ARRAYS)} and blocks")
        units, row = held["kernel_UF"].shape[:1], held["row_U"].shape
        whole = np.issubdtype(held["blocks"].dtype, np.integer) and all(
            np.isfinite(held[name]).all() for name in _ARRAYS
        )
        if not whole or not units == held["bias_U"].shape == row:
            raise ValueError(f"{path}: the arrays of this sense head do not fit each other, or hold no numbers")
        arrays = {name: jax.device_put(np.asarray(held[name], np.float32)) for name in _ARRAYS}  # compiles nothing
        return cls(**arrays, blocks=tuple(held["blocks"].tolist()))


def reply_features(cache: ReplyCache, counts_M: jax.Array, blocks: Sequence[int]) -> jax.Array:
    """The mean of each reply's values over its tokens but the last, block by block, float32 (M, F)."""
    contexts, candidates = cache.lengths_B.shape[0], counts_M.shape[0] // cache.lengths_B.shape[0]
    read_M = jnp.maximum(counts_M - 1, 0)
    weights_MR = (jnp.arange(cache.reply.num_slots)[None] < read_M[:, None]) / jnp.maximum(read_M, 1)[:, None]
    weights_BHNRK = weights_MR.reshape(contexts, 1, candidates, -1, 1)

    def mean_of(values: Any) -> jax.Array:  # a block at a time: all values side by side would be written anew first
        whole = values.values * values.scales if isinstance(values, Int8Rows) else values.astype(jnp.float32)
        return (whole.reshape(contexts, -1, candidates, *whole.shape[1:]) * weights_BHNRK).sum(axis=3)

    mean_LBHNK = jnp.stack([mean_of(cache.reply.layers[block][1]) for block in blocks])
    return mean_LBHNK.transpose(1, 3, 0, 2, 4).reshape(counts_M.shape[0], -1)


@jax.jit
def sense_scores(head: SenseHead, cache: ReplyCache, counts_M: jax.Array) -> jax.Array:
    """The head, compiled: for a state that a chat has in its hands."""
    return head(cache, counts_M)


@functools.partial(jax.jit, static_argnames="config")
def read_replies(
    params: Params,
    config: GPT2Config,
    context_BT: jax.Array,
    lengths_B: jax.Array,
    replies_BNR: jax.Array,
) -> ReplyCache:
    """The cache that a decoding loop would leave of N replies to each context, which are given.

    Args:
      context_BT, replies_BNR: int32, right-padded by ids in range.
      lengths_B: int32, real tokens of each context.
    """
    rows, width = context_BT.shape
    _, prefix = hidden(params, config, context_BT, 0, init_cache(config, rows, width, cache_dtype(params)))
    _, candidates, slots = replies_BNR.shape
    positions_MR = jnp.repeat(lengths_B, candidates)[:, None] + jnp.arange(slots)[None]
    cache = init_reply(config, prefix, lengths_B, candidates, slots)
    return hidden(params, config, replies_BNR.reshape(-1, slots), positions_MR, cache)[1]


def sense_of(model: LanguageModel, head: SenseHead, turns: Sequence[str], replies: Sequence[Candidate]) -> list[float]:
    """The scores of replies that were made or given elsewhere; each has its tokens, and its EOS where it ended."""
    ids = [reply.tokens.tolist() for reply in replies]
    longest = max(map(len, ids), default=1)
    context = model.encode(list(turns), max_new_tokens=max(longest, DEFAULT_MAX_NEW_TOKENS))
    context_BT, lengths_B = pad_right([context], bucket_of(len(context), model.config.n_positions))
    slots = bucket_of(longest, model.config.n_positions)
    found: list[float] = []
    for start in range(0, len(ids), MOST_TOGETHER):
        part = ids[start : start + MOST_TOGETHER]
        rows = min(1 << (len(part) - 1).bit_length(), MOST_TOGETHER)
        replies_NR, counts_N = pad_right([*part, *[[]] * (rows - len(part))], slots)
        cache = read_replies(model.params, model.config, context_BT, lengths_B, replies_NR[None])
        found += np.asarray(sense_scores(head, cache, counts_N))[: len(part)].tolist()
    return found


def check_sense(head: Any, config: GPT2Config) -> None:
    """Whether a head reads the blocks of a model of this config.

    Raises:
      TypeError: it is no head.
      ValueError: it was made for a model of other sizes.
    """
    if not isinstance(head, SenseHead):
        raise TypeError(f"sense is {shown(head)}; give a SenseHead, such as `SenseHead.load(FILE)`")
    features = len(head.blocks) * config.n_embd
    inside = all(0 <= block < config.n_layer for block in head.blocks)
    if not inside or head.kernel_UF.shape[1:] != (features,):
        raise ValueError(
            f"the sense head reads {head.kernel_UF.shape[1]} features of the blocks {list(head.blocks)}; the model has "
            f"{config.n_layer} blocks of width {config.n_embd}: give a head that was trained on this model"
        )


@functools.lru_cache(maxsize=1)
def bundled_sense() -> SenseHead:
    """The head that ships with the package, for the bundled model."""
    return SenseHead.load(BUNDLED)
