"""A ranker's parameters as a value: a GPT-2's without a head, and one scoring row; what loads, ranks and trains it shares.

    {"wte": …, "h_0": …, "ln_f": …, "score": {"kernel": (1, D)}}
    x_BD, the last hidden state of each text ─score_of→ scores_B, float32

A score is the row times the hidden state of a text's last real token. It is not yet a probability: its sigmoid is, and the
softmax of two scores is the probability that the first is the better of two replies.

Letters: B texts, D model.

Source: Gao et al. 2020 (arXiv 2009.06978); golsun/DialogRPT `src/model.py`.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from dialogpt_jax.arguments import shown
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.int8 import is_int8
from dialogpt_jax.model import Params, check_params, head_kernel, init_params


def trunk_of(params: Params) -> Params:
    """A ranker's parameters without its scoring row: those of a GPT-2."""
    return {name: part for name, part in params.items() if name != "score"}


def score_of(params: Params, x: jax.Array) -> jax.Array:
    """Hidden states (…, D) → float32 scores (…)."""
    row_D = params["score"]["kernel"][0].astype(jnp.float32)
    return jnp.sum(x.astype(jnp.float32) * jnp.expand_dims(row_D, tuple(range(x.ndim - 1))), axis=-1)


def add_score_row(params: Params, config: GPT2Config) -> tuple[Params, GPT2Config]:
    """A language model as a ranker that is not yet trained, and its config: the row begins as the head's row of EOS.

    So the authors begin: what a model holds for an end was said well. A head of its own is left behind.
    """
    check_params(params, config)
    if is_int8(params):
        raise ValueError("the parameters are int8, and a ranker has floating ones; load the model in float32")
    kernel_1D = head_kernel(params, config)[config.eos_token_id][None]
    trunk = {name: part for name, part in params.items() if name != "lm_head"}
    return {**trunk, "score": {"kernel": kernel_1D}}, dataclasses.replace(config, tie_word_embeddings=True)


def init_ranker(config: GPT2Config, key: jax.Array) -> Params:
    """Fresh parameters of a ranker."""
    return add_score_row(init_params(config, key), config)[0]


def check_ranker(params: Params, config: GPT2Config) -> None:
    """Whether parameters are those of a ranker of this config.

    Raises:
      TypeError: `config` is no `GPT2Config`, or `params` no tree of parameters.
      ValueError: they are a language model's, int8, or of other sizes; the message names the first that differs.
    """
    if not isinstance(params, Mapping):
        raise TypeError(f"params are {shown(params)}; give those of a ranker, as `load_ranker` reads them")
    if "score" not in params:
        raise ValueError(
            "the parameters have no scoring row: they are a language model's, and a ranker's are wanted; "
            "`dialogpt train --pairs FILE` makes one"
        )
    if is_int8(params):
        raise ValueError("the parameters are int8, and a ranker has floating ones")
    check_params(trunk_of(params), config)
    found = jnp.shape(params["score"]["kernel"])
    if found != (1, config.n_embd):
        raise ValueError(f"the scoring row has the shape {found}; this config needs {(1, config.n_embd)}")
