"""Contexts as ids flow in; their replies flow out as they end, from rows that are each given to the next context.

    contexts, sampling, seed ─plan→ groups ─request_of→ Request ─roll→ replies, by the contexts' numbers

On CPU the rows stand in lanes, on a thread each, that take their groups from one list:

    groups ─┬→ roll, 16 rows ─┬→ replies
            └→ roll, 16 rows ─┘

XLA for CPU runs the programs that one thread asks for one after the other, and a small program keeps little more than one
core busy: a step of the bundled model for 32 rows takes 25 ms on two cores, 27 on one. Those of two threads run side by
side. 300 contexts of 89 tokens on two cores, s, in one lane of 32 rows, two of 16: the bundled model 8.1, 6.6; GPT-2
small's shape, 100 of them, 21.9, 18.2.
"""

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import jax

from dialogpt_jax.data.batches import fill_up, pad_right
from dialogpt_jax.decoding.generate import draft_scopes
from dialogpt_jax.decoding.logits import top_k_bucket
from dialogpt_jax.decoding.request import Request, assemble, bucket_of
from dialogpt_jax.decoding.rolling import Ended, Group, plan, roll
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.parallel.chips import usable_cores
from dialogpt_jax.replies.keys import row_keys
from dialogpt_jax.replies.language_model import LanguageModel
from dialogpt_jax.replies.settings import rows_of_sampling

LEAST_OF_A_LANE = 16  # rows
T = TypeVar("T")


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
) -> Generator[list[Ended], None, None]:
    """The reply to each context; those that ended in one call of the device at a time, at times none.

    Close it where it is not read to its end: its threads end then.

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

    lanes = lanes_of(rows)
    rows //= lanes
    groups = iter(plan([len(context) for context in contexts], rows, config.n_positions))
    return side_by_side([roll(params, config, groups, request_of, rows=rows, draft=draft) for _ in range(lanes)])


def lanes_of(rows: int) -> int:
    """How many lanes rows stand in: on a CPU that is one device as many as it has cores, of 16 rows or more; else one."""
    if jax.default_backend() != "cpu" or jax.local_device_count() > 1:
        return 1
    return max(min(usable_cores(), rows // LEAST_OF_A_LANE), 1)


def side_by_side(lanes: Sequence[Iterator[T]]) -> Generator[T, None, None]:
    """What several iterators give, as it comes, each on a thread; one alone is given as it is, on the caller's.

    An error of one is raised here, after what the others are about to give, which is waited for then and at the end. A
    `with jax.…` of the caller's is not in force on the threads.
    """
    if len(lanes) == 1:
        yield from lanes[0]
        return
    end: Any = object()
    with ThreadPoolExecutor(len(lanes), "lane") as pool:
        coming: dict[Future[T], Iterator[T]] = {pool.submit(next, lane, end): lane for lane in lanes}
        while coming:
            for future in wait(coming, return_when=FIRST_COMPLETED).done:
                lane, given = coming.pop(future), future.result()
                if given is not end:
                    coming[pool.submit(next, lane, end)] = lane
                    yield given
