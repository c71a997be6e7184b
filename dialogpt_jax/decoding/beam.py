"""Beam search, which knows no model: logits and a step function in, the best replies of each row out.

    logits_BV ─begin→ BeamState ─advance→ BeamState ─advance→ …                `search` advances until every row is done

A row has N live beams, which go on, and up to N finished replies, which stand apart and never change. A step takes the 2N
best of all one-token continuations of the live beams: those among the first N that end are finished replies; of those that
go on, the best N live. (A beam ends in one way only, so of 2N at least N go on.) Every processor works on a beam as on a
reply; what it makes of the log-probabilities is what is summed.

Rules, order and the three kinds of early stopping are transformers' (`GenerationMixin._beam_search`); a row that is done
stands still, whatever other rows do, and one beam is the plain loop's greedy reply.

Beams may be searched in G groups (Vijayakumar et al. 2016), each a search of its own and here a row of its own: B is then
G times the prompts, a prompt's groups side by side. The groups choose in turn, and a token costs each of them a penalty for
every live beam of the earlier ones that has just said it. At the end the best of all groups come out.

    2 groups of 2, penalty 0.5:   group 0 goes on with "I" and "I"   → in group 1 "I" has 1.0 less, in this step

Source: transformers' `_group_beam_search` (up to 4.56), but that a group which is done says nothing any more.

Letters: B rows, N beams, M = B·N, C = 2N continuations, G groups, R reply slots, V vocabulary (padded), X those of it that
may be drawn.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dialogpt_jax.decoding.beam_options import EARLY_STOPPING
from dialogpt_jax.decoding.logits import warp, xtc_now
from dialogpt_jax.decoding.loop import RowSettings, StepFn
from dialogpt_jax.decoding.processors import ReplyState, process
from dialogpt_jax.decoding.soundness import marked
from dialogpt_jax.decoding.stops import Stops, said_a_stop

# A cache and parents_BN → the cache in which beam n of a row is what its beam parents[n] was.
ReorderFn = Callable[[Any, jax.Array], Any]
_EARLY, _NEVER = EARLY_STOPPING[True], EARLY_STOPPING["never"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BeamRules:
    """How a row's beams are judged and when it is done.

    Attributes:
      length_penalty_B: float32; a reply's score is the sum of its log-probabilities over its length to this power.
      early_stopping_B: int32, of `EARLY_STOPPING`.
      diversity_B: float32, what a token costs for each time that an earlier group has just said it; `None`: one group.
      groups: static, G.
    """

    length_penalty_B: jax.Array
    early_stopping_B: jax.Array
    diversity_B: jax.Array | None = None
    groups: int = dataclasses.field(metadata={"static": True}, default=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hypotheses:
    """N beginnings or whole replies of each row.

    Attributes:
      tokens_BNR: int32, EOS where nothing is written.
      logprobs_BNR: float32, the model's own log-probability of each, before processors; 0 where nothing is written.
      scores_BN: float32, falling; −inf where there is none. Live: the sum so far; finished: over length ** penalty.
      counts_BN: int32, tokens of each.
    """

    tokens_BNR: jax.Array
    logprobs_BNR: jax.Array
    scores_BN: jax.Array
    counts_BN: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BeamState:
    """What a beam search carries.

    Attributes:
      settings: of the M beams, those of a row alike.
      rules: of the rows.
      live: beams that go on; the counts of a row are alike. Their last token is not in the cache yet.
      ended: finished replies, or those cut at the row's limit.
      done_B: bool, nothing of the row changes any more.
      cache: what the step function carries.
      processors: functions of the caller's.
      stops: texts that end a reply.
      bucket, eos: static, as in `DecodeState`.
    """

    settings: RowSettings
    rules: BeamRules
    live: Hypotheses
    ended: Hypotheses
    done_B: jax.Array
    cache: Any
    processors: tuple[Any, ...]
    stops: Stops | None
    bucket: int | None = dataclasses.field(metadata={"static": True})
    eos: int = dataclasses.field(metadata={"static": True})


def begin(
    logits_BV: jax.Array,
    settings: RowSettings,
    rules: BeamRules,
    cache: Any,
    *,
    slots: int,
    bucket: int | None,
    eos: int,
    processors: tuple[Any, ...] = (),
    stops: Stops | None = None,
) -> BeamState:
    """The state after the first token of every beam, from the prefill's logits; arguments as in `BeamState`.

    At first a row has one beam, for all would be the same. Logits and rules are of the prompts.
    """
    rules = jax.tree.map(lambda x_B: jnp.repeat(x_B, rules.groups, axis=0), rules)
    rows = logits_BV.shape[0] * rules.groups
    beams = settings.lengths_M.shape[0] // rows
    none = Hypotheses(
        tokens_BNR=jnp.full((rows, beams, slots), eos, jnp.int32),
        logprobs_BNR=jnp.zeros((rows, beams, slots), jnp.float32),
        scores_BN=jnp.full((rows, beams), -jnp.inf, jnp.float32),
        counts_BN=jnp.zeros((rows, beams), jnp.int32),
    )
    limits_B = settings.limits_M.reshape(rows, beams)[:, 0]
    state = BeamState(
        settings=settings,
        rules=rules,
        live=dataclasses.replace(none, scores_BN=none.scores_BN.at[:, 0].set(0.0)),
        ended=none,
        done_B=jnp.minimum(limits_B, slots) <= 0,
        cache=cache,
        processors=processors,
        stops=stops,
        bucket=bucket,
        eos=eos,
    )
    return _select(state, jnp.repeat(logits_BV, rules.groups * beams, axis=0))[0]


def advance(step_fn: StepFn, reorder_fn: ReorderFn, state: BeamState) -> BeamState:
    """One step: feeds each beam's last token, keeps the best continuations, and puts the cache in their order.

    The token that is fed stands at position `lengths + counts − 1`, as in the plain loop. It belongs to the beam that is
    the parent: so the cache is put in order after it is written.
    """
    counts_M = state.live.counts_BN.reshape(-1)
    last_M = jnp.maximum(counts_M - 1, 0)
    tokens_MR = state.live.tokens_BNR.reshape(counts_M.shape[0], -1)
    tokens_MT = jnp.take_along_axis(tokens_MR, last_M[:, None], axis=1)
    logits_MTV, cache = step_fn(tokens_MT, (state.settings.lengths_M + last_M)[:, None], state.cache)
    state, parents_BN = _select(dataclasses.replace(state, cache=cache), logits_MTV[:, 0])
    groups = state.rules.groups
    rows, beams = parents_BN.shape
    of_prompts = parents_BN.reshape(-1, groups, beams) + beams * jnp.arange(groups)[None, :, None]
    return dataclasses.replace(state, cache=reorder_fn(state.cache, of_prompts.reshape(rows // groups, -1)))


def search(step_fn: StepFn, reorder_fn: ReorderFn, state: BeamState) -> Hypotheses:
    """Steps until every row is done; the best replies of each prompt, best first."""
    state = jax.lax.while_loop(
        lambda state: ~jnp.all(state.done_B), lambda state: advance(step_fn, reorder_fn, state), state
    )
    groups = state.rules.groups
    if groups == 1:
        return state.ended
    all_of_them = jax.tree.map(lambda x: x.reshape(-1, groups * x.shape[1], *x.shape[2:]), state.ended)
    return _take(all_of_them, jax.lax.top_k(all_of_them.scores_BN, all_of_them.scores_BN.shape[1])[1])


def _select(state: BeamState, logits_MV: jax.Array) -> tuple[BeamState, jax.Array]:
    """The beams after one more token, and whose continuation each is, parents_BN; groups choose one after another."""
    groups = state.rules.groups
    if groups == 1:
        return _select_of_all(state, logits_MV, None)
    prompts, vocab = state.done_B.shape[0] // groups, logits_MV.shape[1]
    names = ("settings", "rules", "live", "ended", "done_B")

    def apart(x: jax.Array) -> jax.Array:
        return x.reshape(prompts, groups, -1, *x.shape[1:]).swapaxes(0, 1).reshape(groups, -1, *x.shape[1:])

    def together(x: jax.Array) -> jax.Array:
        return x.reshape(groups, prompts, -1, *x.shape[2:]).swapaxes(0, 1).reshape(-1, *x.shape[2:])

    def of_group(said_BV: jax.Array, group: Any) -> tuple[jax.Array, Any]:
        fields, logits_MV = group
        before = dataclasses.replace(state, cache=None, **fields)
        cost_B: Any = before.rules.diversity_B
        after, parents_BN = _select_of_all(before, logits_MV, cost_B[:, None] * said_BV)
        last_BN1 = jnp.maximum(after.live.counts_BN - 1, 0)[..., None]
        tokens_BN = jnp.take_along_axis(after.live.tokens_BNR, last_BN1, axis=2)[..., 0]
        goes_on_BN = ~before.done_B[:, None] & jnp.isfinite(after.live.scores_BN)
        said_BV = said_BV.at[jnp.arange(prompts)[:, None], tokens_BN].add(goes_on_BN.astype(jnp.float32))
        return said_BV, ({name: getattr(after, name) for name in ("live", "ended", "done_B")}, parents_BN)

    by_group = jax.tree.map(apart, ({name: getattr(state, name) for name in names}, logits_MV))
    _, found = jax.lax.scan(of_group, jnp.zeros((prompts, vocab), jnp.float32), by_group)
    changed, parents_BN = jax.tree.map(together, found)
    return dataclasses.replace(state, **changed), parents_BN


def _select_of_all(state: BeamState, logits_MV: jax.Array, cost_BV: jax.Array | None) -> tuple[BeamState, jax.Array]:
    """`_select` where nobody chose before, or where what was said then has a cost."""
    live, going_B = state.live, ~state.done_B
    rows, beams, slots = live.tokens_BNR.shape
    with jax.named_scope("sample"):
        scores_BC, parents_BC, tokens_BC = _continuations(state, logits_MV, cost_BV)
    count_B1 = live.counts_BN[:, :1]
    most_B1 = jnp.minimum(state.settings.limits_M.reshape(rows, beams)[:, :1], slots)
    over_BC = (tokens_BC == state.eos) | (count_B1 + 1 >= most_B1) | jnp.isposinf(scores_BC)
    logits_BC = logits_MV[jnp.arange(rows)[:, None] * beams + parents_BC, tokens_BC]
    total_BN = jax.nn.logsumexp(logits_MV, axis=-1).reshape(rows, beams)
    logprobs_BC = logits_BC - jnp.take_along_axis(total_BN, parents_BC, axis=1)
    grown = _grow(live, parents_BC, tokens_BC, marked(logprobs_BC, ~jnp.isposinf(scores_BC)), scores_BC)
    if state.stops is not None:
        over_BC |= holds_a_stop(grown, state.stops)

    chosen_BN = jax.lax.top_k(jnp.where(over_BC, -jnp.inf, scores_BC), beams)[1]
    lives = _take(dataclasses.replace(grown, scores_BN=jnp.where(over_BC, -jnp.inf, scores_BC)), chosen_BN)
    length_B1 = grown.counts_BN[:, :1].astype(jnp.float32)
    penalty_B1 = state.rules.length_penalty_B[:, None]
    ends_BC = over_BC & (jnp.arange(2 * beams)[None] < beams)
    final_BC = jnp.where(ends_BC, scores_BC / length_B1**penalty_B1, -jnp.inf)
    both = jax.tree.map(
        lambda *x: jnp.concatenate(x, axis=1), state.ended, dataclasses.replace(grown, scores_BN=final_BC)
    )
    ends = _take(both, jax.lax.top_k(both.scores_BN, beams)[1])

    never_B1 = (state.rules.early_stopping_B[:, None] == _NEVER) & (penalty_B1 > 0)
    hoped_B1 = jnp.where(never_B1, most_B1.astype(jnp.float32), length_B1)
    better_B = (lives.scores_BN[:, :1] / hoped_B1**penalty_B1 > ends.scores_BN[:, -1:])[:, 0]
    full_B = jnp.isfinite(ends.scores_BN[:, -1])
    enough_B = full_B & ((state.rules.early_stopping_B == _EARLY) | ~better_B | (beams == 1))
    none_left_B = (grown.counts_BN[:, :1] >= most_B1)[:, 0] | ~jnp.isfinite(lives.scores_BN[:, 0])

    def unless_done(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(going_B.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    parents_BN = jnp.take_along_axis(parents_BC, chosen_BN, axis=1)
    state = dataclasses.replace(
        state,
        live=jax.tree.map(unless_done, lives, live),
        ended=jax.tree.map(unless_done, ends, state.ended),
        done_B=state.done_B | enough_B | none_left_B,
    )
    return state, unless_done(parents_BN, jnp.broadcast_to(jnp.arange(beams)[None], (rows, beams)))


def _continuations(
    state: BeamState, logits_MV: jax.Array, cost_BV: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best 2N continuations of a row's beams, or as many drawn without replacement: scores, parents, tokens, (B, C).

    Drawn are those with the largest score plus a Gumbel number (Kool et al. 2019); scores fall either way.
    """
    live, settings = state.live, state.settings
    rows, beams, _ = live.tokens_BNR.shape
    reply = ReplyState(
        tokens_MR=live.tokens_BNR.reshape(rows * beams, -1),
        counts_M=live.counts_BN.reshape(-1),
        limits_M=settings.limits_M,
        history=settings.history,
        lists=settings.lists,
        eos=state.eos,
    )
    how: dict[str, Any] = {"sampling": settings.sampling, "processors": state.processors}
    if beams == 1 and cost_BV is None:  # processors look at what they look at where there are no beams
        logprobs_MX = jax.nn.log_softmax(process(logits_MV, reply, **how), axis=-1)
    else:
        logprobs_MX = jax.nn.log_softmax(logits_MV, axis=-1)
        if cost_BV is not None:
            logprobs_MX -= jnp.repeat(cost_BV, beams, axis=0)
        logprobs_MX = process(logprobs_MX, reply, **how)
    ids_MX = None
    if settings.sampling.temperature is not None:
        logprobs_MX, ids_MX = warp(
            logprobs_MX,
            sampling=settings.sampling,
            bucket=state.bucket,
            eos=state.eos,
            xtc_now_M=xtc_now(settings.sampling, settings.keys_M, reply.counts_M),
            least=2,
        )
    scores_BX = (live.scores_BN[..., None] + logprobs_MX.reshape(rows, beams, -1)).reshape(rows, -1)
    # What is no number is a reply at once, so that whoever reads its log-probabilities sees it; NaN sorts to either end.
    scores_BX = jnp.where(jnp.isnan(scores_BX), jnp.inf, scores_BX)
    if settings.sampling.temperature is None:
        scores_BC, places_BC = jax.lax.top_k(scores_BX, 2 * beams)
    else:
        fold = jax.vmap(lambda key, count: jax.random.gumbel(jax.random.fold_in(key, count), scores_BX.shape[1:]))
        noise_BX = fold(settings.keys_M.reshape(rows, beams)[:, 0], live.counts_BN[:, 0])
        _, drawn_BC = jax.lax.top_k(scores_BX + noise_BX, 2 * beams)
        scores_BC, order_BC = jax.lax.top_k(jnp.take_along_axis(scores_BX, drawn_BC, axis=1), 2 * beams)
        places_BC = jnp.take_along_axis(drawn_BC, order_BC, axis=1)
    parents_BC, tokens_BC = places_BC // logprobs_MX.shape[1], places_BC % logprobs_MX.shape[1]
    if ids_MX is not None:
        tokens_BC = ids_MX[jnp.arange(rows)[:, None] * beams + parents_BC, tokens_BC]
    return scores_BC, parents_BC, tokens_BC.astype(jnp.int32)


def holds_a_stop(found: Hypotheses, stops: Stops) -> jax.Array:
    """Whether each hypothesis ends in a text that ends a reply."""
    tokens_MR = found.tokens_BNR.reshape(-1, found.tokens_BNR.shape[2])
    return said_a_stop(tokens_MR, found.counts_BN.reshape(-1), stops).reshape(found.counts_BN.shape)


def _take(found: Hypotheses, chosen_BN: jax.Array) -> Hypotheses:
    """Some of the hypotheses of each row."""
    return jax.tree.map(
        lambda x: jnp.take_along_axis(x, chosen_BN.reshape(*chosen_BN.shape, *(1,) * (x.ndim - 2)), axis=1), found
    )


def _grow(
    live: Hypotheses, parents_BC: jax.Array, tokens_BC: jax.Array, logprobs_BC: jax.Array, scores_BC: jax.Array
) -> Hypotheses:
    """Beams with one more token each."""
    before = _take(live, parents_BC)
    rows_B1, places_C = jnp.arange(parents_BC.shape[0])[:, None], jnp.arange(parents_BC.shape[1])[None]
    at = (rows_B1, places_C, before.counts_BN)
    return Hypotheses(
        tokens_BNR=before.tokens_BNR.at[at].set(tokens_BC, mode="drop"),
        logprobs_BNR=before.logprobs_BNR.at[at].set(logprobs_BC, mode="drop"),
        scores_BN=scores_BC,
        counts_BN=before.counts_BN + 1,
    )
