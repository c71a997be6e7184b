"""Small models with every parameter drawn, so that a wrong one shows; and a fake bot.

On the usual initialisation most wrong programs pass: biases are zero, gains are one, and swapping two norms changes
nothing. Here biases are N(0, 0.1), gains 1 + N(0, 0.2), and matrices ten times the usual scale.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from dialogpt_jax.chat.bot import Bot
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.model import init_params
from dialogpt_jax.ranking.sense import SenseHead
from dialogpt_jax.text.tokenizer import Tokenizer

TINY = GPT2Config(vocab_size=61, n_positions=48, n_embd=32, n_layer=3, n_head=4, eos_token_id=60)
ODD = GPT2Config(
    vocab_size=131,
    n_positions=37,
    n_embd=30,
    n_layer=2,
    n_head=3,
    n_inner=50,
    eos_token_id=7,
    tie_word_embeddings=False,
)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))  # one program; drawn one by one, each shape compiles its own
def draw_params(config: GPT2Config, seed: int = 0, scale: float = 10.0, dtype=jnp.float32):
    """Parameters with every tensor drawn; `scale` multiplies the block matrices of the usual initialisation."""
    params = init_params(config, jax.random.key(seed))
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    drawn = []
    for index, (path, leaf) in enumerate(leaves):
        name, key = path[-1].key, jax.random.fold_in(jax.random.key(seed + 1), index)
        noise = jax.random.normal(key, leaf.shape)
        if name == "bias":
            leaf = 0.1 * noise
        elif name == "scale":
            leaf = 1.0 + 0.2 * noise
        elif name == "kernel" and path[0].key != "lm_head":
            leaf = leaf * scale
        drawn.append(leaf.astype(dtype))
    return jax.tree_util.tree_unflatten(tree, drawn)


def no_dropout(config: GPT2Config) -> GPT2Config:
    return dataclasses.replace(config, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)


# What the fake tokenizer learns its merges from: ASCII only, so that every other character is several tokens.
SENTENCES = (
    "Hello, how are you today?",
    "I am fine, thanks. And you?",
    "What are you doing this evening?",
    "Nothing much, reading the news.",
    "Do you like the rain in the evening?",
    "No, the rain is not for me.",
)


def tiny_tokenizer(vocab_size: int = 320) -> Tokenizer:
    """A byte-level BPE with about 60 merges; `<|endoftext|>` is its last id."""
    return Tokenizer.train(SENTENCES, vocab_size)


def tiny_bot(seed: int = 0, *, n_positions: int = 96, end: float = 7.0) -> Bot:
    """A bot whose replies are noise that ends: EOS gets `end` added to its logit at every step.

    Drawn weights hardly ever give one chosen id. So the first channel of the last norm is made constant, and only EOS
    reads it.
    """
    tokenizer = tiny_tokenizer()
    eos = tokenizer.end_of_text_id
    assert eos is not None
    config = no_dropout(
        GPT2Config(
            vocab_size=tokenizer.vocab_size,
            n_positions=n_positions,
            n_embd=32,
            n_layer=2,
            n_head=4,
            eos_token_id=eos,
            tie_word_embeddings=False,
        )
    )
    params = draw_params(config, seed)
    norm, head_VD = params["ln_f"], params["lm_head"]["kernel"] * 20.0
    params["ln_f"] = {"scale": norm["scale"].at[0].set(0.0), "bias": norm["bias"].at[0].set(1.0)}
    params["lm_head"] = {"kernel": head_VD.at[:, 0].set(0.0).at[eos, 0].set(end)}
    return Bot(params, config, tokenizer)


def draw_head(config, blocks=(0, 1), units=8, seed=0):
    """A sense head with every weight drawn, whose scores differ."""
    keys = jax.random.split(jax.random.key(seed), 3)
    features = len(blocks) * config.n_embd
    kernel_UF = jax.random.normal(keys[0], (units, features)) * features**-0.5
    row_U = jax.random.normal(keys[2], (units,))
    return SenseHead(kernel_UF, jax.random.normal(keys[1], (units,)), row_U, jnp.float32(0.1), tuple(blocks))
