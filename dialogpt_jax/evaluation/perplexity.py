"""How well a model predicts dialogues: parameters and turns in; nats, and the tokens and bytes they were spent on, out.

Letters: D dialogues, B rows, T tokens.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import collate, fill_up
from dialogpt_jax.data.examples import windows
from dialogpt_jax.decoding.request import bucket_of
from dialogpt_jax.likelihood import token_losses
from dialogpt_jax.model import Params
from dialogpt_jax.parallel.distributed import global_batch
from dialogpt_jax.parallel.rules import batch_sharding
from dialogpt_jax.text.tokenizer import Tokenizer


@functools.cache
def _losses_on(mesh: Mesh | None):
    """The compiled `token_losses` for parameters on a mesh; every process gets the whole result."""
    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(token_losses, static_argnames="config", out_shardings=everywhere)


def _losses(params: Params, config: GPT2Config, tokens_BT: np.ndarray) -> np.ndarray:
    sharding = params["wte"]["embedding"].sharding if isinstance(params["wte"]["embedding"], jax.Array) else None
    if not isinstance(sharding, NamedSharding):
        return np.asarray(_losses_on(None)(params, config, jnp.asarray(tokens_BT)))
    mesh = cast(Mesh, sharding.mesh)  # an array lies on a real mesh; the type also allows an abstract one
    divides = len(tokens_BT) % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0
    rows = batch_sharding(mesh) if divides else NamedSharding(mesh, PartitionSpec())
    placed = global_batch(lambda here_B: tokens_BT[here_B], len(tokens_BT), rows)
    return np.asarray(_losses_on(mesh)(params, config, placed))


class Spent(NamedTuple):
    """What each dialogue's turns after the first cost, float64; a dialogue of one turn has 0 of all.

    Attributes:
      nats_D: Σ −log p of their tokens, EOS included.
      tokens_D: how many tokens that are, EOS included.
      bytes_D: UTF-8 bytes of those turns, EOS not counted.
    """

    nats_D: np.ndarray
    tokens_D: np.ndarray
    bytes_D: np.ndarray


def measure_dialogues(
    params: Params,
    config: GPT2Config,
    tokenizer: Tokenizer,
    dialogues: Sequence[Sequence[str]],
    *,
    rows: int = 32,
) -> Spent:
    """What every turn after the first costs, given as many whole turns before it as its window holds.

    Windows of `n_positions` tokens begin with half a window of context. A turn longer than a window counts by its start.
    Windows of like length share a batch, which is padded to its bucket.
    """
    longest = config.n_positions
    encoded = [tokenizer.encode_batch(turns) for turns in dialogues]
    owned = [
        (dialogue, example)
        for dialogue, turns in enumerate(encoded)
        for example in windows(turns, eos=config.eos_token_id, max_length=longest, context=longest // 2)
    ]
    owned.sort(key=lambda window: len(window[1].tokens_T))
    nats_D, tokens_D = np.zeros(len(dialogues)), np.zeros(len(dialogues))
    for start in range(0, len(owned), rows):
        chosen = owned[start : start + rows]
        owners_B = [dialogue for dialogue, _ in chosen]
        width = bucket_of(len(chosen[-1][1].tokens_T), longest)
        batch = collate(fill_up([example for _, example in chosen], rows), width)
        losses_BT = _losses(params, config, batch.tokens_BT).astype(np.float64)
        np.add.at(nats_D, owners_B, (losses_BT * batch.weights_BT).sum(axis=1)[: len(chosen)])
        np.add.at(tokens_D, owners_B, batch.weights_BT.sum(axis=1, dtype=np.float64)[: len(chosen)])
    bytes_D = np.array([sum(len(turn.encode()) for turn in turns[1:]) for turns in dialogues], np.float64)
    return Spent(nats_D, tokens_D, bytes_D)


def bits_per_byte(
    params: Params,
    config: GPT2Config,
    tokenizer: Tokenizer,
    dialogues: Sequence[Sequence[str]],
    *,
    rows: int = 32,
) -> dict[str, float]:
    """Σ −log2 p of every turn after the first, its EOS included, over the UTF-8 bytes of those turns, EOS not counted.

    It does not depend on the tokenizer, so models can be compared. Windows are those of `measure_dialogues`.

    Returns:
      `bits_per_byte`; `perplexity` per token; `tokens` and `bytes` counted.
    """
    spent = measure_dialogues(params, config, tokenizer, dialogues, rows=rows)
    nats, tokens, num_bytes = (float(x_D.sum()) for x_D in spent)
    return {
        "bits_per_byte": nats / np.log(2) / num_bytes,
        "perplexity": float(np.exp(nats / tokens)),
        "tokens": tokens,
        "bytes": num_bytes,
    }
