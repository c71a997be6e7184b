"""Prompts to their best replies: one prefill, one compiled beam search over the replies alone.

    Request, BeamRules ─prefill→ logits_BV, KVCache ─begin, search→ Hypotheses → Beams

The prompt's cache is one for all beams of a row and stays where it is; only the replies' part is put in order at a step.

Letters: B rows, T prompt tokens, N beams, n best of them, M = B·N, R reply slots.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dialogpt_jax import model
from dialogpt_jax.arguments import MOST, as_whole_number
from dialogpt_jax.cache import KVCache, ReplyCache, cache_dtype, init_cache, init_reply, reorder
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding.beam import BeamRules, Hypotheses, begin, holds_a_stop, search
from dialogpt_jax.decoding.beam_options import EARLY_STOPPING, BeamOptions, check_room
from dialogpt_jax.decoding.generate import describe_replies, model_step, request_specs
from dialogpt_jax.decoding.prefill import prefill
from dialogpt_jax.decoding.request import Request, assemble, candidate_settings
from dialogpt_jax.decoding.sampling import GREEDY, Sampling
from dialogpt_jax.decoding.stops import Stops
from dialogpt_jax.token_arrays import array_library, is_traced


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Beams:
    """The n best replies to each prompt, best first.

    Attributes:
      tokens: int32 (B, n, max_new_tokens), the reply only, EOS after its end.
      lengths: int32 (B, n), tokens of the reply, its EOS included.
      finished: bool (B, n), false where it was cut by `max_new_tokens` or by the model's positions.
      scores: float32 (B, n), the sum of log-probabilities over length ** length_penalty, after processors; −inf where so
        many replies are not possible.
      logprobs: float32 (B, n, max_new_tokens), the model's own, before processors; 0 after the end.

    Example:
      >>> bool((beams.scores[:, :-1] >= beams.scores[:, 1:]).all())
      True
    """

    tokens: jax.Array
    lengths: jax.Array
    finished: jax.Array
    scores: jax.Array
    logprobs: jax.Array

    def __repr__(self) -> str:
        def figures() -> str:
            scores = np.asarray(self.scores)
            return f", scores from {scores.min(initial=np.inf):.3f} to {scores.max(initial=-np.inf):.3f}"

        return describe_replies(self, figures)


def beam_search(
    params: model.Params,
    config: GPT2Config,
    tokens_BT: jax.typing.ArrayLike,
    lengths_B: jax.typing.ArrayLike,
    *,
    beams: int,
    n_best: int = 1,
    length_penalty: float = BeamOptions.length_penalty,
    early_stopping: bool | str = BeamOptions.early_stopping,
    beam_groups: int = BeamOptions.beam_groups,
    diversity_penalty: float | None = BeamOptions.diversity_penalty,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    keys: jax.Array | None = None,
    stops: Stops | None = None,
) -> Beams:
    """The replies of highest score, as transformers' beam search finds them, in one compiled call.

    Args:
      params, config, tokens_BT, lengths_B, max_new_tokens: as `generate`.
      beams: N, at most half the vocabulary.
      n_best: how many of them come out.
      length_penalty: a reply's score is the sum of its log-probabilities over its length to this power; over 0 favours
        long replies.
      early_stopping: when a row has N finished replies, it is done: `True`, at once; `False`, when its best beam is not
        better than the worst of them as it stands; "never", when it could not become better at any length.
      beam_groups, diversity_penalty: diverse beam search (Vijayakumar et al. 2016): so many groups of N / groups beams, in
        which a token loses the penalty (0.5) for each beam of an earlier group that has just said it.
      sampling: greedy, for beam search, with any processors; with a temperature, beams are drawn by it instead.
      keys: (B,) `jax.random.key`s, where beams are drawn; else none is needed. A `NamedSharding` of them counts as in
        `generate`.
      stops: as for `generate`.

    Raises:
      ValueError: as `generate`; more beams than half the vocabulary, more `n_best` than beams.

    Example:
      >>> tokens_BT, lengths_B = np.array([bot.encode(["Hi!"])]), np.array([len(bot.encode(["Hi!"]))])
      >>> beams = dg.beam_search(bot.params, bot.config, tokens_BT, lengths_B, beams=4, n_best=2, max_new_tokens=8)
      >>> beams.tokens.shape
      (1, 2, 8)
    """
    model.check_params(params, config)
    options = BeamOptions(beams, length_penalty, early_stopping, beam_groups, diversity_penalty)
    beams, n_best = int(options.beams), as_whole_number("n_best", n_best, least=1, most=MOST)
    check_room(options, config.vocab_size)
    if n_best > beams:
        raise ValueError(f"n_best is {n_best}, and there are {beams} beams; give at most as many")
    check_groups(options, sampling)
    rows = np.shape(lengths_B)[0] if np.ndim(lengths_B) else 1
    if keys is None:
        if isinstance(sampling, Sampling) and sampling.temperature is not None:
            raise ValueError("beams are drawn by this sampling; give keys, or a sampling that is greedy")
        keys = jax.random.split(jax.random.key(0), rows)  # nothing is drawn
    request = assemble(
        config,
        tokens_BT,
        lengths_B,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        keys=keys,
        candidates=beams,
        stops=stops,
    )
    out = _run(params, config, request, rules_of(options, rows), int(max_new_tokens), n_best)
    return out if is_traced(out.tokens) else jax.device_put(out)


def check_groups(options: BeamOptions, sampling: Sampling) -> None:
    """Whether a sampling goes with groups of beams.

    Raises:
      ValueError: it draws, and there are groups.
    """
    if options.beam_groups > 1 and isinstance(sampling, Sampling) and sampling.temperature is not None:
        raise ValueError(f"beam_groups is {options.beam_groups}, and this sampling draws; give one that is greedy")


def rules_of(options: BeamOptions, rows: int) -> BeamRules:
    """The options as arrays, the same for each row."""
    penalties_B: Any = np.full(rows, options.length_penalty, np.float32)
    kinds_B: Any = np.full(rows, EARLY_STOPPING[options.early_stopping], np.int32)
    groups = int(options.beam_groups)
    diversity_B: Any = None if groups == 1 else np.full(rows, options.diversity, np.float32)
    return BeamRules(penalties_B, kinds_B, diversity_B, groups)


@functools.partial(jax.jit, static_argnames="config")
def beam_program(params: model.Params, config: GPT2Config, request: Request, rules: BeamRules) -> Beams:
    """All N replies to each row of a request; tokens and log-probabilities are one bucket wide."""
    rows, width = request.tokens_BT.shape
    return _search(params, config, request, rules, init_cache(config, rows, width, cache_dtype(params)))[0]


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def beam_program_behind(
    params: model.Params, config: GPT2Config, request: Request, rules: BeamRules, cache: KVCache
) -> tuple[Beams, KVCache]:
    """The same where a cache, which is taken for good, holds the contexts up to `starts_B`; it comes back with all of them.

    The replies are not in it: a finished one leaves its slots to the beams that go on.
    """
    return _search(params, config, request, rules, cache)


def _search(
    params: model.Params, config: GPT2Config, request: Request, rules: BeamRules, cache: KVCache
) -> tuple[Beams, KVCache]:
    lengths_B = request.settings.lengths_M
    logits_BV, prefix = prefill(params, config, request.tokens_BT, request.new_B, cache, request.starts_B)
    state = begin(
        logits_BV,
        candidate_settings(request.settings, request.candidates),
        rules,
        init_reply(config, prefix, lengths_B, request.candidates, request.slots),
        slots=request.slots,
        bucket=request.bucket,
        eos=config.eos_token_id,
        processors=request.processors,
        stops=request.stops,
    )
    found = search(model_step(params, config), reorder_replies, state)
    return _as_beams(found, request.stops, config.eos_token_id), prefix


def _as_beams(found: Hypotheses, stops: Stops | None, eos: int) -> Beams:
    last_BN1 = jnp.maximum(found.counts_BN - 1, 0)[..., None]
    ended_BN = jnp.take_along_axis(found.tokens_BNR, last_BN1, axis=2)[..., 0] == eos
    if stops is not None:
        ended_BN |= holds_a_stop(found, stops)
    finished_BN = ended_BN & (found.counts_BN > 0)
    return Beams(found.tokens_BNR, found.counts_BN, finished_BN, found.scores_BN, found.logprobs_BNR)


def reorder_replies(cache: ReplyCache, parents_BN: jax.Array) -> ReplyCache:
    """A cache whose replies are put in order; the prefix stays where it is."""
    return ReplyCache(cache.prefix, cache.lengths_B, reorder(cache.reply, parents_BN))


def _run(
    params: model.Params, config: GPT2Config, request: Request, rules: BeamRules, length: int, n_best: int
) -> Beams:
    """Fields (B, n, …), `length` tokens wide; NumPy's where nothing is traced."""
    keys = request.settings.keys_M
    if not is_traced(keys) and isinstance(keys.sharding, NamedSharding):
        out = _beam_program_on_mesh(params, config, request, rules, rows_on=keys.sharding)
    else:
        out = beam_program(params, config, request, rules)
    library = array_library(out.tokens)
    out = jax.tree.map(lambda x: library.asarray(x)[:, :n_best], out)

    def shaped(x_BnR: Any, pad: float) -> Any:
        x_BnR = x_BnR[..., :length]
        return library.pad(x_BnR, ((0, 0), (0, 0), (0, length - x_BnR.shape[2])), constant_values=pad)

    return dataclasses.replace(out, tokens=shaped(out.tokens, config.eos_token_id), logprobs=shaped(out.logprobs, 0.0))


@functools.partial(jax.jit, static_argnames=("config", "rows_on"))
def _beam_program_on_mesh(
    params: model.Params, config: GPT2Config, request: Request, rules: BeamRules, *, rows_on: NamedSharding
) -> Beams:
    """`beam_program` on each device of a mesh, for its own rows, as `reply_program_on_mesh`."""

    def one_device(params: model.Params, request: Request, rules: BeamRules) -> Beams:
        return beam_program(params, config, request, rules)

    specs = (PartitionSpec(), request_specs(request, rows_on.spec), rows_on.spec)
    run = jax.shard_map(one_device, mesh=rows_on.mesh, in_specs=specs, out_specs=rows_on.spec, check_vma=False)
    return run(params, request, rules)
