"""What a student learns beside the next tokens: teachers' hidden states in, distributions over the next token out.

    targets of a token:  (1 − share) · one-hot(next)  +  share · mean over teachers of softmax(teacher's logits)

The mean of several models' probabilities is a better model than each, and its doubts tell a small model more than the one
token that came: Hinton et al. 2015; with few words to learn from and many passes over them the student can end above its
teachers (Timiryasov & Tastet 2023, "Baby Llama"). The temperature is 1.

Letters: B rows, T tokens, D model, V vocabulary (padded), M rows times tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.int8 import check_trainable
from dialogpt_jax.model import Params, check_params, head_kernel, logits_by


class Teacher(NamedTuple):
    """A model to learn from.

    Attributes:
      params: in the dtype that it is to compute in.
      config: its sizes; the vocabulary is the student's.

    Example:
      >>> teacher = dg.Teacher(bot.params, bot.config)
    """

    params: Params
    config: GPT2Config


class Views(NamedTuple):
    """What the teachers think of a batch: the last hidden states of each, and the heads that make logits of them."""

    hidden: Sequence[Any]
    kernels: Sequence[jax.Array]


def check_teachers(teachers: Sequence[Teacher], config: GPT2Config) -> None:
    """Whether they can teach a model.

    Raises:
      TypeError: one is no `Teacher`.
      ValueError: one has another vocabulary, or fewer positions; the message has the numbers.
    """
    for teacher in teachers:
        if not isinstance(teacher, Teacher):
            raise TypeError(f"a teacher is {type(teacher).__name__}; give Teacher(params, config)")
        check_params(teacher.params, teacher.config)
        check_trainable(teacher.params)
        for name in ("vocab_size", "eos_token_id"):
            one, other = getattr(teacher.config, name), getattr(config, name)
            if one != other:
                raise ValueError(f"the teacher's {name} is {one} and the model's {other}; they must share a tokenizer")
        if teacher.config.n_positions < config.n_positions:
            raise ValueError(
                f"the teacher has {teacher.config.n_positions} positions and the model {config.n_positions}; "
                "it must see as far"
            )


def heads(teachers: Sequence[Teacher]) -> list[jax.Array]:
    """The head's weight (V, D) of each teacher."""
    return [head_kernel(teacher.params, teacher.config) for teacher in teachers]


def mean_probabilities(views: Views, config: GPT2Config) -> jax.Array:
    """The mean of the teachers' distributions, float32 (M, V), of hidden states (B, t, D)."""
    probs = [
        jax.nn.softmax(logits_by(kernel_VD, config, x_BtD.reshape(-1, x_BtD.shape[-1])), axis=-1)
        for x_BtD, kernel_VD in zip(views.hidden, views.kernels, strict=True)
    ]
    return sum(probs[1:], start=probs[0]) / jnp.float32(len(probs))
