"""Contrastive search (Su et al. 2022): of the k likeliest tokens the one that says the most that is new; a reply a prompt.

    logits_BV, hidden_BSD ─begin→ ContrastiveState ─advance→ ContrastiveState ─advance→ …       until every row is done

A step runs the k likeliest tokens of each row through the model at once. Each then has a probability p and a hidden state
h (the model's last, after the final norm), and the one with the best

    (1 − α) · p − α · max over earlier tokens j of cos(h, h_j)

is said: j goes over the context and the reply so far. Its keys and values are moved behind the row's by one write, and the
logits that it gave are the next step's. `begin` and `advance` know no model: tests drive them with a toy.

Source: "A Contrastive Framework for Neural Text Generation", equation 5; transformers' `_contrastive_search` (up to 4.56).

Letters: B rows, K candidates, M = B·K, T prompt tokens, S slots (positions), R reply slots, D width, V vocabulary (padded).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialogpt_jax import model
from dialogpt_jax.arguments import as_number, as_whole_number, shown
from dialogpt_jax.cache import KVCache, ReplyCache, cache_dtype, init_cache, init_reply, keep_reply
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding.contrastive_options import DEFAULT_ALPHA, DEFAULT_K
from dialogpt_jax.decoding.generate import Generated, as_asked
from dialogpt_jax.decoding.logits import is_possible
from dialogpt_jax.decoding.loop import RowSettings
from dialogpt_jax.decoding.processors import ReplyState, process
from dialogpt_jax.decoding.request import Request, assemble
from dialogpt_jax.decoding.sampling import GREEDY, Sampling
from dialogpt_jax.decoding.soundness import marked
from dialogpt_jax.decoding.stops import Stops, said_a_stop
from dialogpt_jax.token_arrays import is_traced

# tokens_BK, positions_B, cache → logits_BKV of the token after each, hidden_BKD of each, and a cache that holds all K
CandidatesFn = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, jax.Array, Any]]
# such a cache and chosen_B → the cache with each row's chosen one in it, and no other
KeepFn = Callable[[Any, jax.Array], Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ContrastiveState:
    """What a contrastive search carries.

    Attributes:
      settings: what each row brought.
      alpha_B: float32, the weight of the penalty.
      tokens_BR: int32, the reply so far; EOS where nothing is written.
      logprobs_BR: float32, the model's own log-probability of each; 0 where nothing is written.
      counts_B: int32, tokens of the reply, its EOS included. All of them are in the cache.
      finished_B: bool, EOS was said, or a text that ends a reply.
      logits_BV: float32, of the next token.
      unit_BSD: float32, the hidden state of each token, of length 1, by position; what lies from `lengths + counts` on,
        pads too, is not looked at.
      cache: what the step function carries.
      processors, stops: as in `DecodeState`.
      top_k: static, K.
      eos: static, the id that ends a reply.
    """

    settings: RowSettings
    alpha_B: jax.Array
    tokens_BR: jax.Array
    logprobs_BR: jax.Array
    counts_B: jax.Array
    finished_B: jax.Array
    logits_BV: jax.Array
    unit_BSD: jax.Array
    cache: Any
    processors: tuple[Any, ...]
    stops: Stops | None
    top_k: int = dataclasses.field(metadata={"static": True})
    eos: int = dataclasses.field(metadata={"static": True})

    @property
    def done_B(self) -> jax.Array:
        """A row is done when it has ended, or has all the tokens it may get."""
        return self.finished_B | (self.counts_B >= jnp.minimum(self.settings.limits_M, self.tokens_BR.shape[1]))


def begin(
    logits_BV: jax.Array,
    hidden_BSD: jax.Array,
    settings: RowSettings,
    alpha_B: jax.Array,
    cache: Any,
    *,
    slots: int,
    top_k: int,
    eos: int,
    processors: tuple[Any, ...] = (),
    stops: Stops | None = None,
) -> ContrastiveState:
    """The state before the first token of each reply, from what a prefill has of its prompt; as in `ContrastiveState`.

    Args:
      hidden_BSD: of every token of the prompts, with room for the replies behind the longest.
      slots: R, the most tokens that any reply may get.
    """
    rows = logits_BV.shape[0]
    return ContrastiveState(
        settings=settings,
        alpha_B=alpha_B,
        tokens_BR=jnp.full((rows, slots), eos, jnp.int32),
        logprobs_BR=jnp.zeros((rows, slots), jnp.float32),
        counts_B=jnp.zeros(rows, jnp.int32),
        finished_B=jnp.zeros(rows, bool),
        logits_BV=logits_BV,
        unit_BSD=_unit(hidden_BSD),
        cache=cache,
        processors=processors,
        stops=stops,
        top_k=top_k,
        eos=eos,
    )


def advance(candidates_fn: CandidatesFn, keep_fn: KeepFn, state: ContrastiveState) -> ContrastiveState:
    """One token more for each row that is not done.

    The candidates for token number `counts` of the reply stand at position `lengths + counts`, and are compared with the
    tokens at all positions before.

        context [a b c], reply so far [x y]:  K candidates at position 5, compared with positions 0 to 4
    """
    settings, going_B = state.settings, ~state.done_B
    positions_B = settings.lengths_M + state.counts_B
    with jax.named_scope("sample"):
        reply = ReplyState(
            tokens_MR=state.tokens_BR,
            counts_M=state.counts_B,
            limits_M=settings.limits_M,
            history=settings.history,
            lists=settings.lists,
            eos=state.eos,
        )
        processed_BV = process(state.logits_BV, reply, sampling=settings.sampling, processors=state.processors)
        best_BK, ids_BK = jax.lax.top_k(processed_BV, state.top_k)
        probs_BK = jnp.exp(best_BK - jax.nn.logsumexp(processed_BV, axis=-1, keepdims=True))
    logits_BKV, hidden_BKD, cache = candidates_fn(ids_BK, positions_B, state.cache)
    with jax.named_scope("sample"):
        unit_BKD = _unit(hidden_BKD)
        cosine_BKS = jnp.einsum("bkd,bsd->bks", unit_BKD, state.unit_BSD, precision="highest")
        before_BS = jnp.arange(cosine_BKS.shape[2])[None] < positions_B[:, None]
        penalty_BK = jnp.max(jnp.where(before_BS[:, None], cosine_BKS, -1.0), axis=-1)
        alpha_B1 = state.alpha_B[:, None]
        score_BK = (1.0 - alpha_B1) * probs_BK - alpha_B1 * penalty_BK
        score_BK = jnp.where(jnp.isneginf(best_BK), -jnp.inf, score_BK)  # a forbidden token is not said for being new
        chosen_B = jnp.argmax(score_BK, axis=-1)

    rows_B = jnp.arange(chosen_B.shape[0])
    token_B = ids_BK[rows_B, chosen_B].astype(jnp.int32)
    logprob_B = state.logits_BV[rows_B, token_B] - jax.nn.logsumexp(state.logits_BV, axis=-1)
    logprob_B = marked(logprob_B, is_possible(processed_BV))
    slot_B = jnp.where(going_B, state.counts_B, state.tokens_BR.shape[1])  # past the end: dropped
    tokens_BR = state.tokens_BR.at[rows_B, slot_B].set(token_B, mode="drop")
    counts_B = state.counts_B + going_B
    ended_B = token_B == state.eos
    if state.stops is not None:
        ended_B |= said_a_stop(tokens_BR, counts_B, state.stops)
    return dataclasses.replace(
        state,
        tokens_BR=tokens_BR,
        logprobs_BR=state.logprobs_BR.at[rows_B, slot_B].set(logprob_B, mode="drop"),
        counts_B=counts_B,
        finished_B=state.finished_B | (going_B & ended_B),
        logits_BV=jnp.where(going_B[:, None], logits_BKV[rows_B, chosen_B], state.logits_BV),
        # Of a row that is done this is past its end, where nobody looks; the cache likewise.
        unit_BSD=state.unit_BSD.at[rows_B, positions_B].set(unit_BKD[rows_B, chosen_B], mode="drop"),
        cache=keep_fn(cache, chosen_B),
    )


def search(candidates_fn: CandidatesFn, keep_fn: KeepFn, state: ContrastiveState) -> ContrastiveState:
    """Steps until every row is done."""
    return jax.lax.while_loop(
        lambda state: ~jnp.all(state.done_B), lambda state: advance(candidates_fn, keep_fn, state), state
    )


def _unit(x: jax.Array) -> jax.Array:
    """Vectors of length 1, float32; a zero stays zero."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-20)


def contrastive_search(
    params: model.Params,
    config: GPT2Config,
    tokens_BT: jax.typing.ArrayLike,
    lengths_B: jax.typing.ArrayLike,
    *,
    penalty_alpha: float = DEFAULT_ALPHA,
    top_k: int = DEFAULT_K,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stops: Stops | None = None,
) -> Generated:
    """A reply to each prompt that neither wanders nor goes round in circles, in one compiled call; nothing is drawn.

    Args:
      params, config, tokens_BT, lengths_B, max_new_tokens, stops: as `generate` takes them.
      penalty_alpha: α, from 0 (the likeliest token: greedy) to 1 (the newest of the k).
      top_k: so many tokens are tried at each step, which cost a step of as many rows.
      sampling: greedy, with any processors.

    Raises:
      ValueError: as `generate`; a number out of range; a sampling that draws.

    Example:
      >>> tokens_BT, lengths_B = np.array([bot.encode(["Hi!"])]), np.array([len(bot.encode(["Hi!"]))])
      >>> found = dg.contrastive_search(bot.params, bot.config, tokens_BT, lengths_B, max_new_tokens=8)
      >>> found.tokens.shape
      (1, 8)
    """
    model.check_params(params, config)
    alpha = as_number("penalty_alpha", penalty_alpha, least=0.0, most=1.0)
    top_k = as_whole_number("top_k", top_k, least=1, most=config.vocab_size)
    if isinstance(sampling, Sampling) and sampling.temperature is not None:
        raise ValueError(
            f"temperature is {shown(sampling.temperature)}, and contrastive search draws nothing; give a sampling that is "
            "greedy, such as GREEDY or Sampling(0, no_repeat_ngram=3)"
        )
    rows = np.shape(lengths_B)[0] if np.ndim(lengths_B) else 1
    request = assemble(
        config,
        tokens_BT,
        lengths_B,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        keys=jax.random.split(jax.random.key(0), rows),  # nothing is drawn
        stops=stops,
    )
    alpha_B: Any = np.full(rows, alpha, np.float32)
    out = contrastive_program(params, config, request, alpha_B, top_k=top_k)
    out = as_asked(out, (rows,), int(max_new_tokens), config.eos_token_id)
    return out if is_traced(out.tokens) else jax.device_put(out)


@functools.partial(jax.jit, static_argnames=("config", "top_k"))
def contrastive_program(
    params: model.Params, config: GPT2Config, request: Request, alpha_B: jax.Array, *, top_k: int
) -> Generated:
    """A reply to each row of a request; tokens and log-probabilities are one bucket wide.

    The replies go into the prefix's cache, behind the prompts. What the candidates of a step share is thus all of it, and
    each has one slot of its own beside it.
    """
    lengths_B = request.settings.lengths_M
    rows, width = request.tokens_BT.shape
    slots = min(width + request.slots, config.n_positions)
    empty = init_cache(config, rows, slots, cache_dtype(params))
    x_BTD, cache = model.hidden(params, config, request.tokens_BT, 0, empty)
    last_BD = jnp.take_along_axis(x_BTD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]

    def candidates(tokens_BK: jax.Array, positions_B: jax.Array, cache: KVCache) -> tuple[jax.Array, jax.Array, Any]:
        positions_M1 = jnp.repeat(positions_B, top_k)[:, None]
        grown = init_reply(config, cache, positions_B, top_k, 1)
        x_M1D, grown = model.hidden(params, config, tokens_BK.reshape(-1, 1), positions_M1, grown)
        logits_MV = model.logits(params, config, x_M1D[:, 0])
        return logits_MV.reshape(rows, top_k, -1), x_M1D.reshape(rows, top_k, -1), grown

    def keep(grown: ReplyCache, chosen_B: jax.Array) -> KVCache:
        return keep_reply(grown, config, chosen_B)

    state = begin(
        model.logits(params, config, last_BD),
        jnp.pad(x_BTD, ((0, 0), (0, slots - width), (0, 0))),
        request.settings,
        alpha_B,
        cache,
        slots=request.slots,
        top_k=top_k,
        eos=config.eos_token_id,
        processors=request.processors,
        stops=request.stops,
    )
    state = search(candidates, keep, state)
    return Generated(state.tokens_BR, state.counts_B, state.finished_B, state.logprobs_BR)
