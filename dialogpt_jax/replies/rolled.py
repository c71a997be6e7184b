"""Contexts as ids flow in; their replies flow out as they end, from rows that are each given to the next context.

contexts, sampling, seed ─plan→ groups ─request_of→ Request ─roll→ replies, by the contexts' numbers
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from dialogpt_jax.data.batches import fill_up, pad_right
from dialogpt_jax.decoding.generate import draft_scopes
from dialogpt_jax.decoding.logits import top_k_bucket
from dialogpt_jax.decoding.request import Request, assemble, bucket_of
from dialogpt_jax.decoding.rolling import Ended, Group, plan, roll
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.replies.keys import row_keys
from dialogpt_jax.replies.language_model import LanguageModel
from dialogpt_jax.replies.settings import rows_of_sampling


def rolled_replies(
    model: LanguageModel,
    contexts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    seed: int,
    places: Sequence[int],
    turns: Sequence[int],
    max_new_tokens: int,
    rows: int,
    weights: Any = None,
) -> Iterator[list[Ended]]:
    """The reply to each context; those that ended in one call of the device at a time, at times none.

    Args:
      model: the model.
      contexts: the ids of each.
      sampling: checked, with ids for texts; value i of an array is context i's.
      seed, places, turns: what decides the keys: the place and the turns of each context.
      max_new_tokens: at most the model's positions.
      rows: replies that are made at once, at most: no more than the next power of two of the contexts.
      weights: the model's parameters and its draft, where they are to lie on another device.
    """
    config = model.config
    rows = min(rows, 1 << (max(len(contexts), 1) - 1).bit_length())
    bucket, longest = top_k_bucket(sampling, config.vocab_size), max(map(len, contexts), default=1)
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "stops": model.stops(sampling)}
    params, draft = (model.params, model.draft) if weights is None else weights
    how["scopes"] = draft_scopes(draft, config)
    how["history_width"] = bucket_of(longest, config.n_positions)

    def request_of(group: Group) -> Request:
        filled = fill_up(group.members, group.rows)
        keys = row_keys(seed, [places[i] for i in filled], [turns[i] for i in filled])
        prompts = pad_right([contexts[i] for i in filled], group.width)
        request = assemble(
            config, *prompts, sampling=rows_of_sampling(sampling, filled), keys=keys, width=group.width, **how
        )
        return dataclasses.replace(request, bucket=bucket)  # of all rows: those of a group may need a smaller one

    groups = plan([len(context) for context in contexts], rows, config.n_positions)
    return roll(params, config, groups, request_of, rows=rows, draft=draft)
