"""A ranker small enough to compile fast, every parameter drawn, whose scores differ widely; and dialogues for it."""

import dataclasses

import numpy as np
from drawn_weights import draw_tensors
from fakes import no_dropout, tiny_tokenizer

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.convert.mapping import to_ranker_params
from dialogpt_jax.ranking.dialogrpt import Ranker

TOKENIZER = tiny_tokenizer()
CONFIG = no_dropout(
    GPT2Config(
        vocab_size=TOKENIZER.vocab_size,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        eos_token_id=TOKENIZER.vocab_size - 1,
    )
)
TURNS = ["How are you?", " I am fine, thanks. ", "And this evening?"]
REPLIES = ["Nothing much.", "No", "I like the rain in the evening, don't you?", "", "Reading the news."]


def draw_ranker_tensors(config: GPT2Config = CONFIG, seed: int = 0) -> dict[str, np.ndarray]:
    """Float32 tensors by the names of transformers' `GPT2ForSequenceClassification`."""
    tensors = draw_tensors(dataclasses.replace(config, tie_word_embeddings=True), seed)
    # As drawn, embeddings of 0.02 are small beside the biases, and one text's state is like another's.
    tensors = {name: 10 * x if ".w" in name and "te." in name else x for name, x in tensors.items()}
    row = np.random.default_rng([seed, 101]).standard_normal((1, config.n_embd), np.float32)
    return tensors | {"score.weight": 0.4 * row}


def draw_ranker(seed: int = 0) -> Ranker:
    return Ranker(to_ranker_params(draw_ranker_tensors(seed=seed), CONFIG)[0], CONFIG, TOKENIZER)


def ids_of(turns, reply) -> list[int]:
    """One text as the authors' `predict` makes it: each turn of the context and EOS, then the reply without one."""
    context = [token for turn in turns for token in [*TOKENIZER.encode(turn.strip()), CONFIG.eos_token_id]]
    return context + list(TOKENIZER.encode(reply.strip()))
