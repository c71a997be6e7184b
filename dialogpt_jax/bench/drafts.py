"""Speculative decoding where each draft is accepted with a given probability: a model and prompts in, what is timed out.

How often drafts are right is a matter of the models and of what is said; drawn weights say nothing of it. So the drafts are
made as always, which costs what it costs, and then put right: with `ACCEPTED` they become what the model will say, which
is known from a reply before, and else something other. A draft behind a wrong one is not looked at, as always.

Letters: B rows, R reply slots, M rows that take a token (here B), D drafts.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dialogpt_jax as dg
from dialogpt_jax.bench.cases import ACCEPTED
from dialogpt_jax.bench.worker import Program
from dialogpt_jax.cache import cache_dtype, init_cache
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding.generate import begin_replies, draft_scopes, model_step
from dialogpt_jax.decoding.loop import DecodeState, decode
from dialogpt_jax.decoding.request import Request, assemble
from dialogpt_jax.decoding.speculative import Draft, draft_by_model, look_up, speculate
from dialogpt_jax.replies.language_model import LanguageModel

TRIES = 4  # until what is said with drafts is what was expected: near ties may be drawn otherwise


@functools.partial(jax.jit, static_argnames="config")
def forced_program(
    params: Any, config: GPT2Config, request: Request, draft: Draft, said_MR: jax.Array, right_MR: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """tokens_MR, and of each row the forwards and the accepted drafts.

    Args:
      said_MR: what the model is expected to say.
      right_MR: bool, whether the draft of that token is right.
    """
    rows, width = request.tokens_BT.shape
    cache = init_cache(config, rows, width, cache_dtype(params))
    state = begin_replies(params, config, request, cache, draft)
    if draft.config is None:
        own: Callable[[DecodeState], Any] = functools.partial(look_up, drafts=draft.tokens)
    else:
        own = functools.partial(draft_by_model, model_step(draft.params, draft.config), drafts=draft.tokens)

    def draft_fn(state: DecodeState) -> tuple[jax.Array, Any]:
        drafts_MD, draft_cache = own(state)
        places_MD = jnp.minimum(state.counts_M[:, None] + jnp.arange(draft.tokens)[None], said_MR.shape[1] - 1)
        said_MD, right_MD = (jnp.take_along_axis(x, places_MD, axis=1) for x in (said_MR, right_MR))
        wrong_MD = jnp.where(drafts_MD == said_MD, drafts_MD ^ 1, drafts_MD)
        return jnp.where(right_MD, said_MD, wrong_MD), draft_cache

    state = decode(model_step(params, config), state, functools.partial(speculate, draft_fn=draft_fn))
    return state.tokens_MR, state.drafting.forwards_M, state.drafting.accepted_M


def speculating(model: LanguageModel, draft: Draft, tokens_BT: np.ndarray, new: int) -> Program:
    """Replies of `new` tokens, greedy, EOS forbidden, by forced drafts.

    Raises:
      ValueError: what is said with drafts is not settled, or too few of them are accepted.
    """
    rows, length = tokens_BT.shape
    how: dict[str, Any] = {"sampling": dataclasses.replace(dg.GREEDY, min_new_tokens=new), "max_new_tokens": new}
    how["keys"] = jax.random.split(jax.random.key(0), rows)
    request = assemble(
        model.config, tokens_BT, np.full(rows, length, np.int32), scopes=draft_scopes(draft, model.config), **how
    )
    right_MR = np.random.default_rng(4).random((rows, request.slots)) < ACCEPTED
    said_MR = np.zeros((rows, request.slots), np.int32)
    for _ in range(TRIES):
        out = jax.device_get(forced_program(model.params, model.config, request, draft, said_MR, right_MR))
        settled = np.array_equal(out[0], said_MR)
        said_MR = np.asarray(out[0])
        if settled:
            break
    else:
        raise ValueError(f"replies with drafts differ in each of {TRIES} runs; take --dtype float32")
    held = jax.device_put((request, draft, said_MR, right_MR))
    return Program(lambda: jax.block_until_ready(forced_program(model.params, model.config, *held)))
