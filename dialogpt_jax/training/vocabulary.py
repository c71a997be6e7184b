"""A larger vocabulary for a model that is there: parameters in, parameters with further rows out.

Letters: V vocabulary, D model.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.model import Params
from dialogpt_jax.text.tokenizer import Tokenizer

SPREAD = 0.01  # of the old rows' own: near enough to their mean that none is likely at first, and none is like another


def grow_vocabulary(params: Params, config: GPT2Config, vocab_size: int, key: jax.Array) -> tuple[Params, GPT2Config]:
    """Appends rows to the embedding, and to the head where it is untied; a row is drawn around the mean of the old ones.

    A fresh row of the usual initialisation would have the logit 0 where others have −30 and take all the probability.
    With the mean row a new token is as likely as an average one (Hewitt 2021, "Initializing new word embeddings").

    Args:
      vocab_size: at least the old one.
      key: of the draw.

    Raises:
      ValueError: it is smaller than the old one.
    """
    old = config.vocab_size
    if vocab_size < old:
        raise ValueError(
            f"the vocabulary would shrink from {old} to {vocab_size}; take a tokenizer that holds the old one"
        )
    if vocab_size == old:
        return params, config
    grown = dataclasses.replace(config, vocab_size=vocab_size)

    def grow(kernel_VD: jax.Array, key: jax.Array) -> jax.Array:
        known_VD = jnp.asarray(kernel_VD)[:old].astype(jnp.float32)
        noise_VD = jax.random.normal(key, (vocab_size - old, known_VD.shape[1]))
        new_VD = known_VD.mean(axis=0, keepdims=True) + SPREAD * known_VD.std(axis=0, keepdims=True) * noise_VD
        pad = ((0, grown.padded_vocab_size - vocab_size), (0, 0))
        return jnp.pad(jnp.concatenate([known_VD, new_VD]), pad).astype(kernel_VD.dtype)

    embedding_key, head_key = jax.random.split(key)
    out = params | {"wte": {"embedding": grow(params["wte"]["embedding"], embedding_key)}}
    if not config.tie_word_embeddings:
        out["lm_head"] = {"kernel": grow(params["lm_head"]["kernel"], head_key)}
    return out, grown


def check_extends(old: Tokenizer, new: Tokenizer) -> None:
    """Whether every id of `old` is the same token in `new`.

    Raises:
      ValueError: the first that is not.
    """
    for id in range(old.vocab_size):
        if id >= new.vocab_size or old.token(id) != new.token(id):
            found = repr(new.token(id)) if id < new.vocab_size else "nothing"
            raise ValueError(
                f"the new tokenizer does not extend the model's: id {id} is {old.token(id)!r} there and {found} here; "
                "append tokens, or train from scratch with --config"
            )
