"""The decoding loop, which knows no model: logits and a step function in, replies out.

    logits_MV ─begin→ DecodeState ─advance→ DecodeState ─advance→ …            `decode` advances until every row is done

Tests drive it with Markov chains; a stream calls the same `advance` one step at a time. Rows share nothing: the state holds
for each where it stands, its key and its sampling, and token t of a reply is drawn with `fold_in(key, t)`, t counting the
reply's own tokens; so a row draws the same alone, in a batch, streamed or in one go, and another row may take its place.

Letters: M rows (all candidates of all prompts), T tokens that a step feeds (1; more where they are drafts,
`speculative.py`), R reply slots, V vocabulary (padded).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dialogpt_jax.decoding.logits import choose, xtc_now
from dialogpt_jax.decoding.processors import ReplyState, TokenLists
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.decoding.soundness import marked
from dialogpt_jax.decoding.stops import Stops, said_a_stop

# tokens_MT, positions_MT, cache → logits_MTV (float32) of the token after each, and the cache with these tokens in it
StepFn = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowSettings:
    """What each row brings, and keeps while its reply lasts; every array has one value a row.

    Attributes:
      lengths_M: int32, tokens of the context that the reply continues.
      limits_M: int32, the most tokens that the reply may get.
      keys_M: one `jax.random.key` a row.
      sampling: how its tokens are chosen; each number that is on is a float32 array (M,).
      lists: those of the sampling.
      history: what processors see of the context, as in `ReplyState`.
    """

    lengths_M: jax.Array
    limits_M: jax.Array
    keys_M: jax.Array
    sampling: Sampling
    lists: TokenLists = dataclasses.field(default_factory=TokenLists)
    history: dict[str, jax.Array] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """What a decoding loop carries.

    Attributes:
      settings: what each row brought.
      tokens_MR: int32, the reply so far; EOS where nothing is written.
      logprobs_MR: float32, log-probability of each by the model's own distribution; 0 where nothing is written,
        `soundness.FORBIDDEN` where no token was possible.
      counts_M: int32, tokens of the reply, its EOS included.
      finished_M: bool, EOS was drawn, or a text that ends a reply was said.
      last_M: int32, the last token drawn. It is not in the cache yet: a step begins by feeding it.
      cache: what the step function carries.
      processors: functions of the caller's, as pytrees.
      stops: texts that end a reply.
      bucket: static, how many of the best tokens `top_k` chooses from (`top_k_bucket`).
      eos: static, the id that ends a reply.
      drafting: what a drafter carries, and counts (`speculative.Drafting`); `None` where nothing is drafted.
    """

    settings: RowSettings
    tokens_MR: jax.Array
    logprobs_MR: jax.Array
    counts_M: jax.Array
    finished_M: jax.Array
    last_M: jax.Array
    cache: Any
    processors: tuple[Any, ...]
    stops: Stops | None
    bucket: int | None = dataclasses.field(metadata={"static": True})
    eos: int = dataclasses.field(metadata={"static": True})
    drafting: Any = None

    @property
    def done_M(self) -> jax.Array:
        """A row is done when it has ended, or has all the tokens it may get."""
        return self.finished_M | (self.counts_M >= jnp.minimum(self.settings.limits_M, self.tokens_MR.shape[1]))

    @property
    def reply(self) -> ReplyState:
        """What processors see."""
        return ReplyState(
            tokens_MR=self.tokens_MR,
            counts_M=self.counts_M,
            limits_M=self.settings.limits_M,
            history=self.settings.history,
            lists=self.settings.lists,
            eos=self.eos,
        )


def begin(
    logits_MV: jax.Array,
    settings: RowSettings,
    cache: Any,
    *,
    slots: int,
    bucket: int | None,
    eos: int,
    processors: tuple[Any, ...] = (),
    stops: Stops | None = None,
) -> DecodeState:
    """The state after the first token of each reply, drawn from the prefill's logits.

    Args:
      logits_MV: of the token after each context.
      settings, cache, bucket, eos, processors, stops: as in `DecodeState`.
      slots: R, the most tokens that any reply may get.
    """
    rows = logits_MV.shape[0]
    state = DecodeState(
        settings=settings,
        tokens_MR=jnp.full((rows, slots), eos, jnp.int32),
        logprobs_MR=jnp.zeros((rows, slots), jnp.float32),
        counts_M=jnp.zeros(rows, jnp.int32),
        finished_M=jnp.zeros(rows, bool),
        last_M=jnp.full(rows, eos, jnp.int32),
        cache=cache,
        processors=processors,
        stops=stops,
        bucket=bucket,
        eos=eos,
    )
    return record(state, logits_MV, ~state.done_M)


def advance(step_fn: StepFn, state: DecodeState) -> DecodeState:
    """One step: feeds each row's last token, draws the next. A row that is done does not change.

    The token that is fed is number `counts − 1` of the reply, so it stands at position `lengths + counts − 1`. A row that
    is done feeds its last token again, to the same slot.

        context [a b c], reply so far [x y]:  lengths 3, counts 2 → feeds y at position 4, draws the third token
    """
    positions_M = state.settings.lengths_M + jnp.maximum(state.counts_M - 1, 0)
    logits_MTV, cache = step_fn(state.last_M[:, None], positions_M[:, None], state.cache)
    return record(dataclasses.replace(state, cache=cache), logits_MTV[:, 0], ~state.done_M)


AdvanceFn = Callable[[StepFn, DecodeState], DecodeState]  # one step, or a round of drafts


def decode(step_fn: StepFn, state: DecodeState, by: AdvanceFn = advance) -> DecodeState:
    """Steps until every row is done."""
    return jax.lax.while_loop(
        lambda state: ~jnp.all(state.done_M),
        lambda state: by(step_fn, state),
        state,
    )


def decode_some(
    step_fn: StepFn,
    state: DecodeState,
    most: jax.typing.ArrayLike,
    enough: jax.typing.ArrayLike | None = None,
    by: AdvanceFn = advance,
) -> DecodeState:
    """Steps until `enough` rows are done, by default every one, or `most` steps are taken."""
    enough = state.counts_M.shape[0] if enough is None else enough
    _, state = jax.lax.while_loop(
        lambda carry: (carry[0] < most) & (jnp.sum(carry[1].done_M) < enough),
        lambda carry: (carry[0] + 1, by(step_fn, carry[1])),
        (jnp.int32(0), state),
    )
    return state


def record(state: DecodeState, logits_MV: jax.Array, going_M: jax.Array) -> DecodeState:
    """Draws the next token of each row that goes on, none of which is done, and writes it down."""
    settings = state.settings
    with jax.named_scope("sample"):
        uniforms_M = jax.vmap(lambda key, count: jax.random.uniform(jax.random.fold_in(key, count)))(
            settings.keys_M, state.counts_M
        )
        drawn_M, possible_M = choose(
            logits_MV,
            uniforms_M,
            state.reply,
            sampling=settings.sampling,
            bucket=state.bucket,
            processors=state.processors,
            xtc_now_M=xtc_now(settings.sampling, settings.keys_M, state.counts_M),
        )
        chosen_M = jnp.take_along_axis(logits_MV, drawn_M[:, None], axis=1)[:, 0]
        logprob_M = marked(chosen_M - jax.nn.logsumexp(logits_MV, axis=-1), possible_M)
    rows_M = jnp.arange(drawn_M.shape[0])
    slot_M = jnp.where(going_M, state.counts_M, state.tokens_MR.shape[1])  # past the end: dropped
    tokens_MR = state.tokens_MR.at[rows_M, slot_M].set(drawn_M, mode="drop")
    ended_M = drawn_M == state.eos
    if state.stops is not None:
        ended_M |= said_a_stop(tokens_MR, state.counts_M + going_M, state.stops)
    return dataclasses.replace(
        state,
        tokens_MR=tokens_MR,
        logprobs_MR=state.logprobs_MR.at[rows_M, slot_M].set(logprob_M, mode="drop"),
        counts_M=state.counts_M + going_M,
        finished_M=state.finished_M | (going_M & ended_M),
        last_M=jnp.where(going_M, drawn_M, state.last_M),
    )
