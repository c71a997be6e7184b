"""What the parts of decoding cost: a processor or a search by its name in, what is timed out.

Processors: contexts of 256 tokens and replies of 24, which repeat themselves; logits by Zipf's law, as a language model's.
Each takes `PROCESSOR_TOKENS` tokens in a call, so that the start of a call does not count; a processor's cost is its time
less that of a plain draw, or of the greedy choice for what greedy has too. Searches share one prefix.

Letters: B rows, T prompt tokens, M rows that take a token, R reply slots, V vocabulary (padded).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dialogpt_jax as dg
from dialogpt_jax.bench.cases import (
    DRAWN,
    GREEDY,
    ONE_DRAWN,
    ONE_GREEDY,
    PROCESSED,
    PROCESSOR_TOKENS,
    STEP,
    STEP_TOKENS,
)
from dialogpt_jax.bench.worker import Program
from dialogpt_jax.cache import cache_dtype
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding import stream
from dialogpt_jax.decoding.logits import by_row, choose, top_k_bucket, xtc_now
from dialogpt_jax.decoding.processor_arrays import history_of, scopes_of, token_lists
from dialogpt_jax.decoding.processors import ReplyState
from dialogpt_jax.decoding.request import assemble
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.model import Params

SLOTS, SAID = 64, 24


def processor(params: Params, config: GPT2Config, rows: int, what: str) -> Program:
    """Taking tokens by one of `PROCESSORS`."""
    width = min(256, config.n_positions // 2)
    if what == STEP:
        return Program(_stepping(params, config, rows))
    greedy = what == GREEDY or what in PROCESSED
    return Program(_drawing(config, rows, width, DRAWN.get(what) or PROCESSED.get(what) or {}, greedy=greedy))


@functools.partial(jax.jit, static_argnames="bucket")
def _draw_often(logits_MV: Any, state: ReplyState, sampling: Sampling, keys_M: jax.Array, bucket: int) -> jax.Array:
    """Token after token; logits and what was said depend on the last, so that nothing is done once for all."""
    uniforms_M = jax.vmap(jax.random.uniform)(keys_M)

    def once(_: Any, last_M: jax.Array) -> jax.Array:
        return choose(
            logits_MV + 1e-9 * last_M[:, None].astype(jnp.float32),
            uniforms_M,
            dataclasses.replace(state, tokens_MR=state.tokens_MR + jnp.minimum(last_M, 0)[:, None]),
            sampling=sampling,
            bucket=bucket,
            xtc_now_M=xtc_now(sampling, keys_M, last_M),
        )[0]

    return jax.lax.fori_loop(0, PROCESSOR_TOKENS, once, jnp.zeros(logits_MV.shape[0], jnp.int32))


def _drawing(
    config: GPT2Config, rows: int, width: int, settings: Mapping[str, Any], *, greedy: bool
) -> Callable[[], Any]:
    random = np.random.default_rng(0)
    plain = {"temperature": None if greedy else 1.0, "min_new_tokens": None}
    sampling = Sampling(**{**plain, **settings})
    tail_V = -1.4 * np.log(np.arange(1, config.vocab_size + 1))
    logits_MV = np.full((rows, config.padded_vocab_size), -np.inf, np.float32)
    for m in range(rows):
        logits_MV[m, : config.vocab_size] = random.permutation(tail_V) + 0.5 * random.standard_normal(len(tail_V))
    contexts_BT = np.tile(random.integers(0, config.vocab_size, (rows, width // 4)), 4)
    lengths_B = np.full(rows, width, np.int32)
    tokens_MR = np.zeros((rows, SLOTS), np.int32)
    tokens_MR[:, :SAID] = contexts_BT[:, 8 : 8 + SAID]
    state = ReplyState(
        tokens_MR=jnp.asarray(tokens_MR),
        counts_M=jnp.full(rows, SAID, jnp.int32),
        limits_M=jnp.full(rows, SLOTS, jnp.int32),
        history={s: history_of(s, contexts_BT, lengths_B, width, config.eos_token_id) for s in scopes_of(sampling)},
        lists=token_lists(sampling, rows, config),
        eos=config.eos_token_id,
    )
    keys_M = jax.random.split(jax.random.key(0), rows)
    held = jax.device_put((logits_MV, state, by_row(sampling, rows), keys_M))
    bucket = top_k_bucket(sampling, config.vocab_size)
    return lambda: jax.block_until_ready(_draw_often(*held, bucket=bucket))


def _stepping(params: Params, config: GPT2Config, rows: int) -> Callable[[], Any]:
    """Some tokens of the model, behind a prompt of 64; a new reply begins when one is full."""
    prompt = min(64, config.n_positions // 2)
    most = min(256, config.n_positions - prompt)
    tokens_BT = np.random.default_rng(0).integers(0, config.vocab_size, (rows, prompt))
    how: dict[str, Any] = {"sampling": Sampling(None, min_new_tokens=most), "max_new_tokens": most}
    how["keys"] = jax.random.split(jax.random.key(0), rows)
    request = assemble(config, tokens_BT, np.full(rows, prompt), **how)
    held: list[Any] = []
    left = 0

    def run() -> None:
        nonlocal left
        if left < STEP_TOKENS:
            cache = stream.empty_cache(config, rows, request.tokens_BT.shape[1], cache_dtype(params))
            held[:], left = [stream.start(params, config, request, cache)[0]], most - 1
        state, said = stream.steps(params, config, held.pop(), STEP_TOKENS)
        held.append(state)
        left -= STEP_TOKENS
        said.block_until_ready()

    return run


def search(params: Params, config: GPT2Config, tokens_BT: np.ndarray, new: int, what: str) -> Program:
    """One of `SEARCHES`, EOS forbidden."""
    asked: Any = (params, config, tokens_BT, [tokens_BT.shape[1]])
    keys = jax.random.split(jax.random.key(0), 1)
    greedy: dict[str, Any] = {"max_new_tokens": new, "sampling": dataclasses.replace(dg.GREEDY, min_new_tokens=new)}
    drawn = greedy | {"sampling": dg.Sampling(1.0, top_k=50, min_new_tokens=new), "keys": keys}
    runs: dict[str, Callable[[], Any]] = {
        ONE_GREEDY: lambda: dg.generate(*asked, keys=keys, **greedy),
        ONE_DRAWN: lambda: dg.generate(*asked, **drawn),
        "16 candidates": lambda: dg.generate_candidates(*asked, candidates=16, **drawn),
        "4 beams": lambda: dg.beam_search(*asked, beams=4, **greedy),
        "10 beams": lambda: dg.beam_search(*asked, beams=10, **greedy),
        "10 beams in 5 groups": lambda: dg.beam_search(*asked, beams=10, beam_groups=5, **greedy),
        "contrastive, k 4": lambda: dg.contrastive_search(*asked, **greedy),
    }
    return Program(lambda: jax.block_until_ready(runs[what]()))
