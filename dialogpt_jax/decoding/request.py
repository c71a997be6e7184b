"""The one place where a generation is put together: contexts and wishes in, checked, as a caller has them; a `Request` out.

    contexts, lengths, sampling, max_new_tokens, keys ─assemble→ Request ─a compiled program→ replies

`generate`, its candidates and a stream all begin here, so that a row has the same limits, slots, buckets, lists,
history and keys whichever way its reply is made. On the host everything is NumPy, made once; under `jit` it is traced.

Letters: B rows, T prompt tokens, N candidates of a row, M = B·N, V vocabulary (padded).
"""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from dialogpt_jax.arguments import MOST, as_whole_number, shown
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding.logits import by_row, top_k_bucket
from dialogpt_jax.decoding.loop import RowSettings
from dialogpt_jax.decoding.processor_arrays import history_of, scopes_of, token_lists
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.decoding.stops import Stops
from dialogpt_jax.token_arrays import Array, array_library, as_integers, as_lengths, as_tokens

SMALLEST_BUCKET = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Request:
    """What a program replies to. Arrays are by row, so a mesh divides them all alike; the rest is static.

    Attributes:
      tokens_BT: int32, what the cache does not hold yet of each context, right-padded to the width of a bucket.
      starts_B: int32, tokens of each context that the cache holds already; `None`: of none.
      settings: of the B rows; `lengths` counts whole contexts.
      processors: functions of the caller's, as pytrees.
      stops: texts that end a reply.
      candidates: N, replies to each context.
      slots: the bucket of `max_new_tokens`.
      bucket: of `top_k_bucket`.
    """

    tokens_BT: Array
    starts_B: Array | None
    settings: RowSettings
    processors: tuple[Any, ...]
    stops: Stops | None
    candidates: int = dataclasses.field(metadata={"static": True})
    slots: int = dataclasses.field(metadata={"static": True})
    bucket: int | None = dataclasses.field(metadata={"static": True})

    @property
    def new_B(self) -> Array:
        """int32, how many tokens of each context the cache does not hold yet."""
        return self.settings.lengths_M if self.starts_B is None else self.settings.lengths_M - self.starts_B


def bucket_of(size: int, most: int | None = None) -> int:
    """The next power of two from 16 on, at most `most`: few shapes, few programs."""
    bucket = max(SMALLEST_BUCKET, 1 << (max(size, 1) - 1).bit_length())
    return bucket if most is None else min(bucket, most)


def assemble(
    config: GPT2Config,
    contexts_BT: Any,
    lengths_B: Any,
    *,
    sampling: Sampling,
    max_new_tokens: int,
    keys: jax.Array,
    candidates: int = 1,
    starts_B: Any = None,
    width: int | None = None,
    history_width: int | None = None,
    stops: Stops | None = None,
    scopes: Collection[str] = (),
) -> Request:
    """A request, found sound.

    Args:
      contexts_BT, lengths_B, sampling, max_new_tokens, keys: as `generate` takes them.
      candidates: replies to each context.
      starts_B: tokens of each context that a cache holds already, fewer than its length; none by default.
      width: columns for what the cache does not hold; by default the bucket of T.
      stops: of the sampling's `stop_strings`.
      history_width: columns for what processors see of the context, at least T; by default its bucket.
      scopes: those of the context that someone else than the sampling's processors looks at.

        context [a b c d e], start 3, width 16:   tokens [d e 0 0 …], length 5

    Raises:
      ValueError: something does not fit, or is out of range, as far as values are at hand; one line with the numbers.
      TypeError: `sampling` is no `Sampling`.
    """
    max_new_tokens = as_whole_number("max_new_tokens", max_new_tokens, least=1, most=MOST)
    candidates = as_whole_number("candidates", candidates, least=1, most=MOST)
    most = min(max_new_tokens, config.n_positions)  # no reply is longer, and int32 holds it
    if not isinstance(sampling, Sampling):
        raise TypeError(f"sampling is {shown(sampling)}; give a Sampling, such as GREEDY or Sampling(top_k=10)")
    contexts_BT = as_integers("tokens", contexts_BT, ndim=2)
    rows, length = contexts_BT.shape
    lengths_B = as_lengths("lengths", lengths_B, rows, least=1, most=length)
    library = array_library(contexts_BT, lengths_B, starts_B)
    if not isinstance(lengths_B, jax.Array) and lengths_B.max() > config.n_positions:
        raise ValueError(f"a prompt has {lengths_B.max()} tokens; n_positions is {config.n_positions}")
    contexts_BT = as_tokens(config, contexts_BT, lengths_B)
    if starts_B is not None:
        starts_B = as_lengths("starts", starts_B, rows, least=0, most=lengths_B - 1)
    _check_keys(keys, rows)
    if sampling.stop_strings and stops is None:
        raise ValueError("stop_strings are texts, and there is no tokenizer here; ask a Bot, or give `stops_of` them")
    bucket = bucket_of(length, config.n_positions)
    columns = bucket if history_width is None else history_width
    history = {
        scope: history_of(scope, contexts_BT, lengths_B, columns, config.eos_token_id)
        for scope in sorted({*scopes_of(sampling), *scopes})
    }
    return Request(
        tokens_BT=_columns(contexts_BT, starts_B, bucket if width is None else width),
        starts_B=starts_B,
        settings=RowSettings(
            lengths_M=lengths_B,
            limits_M=library.minimum(most, config.n_positions - lengths_B).astype(library.int32),
            keys_M=keys,
            sampling=by_row(sampling, rows),
            lists=token_lists(sampling, rows, config),
            history=history,
        ),
        processors=_as_trees(sampling.processors),
        stops=stops,
        candidates=candidates,
        slots=bucket_of(most, config.n_positions),
        bucket=top_k_bucket(sampling, config.vocab_size),
    )


def candidate_keys(keys_B: jax.Array, candidates: int) -> jax.Array:
    """The keys of a row's candidates, M = B·N; the first is the same however many there are."""
    fold = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)), in_axes=(0, None))
    return fold(keys_B, jnp.arange(candidates)).reshape(-1)


def candidate_settings(settings: RowSettings, candidates: int) -> RowSettings:
    """The settings of B rows as those of their M = B·N candidates: the same, but for the keys."""
    repeated = jax.tree.map(lambda x: jnp.repeat(x, candidates, axis=0), settings)
    return dataclasses.replace(repeated, keys_M=candidate_keys(settings.keys_M, candidates))


def _as_trees(functions: Any) -> tuple[Any, ...]:
    """Functions as pytrees: those that are one already, such as a `Partial`, bring their arrays; another is its code."""
    return tuple(jax.tree_util.Partial(f) if jax.tree_util.all_leaves([f]) else f for f in functions)


def _columns(tokens_BT: Array, starts_B: Array | None, width: int) -> Array:
    """So many columns of each row from its start on; 0 behind the row's end."""
    library = array_library(tokens_BT, starts_B)
    first_B1 = library.zeros((tokens_BT.shape[0], 1), library.int32) if starts_B is None else starts_B[:, None]
    columns_BT = first_B1 + library.arange(width)[None]
    last = tokens_BT.shape[1] - 1
    taken_BT = library.take_along_axis(tokens_BT, library.minimum(columns_BT, last), axis=1)
    return library.where(columns_BT <= last, taken_BT, 0).astype(library.int32)


def _check_keys(keys: Any, rows: int) -> None:
    if not isinstance(keys, jax.Array) or not jax.dtypes.issubdtype(keys.dtype, jax.dtypes.prng_key):
        kind = getattr(keys, "dtype", type(keys).__name__)
        raise ValueError(f"keys are {kind}; expected an array of `jax.random.key`s, as jax.random.split gives them")
    if keys.shape != (rows,):
        raise ValueError(f"{rows} rows of tokens, and keys of shape {keys.shape}; give one key for each row")
