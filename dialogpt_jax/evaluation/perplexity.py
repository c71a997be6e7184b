"""How well a model predicts dialogues: parameters and turns in, bits and their counts out."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import collate
from dialogpt_jax.data.examples import windows
from dialogpt_jax.model import Params
from dialogpt_jax.text.tokenizer import Tokenizer
from dialogpt_jax.training.loss import token_losses

_losses = jax.jit(token_losses, static_argnames="config")


def bits_per_byte(
    params: Params,
    config: GPT2Config,
    tokenizer: Tokenizer,
    dialogues: Sequence[Sequence[str]],
    *,
    rows: int = 32,
) -> dict[str, float]:
    """Σ −log2 p of every turn after the first, its EOS included, over the UTF-8 bytes of those turns, EOS not counted.

    Each turn is predicted from as many whole turns before it as its window holds: windows of `n_positions` tokens that
    begin with half a window of context. It does not depend on the tokenizer, so models can be compared.

    Returns:
      `bits_per_byte`; `perplexity` per token; `tokens` and `bytes` counted.
    """
    longest = config.n_positions
    encoded = [tokenizer.encode_batch(turns) for turns in dialogues]
    examples = [
        e
        for turns in encoded
        for e in windows(turns, eos=config.eos_token_id, max_length=longest, context=longest // 2)
    ]
    num_bytes = sum(len(turn.encode()) for turns in dialogues for turn in turns[1:])
    nats = tokens = 0.0
    for start in range(0, len(examples), rows):
        chosen = examples[start : start + rows]
        batch = collate([*chosen, *[chosen[0]] * (rows - len(chosen))], longest)  # one shape, one program
        batch.weights_BT[len(chosen) :] = 0.0
        losses_BT = np.asarray(_losses(params, config, jnp.asarray(batch.tokens_BT)), np.float64)
        nats += float((losses_BT * batch.weights_BT).sum())
        tokens += float(batch.weights_BT.sum())
    bits = nats / np.log(2)
    return {
        "bits_per_byte": bits / num_bytes,
        "perplexity": float(np.exp(nats / tokens)),
        "tokens": tokens,
        "bytes": float(num_bytes),
    }
