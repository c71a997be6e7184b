"""Prompts to replies: one prefill, one compiled loop.

    Request ─prefill→ logits_BV, KVCache ─begin, decode→ DecodeState → Generated

Letters: B rows, T prompt tokens, N candidates of a row, M = B·N, R reply slots, V vocabulary (padded).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dialogpt_jax import model, whole_programs
from dialogpt_jax.cache import KVCache, ReplyCache, cache_dtype, init_cache, init_reply
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding.loop import AdvanceFn, DecodeState, StepFn, advance, begin, decode
from dialogpt_jax.decoding.prefill import prefill
from dialogpt_jax.decoding.request import Request, assemble, candidate_settings
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.decoding.speculative import Draft, begin_drafting, check_draft, drafter
from dialogpt_jax.decoding.stops import Stops
from dialogpt_jax.errors import counted
from dialogpt_jax.token_arrays import Array, array_library, is_traced


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generated:
    """Replies; with several candidates a row, their axis N stands after B.

    Attributes:
      tokens: int32 (B, max_new_tokens), the reply only, EOS after its end.
      lengths: int32 (B,), tokens of the reply, its EOS included.
      finished: bool (B,), false where it was cut by `max_new_tokens` or by the model's positions.
      logprobs: float32 (B, max_new_tokens), the model's own, before penalties and warpers; 0 after the end. Not finite
        where the model's logits were not, +infinity where the sampling left no token: then the tokens mean nothing. What a
        `Bot` does raises there.
      forwards: int32 (B,), where tokens are drafted: how often the model read drafts for the row, else `None`. All but the
        first token come from these, so that (lengths − 1) / forwards is how many tokens a forward gave.
      accepted: int32 (B,), the drafts that became tokens, else `None`.
      scores: float32 (B,), what a judge says of each reply, else `None`.

    Example:
      >>> bot.tokenizer.decode(out.tokens[0, : out.lengths[0]])
      '...'
    """

    tokens: jax.Array
    lengths: jax.Array
    finished: jax.Array
    logprobs: jax.Array
    forwards: jax.Array | None = None
    accepted: jax.Array | None = None
    scores: jax.Array | None = None

    def __repr__(self) -> str:
        return describe_replies(self, lambda: _drafts_of(self))


def describe_replies(replies: Any, figures: Callable[[], str]) -> str:
    """A `Generated` or `Beams` on one line: shapes alone where it is traced, else `figures` too."""
    name, shapes = type(replies).__name__, f"tokens and logprobs {jnp.shape(replies.tokens)}"
    if is_traced(replies.lengths) or not isinstance(replies.lengths, Array):
        return f"{name}({shapes})"
    lengths, finished = np.asarray(replies.lengths), np.asarray(replies.finished)
    span = f"{lengths.min(initial=2**31 - 1)} to {lengths.max(initial=0)} tokens"
    return f"{name}({counted(lengths.size, 'replies')} of {span}, {finished.sum()} finished{figures()}; {shapes})"


def _drafts_of(replies: Generated) -> str:
    if replies.forwards is None or replies.accepted is None:
        return ""
    accepted, forwards = int(np.sum(replies.accepted)), int(np.sum(replies.forwards))
    return f", {counted(accepted, 'drafts')} accepted in {counted(forwards, 'forwards')}"


def begin_replies(
    params: model.Params,
    config: GPT2Config,
    request: Request,
    cache: KVCache,
    draft: Draft | None = None,
    drafts: KVCache | None = None,
) -> DecodeState:
    """Prefills what the cache does not hold yet, and draws the first token of every candidate.

    A draft model's cache, `drafts`, holds as much of the contexts; by default nothing, as the cache then, too.
    """
    lengths_B = request.settings.lengths_M
    logits_BV, prefix = prefill(params, config, request.tokens_BT, request.new_B, cache, request.starts_B)
    settings = candidate_settings(request.settings, request.candidates)
    rows = settings.lengths_M.shape[0]
    reply = init_cache(config, rows, request.slots, cache_dtype(params))
    state = begin(
        jnp.repeat(logits_BV, request.candidates, axis=0),
        settings,
        ReplyCache(prefix, lengths_B, reply),
        slots=request.slots,
        bucket=request.bucket,
        eos=config.eos_token_id,
        processors=request.processors,
        stops=request.stops,
    )
    if draft is None or draft.config is None:
        return state if draft is None else begin_drafting(state)
    drafts = read_by_draft(draft, request.tokens_BT, request.new_B, drafts, request.starts_B)
    assert drafts is not None
    return begin_drafting(state, init_reply(draft.config, drafts, lengths_B, request.candidates, request.slots))


def read_by_draft(
    draft: Draft, tokens_BT: Array, lengths_B: Array, cache: KVCache | None = None, starts_B: Array | None = None
) -> KVCache | None:
    """A draft model's cache with prompts in it, as `prefill`; none where drafts are looked up.

    Args:
      cache: what it has read before; by default nothing, and there is room for these tokens.
    """
    if draft.config is None:
        return None
    if cache is None:
        rows, width = tokens_BT.shape
        cache = init_cache(draft.config, rows, width, cache_dtype(draft.params))
    return prefill(draft.params, draft.config, tokens_BT, lengths_B, cache, starts_B)[1]


def model_advance(draft: Draft | None) -> AdvanceFn:
    """What a loop goes on by: a step a token, or a round of drafts."""
    if draft is None:
        return advance
    return drafter(draft, None if draft.config is None else model_step(draft.params, draft.config))


def model_step(params: model.Params, config: GPT2Config) -> StepFn:
    """The step function of a GPT-2 whose N candidates continue a shared prefix; its cache is a `ReplyCache`."""

    def step(tokens_MT: jax.Array, positions_MT: jax.Array, cache: ReplyCache) -> tuple[jax.Array, ReplyCache]:
        x_MTD, cache = model.hidden(params, config, tokens_MT, positions_MT, cache)
        return model.logits(params, config, x_MTD), cache

    return step


# the loop's cache when it has ended, tokens of each reply (M,) → a score of each, float32 (M,); a pytree
Judge = Callable[[ReplyCache, jax.Array], jax.Array]


@functools.partial(jax.jit, static_argnames="config")
def reply_program(
    params: model.Params, config: GPT2Config, request: Request, draft: Draft | None = None, judge: Judge | None = None
) -> Generated:
    """Every reply to a request; fields are (M, …), tokens and log-probabilities one bucket wide."""
    rows, width = request.tokens_BT.shape
    cache = init_cache(config, rows, width, cache_dtype(params))
    state = begin_replies(params, config, request, cache, draft)
    state = decode(model_step(params, config), state, model_advance(draft))
    counted_M = () if draft is None else (state.drafting.forwards_M, state.drafting.accepted_M)
    with jax.named_scope("judge"):
        scores_M = None if judge is None else judge(state.cache, state.counts_M)
    out = Generated(state.tokens_MR, state.counts_M, state.finished_M, state.logprobs_MR, *counted_M)
    return dataclasses.replace(out, scores=scores_M)


@functools.partial(jax.jit, static_argnames=("config", "rows_on"))
def reply_program_on_mesh(
    params: model.Params,
    config: GPT2Config,
    request: Request,
    draft: Draft | None = None,
    judge: Judge | None = None,
    *,
    rows_on: NamedSharding,
) -> Generated:
    """`reply_program` on each device of a mesh, for its own rows: it ends when they have.

    The partitioner does not see that rows share nothing, and would gather all rows' keys and values at every cache write.
    """
    rows = rows_on.spec

    def one_device(params: model.Params, request: Request, draft: Draft | None, judge: Judge | None) -> Generated:
        return reply_program(params, config, request, draft, judge)

    specs = (PartitionSpec(), request_specs(request, rows), PartitionSpec(), PartitionSpec())
    run = jax.shard_map(one_device, mesh=rows_on.mesh, in_specs=specs, out_specs=rows, check_vma=False)
    return run(params, request, draft, judge)


def request_specs(request: Request, rows: PartitionSpec) -> Request:
    """How a request lies on a mesh: by its rows, but for what a caller's functions bring, which is whole on each device."""
    whole = jax.tree.map(lambda _: PartitionSpec(), {"processors": request.processors, "stops": request.stops})
    return dataclasses.replace(jax.tree.map(lambda _: rows, request), **whole)


def generate_candidates(
    params: model.Params,
    config: GPT2Config,
    tokens_BT: jax.typing.ArrayLike,
    lengths_B: jax.typing.ArrayLike,
    *,
    candidates: int,
    sampling: Sampling,
    max_new_tokens: int,
    keys: jax.Array,
    stops: Stops | None = None,
    draft: Draft | None = None,
    judge: Judge | None = None,
) -> Generated:
    """Several replies to each prompt, which is prefilled once and shared; fields are (B, N, …).

    As `generate`; the first candidate is the reply that `generate` gives. A `judge`, such as `dg.SenseHead`, reads the
    cache that the loop leaves and gives each reply a score, in the same program.

    Raises:
      ValueError: as `generate`, or `candidates` under 1.

    Example:
      >>> tokens_BT = np.array([bot.encode(["Hi!"])])
      >>> how = {"candidates": 4, "sampling": dg.PAPER, "max_new_tokens": 8, "keys": jax.random.split(jax.random.key(0), 1)}
      >>> out = dg.generate_candidates(bot.params, bot.config, tokens_BT, np.array([tokens_BT.shape[1]]), **how)
      >>> out.tokens.shape
      (1, 4, 8)
    """
    model.check_params(params, config)
    request = assemble(
        config,
        tokens_BT,
        lengths_B,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        keys=keys,
        candidates=candidates,
        stops=stops,
        scopes=draft_scopes(draft, config),
    )
    return _on_device(_run(params, config, request, draft, int(max_new_tokens), judge))


def draft_scopes(draft: Draft | None, config: GPT2Config) -> tuple[str, ...]:
    """What a request's history has to have for a drafter, which is found sound: to look up, the whole context."""
    if draft is None:
        return ()
    check_draft(draft, config)
    if draft.config is None:
        return ("context",)
    model.check_params(draft.params, draft.config)
    return ()


def generate(
    params: model.Params,
    config: GPT2Config,
    tokens_BT: jax.typing.ArrayLike,
    lengths_B: jax.typing.ArrayLike,
    *,
    sampling: Sampling,
    max_new_tokens: int,
    keys: jax.Array,
    stops: Stops | None = None,
    draft: Draft | None = None,
) -> Generated:
    """A reply to each prompt, in one compiled call.

    Compiled once for each number of rows, bucket of T (a power of two from 16 on) and bucket of `max_new_tokens`; numbers
    in `sampling` are traced. It may be called inside `jit` too, with `config` and `max_new_tokens` static; values that are
    traced are not checked.

    Args:
      params, config: the model; it computes in the parameters' dtype.
      tokens_BT: int32 prompts, right-padded; what stands in the pads changes nothing.
      lengths_B: int32, real tokens of each row, 1 to `n_positions`.
      sampling: how a token is chosen.
      max_new_tokens: the most tokens of a reply, its EOS included. A row also stops at the model's last position.
      keys: (B,) `jax.random.key`s, one a row. With a `NamedSharding` over their rows, each device of its mesh replies to
        its rows; the parameters may lie on that mesh however they like, and are gathered once a call. (Keys that are
        traced show no sharding: the partitioner then divides the program, more slowly.)
      stops: of the sampling's `stop_strings`, by `decoding.stops.stops_of`.
      draft: how tokens are drafted, so that one forward gives several; they are those of plain decoding all the same.

    Raises:
      ValueError: shapes, lengths, ids or keys do not fit; the message has the numbers.

    Example:
      >>> context = bot.encode(["Hi!"])
      >>> tokens_BT, lengths_B = np.array([context, context]), np.array([len(context), len(context)])
      >>> keys_B = jax.random.split(jax.random.key(0), 2)
      >>> how = {"sampling": dg.PAPER, "max_new_tokens": 8}
      >>> out = dg.generate(bot.params, bot.config, tokens_BT, lengths_B, keys=keys_B, **how)
      >>> out.tokens.shape
      (2, 8)
    """
    model.check_params(params, config)
    how: dict[str, Any] = {"sampling": sampling, "max_new_tokens": max_new_tokens, "keys": keys, "stops": stops}
    request = assemble(config, tokens_BT, lengths_B, scopes=draft_scopes(draft, config), **how)
    out = _run(params, config, request, draft, int(max_new_tokens))
    return _on_device(jax.tree.map(lambda x: x[:, 0], out))


def _run(
    params: model.Params,
    config: GPT2Config,
    request: Request,
    draft: Draft | None,
    length: int,
    judge: Judge | None = None,
) -> Generated:
    """Fields (B, N, …), `length` tokens wide; NumPy's where nothing is traced."""
    keys = request.settings.keys_M
    if not is_traced(keys) and isinstance(keys.sharding, NamedSharding):
        out = reply_program_on_mesh(params, config, request, draft, judge, rows_on=keys.sharding)
    else:
        out = whole_programs.call(reply_program, config, params, request, draft, judge)
    return as_asked(out, (request.tokens_BT.shape[0], request.candidates), length, config.eos_token_id)


def as_asked(out: Generated, leading: tuple[int, ...], length: int, eos: int) -> Generated:
    """What a program gives, (M, …), with other leading axes and `length` tokens wide; NumPy's where nothing is traced."""
    library = array_library(out.tokens)  # NumPy: cut on the host, another length of the same bucket compiles nothing

    def shaped(x_MR: jax.Array, pad: Any) -> Any:
        x_R = library.asarray(x_MR).reshape(*leading, -1)[..., :length]
        more = [(0, 0)] * len(leading) + [(0, length - x_R.shape[-1])]
        return library.pad(x_R, more, constant_values=pad)

    return Generated(
        tokens=shaped(out.tokens, eos),
        lengths=library.asarray(out.lengths).reshape(leading),
        finished=library.asarray(out.finished).reshape(leading),
        logprobs=shaped(out.logprobs, 0.0),
        forwards=None if out.forwards is None else library.asarray(out.forwards).reshape(leading),
        accepted=None if out.accepted is None else library.asarray(out.accepted).reshape(leading),
        scores=None if out.scores is None else library.asarray(out.scores).reshape(leading),
    )


def _on_device(out: Generated) -> Generated:
    return out if is_traced(out.tokens) else jax.device_put(out)
