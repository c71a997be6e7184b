"""Continuous batching: more contexts than rows flow in; each reply flows out as it ends, and its row is given to the next.

    waiting, by length            M rows that are held                     done
    ┌──────────────┐ begin_rows  ┌────────────────────────┐
    │ d  e │ f  g  │ ──────────→ │ row 0  a ▓▓▓▓▓▓▓░░     │
    └──────────────┘  and admit  │ row 1  b ▓▓▓▓ EOS ─────┼──→ b          go_on: steps until enough rows are done
                                 │ row 2  c ▓▓▓▓▓▓░░░     │
                                 │ row 1  d ▓▓▓▓░░░░      │               d stands where b stood; a and c never waited
                                 └────────────────────────┘

So a thousand contexts cost what their tokens cost, not what the longest of every batch does. Rows share nothing, and each
brings its key, its limit and its sampling: a reply does not depend on its row, nor on who stood there before.

**Programs.** Three kinds, each compiled once for a sampling's structure: `begin_rows` for each width of a prefill,
`go_on` for each number of cache slots, and between them `admit`, which only copies. Both sizes are buckets, and contexts
come in order of their length, so the cache starts narrow and grows a few times. A step reads all of it, so that it has the
slots which the next call may need, and not those which the longest reply would.

**Lanes.** On several cores several such rolls take their groups from one list, each on a thread of its own
(`replies/rolled.py`).

**What crosses to the host.** Nothing at a token. `go_on` is one loop on the device, of some tens of steps at most; the
host reads M rows of int32 and float32 when it ends. While it runs, the host has already asked for the next rows' prefill,
and makes texts of the replies that ended before. The state is donated: there is one cache, and nothing of it moves.

Letters: M rows that are held, P rows of a prefill, T its width, H heads, S cache slots, G = M·H merged, R reply slots.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dialogpt_jax.cache import cache_dtype, init_cache, put_rows
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding.generate import model_advance, model_step, read_by_draft
from dialogpt_jax.decoding.loop import DecodeState, begin, decode_some
from dialogpt_jax.decoding.prefill import PREFILL_TOKENS, prefill
from dialogpt_jax.decoding.request import Request, candidate_settings
from dialogpt_jax.decoding.speculative import Draft, begin_drafting
from dialogpt_jax.decoding.stops import Stops
from dialogpt_jax.decoding.stream import with_slots
from dialogpt_jax.model import Params

NARROWEST = 64  # tokens of a prefill, and slots of a cache
MOST_STEPS = 32  # of one call: so often, at least, the host hears of replies that ended
FEWEST_STEPS = 8  # that a call has room for, else its cache grows


class Group(NamedTuple):
    """Contexts that are prefilled together.

    Attributes:
      width: T, to which they are padded.
      rows: P of the program; the group may have fewer.
      members: the contexts' numbers.
    """

    width: int
    rows: int
    members: list[int]


@dataclasses.dataclass
class Held:
    """A reply that is being made.

    Attributes:
      number: of its context.
      length: tokens of the context.
      limit: the most tokens of the reply.
      count: tokens that it has.
    """

    number: int
    length: int
    limit: int
    count: int = 1

    def slots(self, steps: int) -> int:
        """That it needs for so many tokens more."""
        return self.length + min(self.count + steps, self.limit)


class Ended(NamedTuple):
    """A reply that ended, as arrays of NumPy; the fields are those of `Generated` for one row, after its number."""

    number: int
    tokens_R: np.ndarray
    logprobs_R: np.ndarray
    length: int
    finished: bool
    forwards: int | None = None
    accepted: int | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Told:
    """What the host reads of a state: the replies so far and who is done. Copies, for the state is given away."""

    tokens_MR: jax.Array
    logprobs_MR: jax.Array
    counts_M: jax.Array
    finished_M: jax.Array
    done_M: jax.Array
    forwards_M: jax.Array | None = None
    accepted_M: jax.Array | None = None


def width_of(length: int, most: int) -> int:
    """The bucket of a prefill: four between a power of two and the next, from 64 on, at most `most`.

        length 50 → 64, 70 → 80, 200 → 224, 300 → 320

    A tenth of what is multiplied is pads, where powers of two would have a third.
    """
    step = max(NARROWEST // 4, 1 << max((length - 1).bit_length() - 3, 0))
    return min(max(-(-length // step) * step, NARROWEST), most)


def slots_of(length: int, most: int) -> int:
    """The bucket of a cache: powers of two from 64 on and, between two of them, the mean; at most `most`.

    length 5 → 64, 65 → 96, 97 → 128, 300 → 384
    """
    power = 1 << (length - 1).bit_length()
    return min(max(NARROWEST, power * 3 // 4 if length <= power * 3 // 4 else power), most)


def few_of(rows: int) -> int:
    """How many of the rows that are held must be done before others take their places."""
    return max(rows // 4, 1)


def plan(lengths: Sequence[int], rows: int, most: int) -> list[Group]:
    """Groups of similar length, the short ones first. What does not fill a group goes up into the next wider one.

    lengths 100 20 130 30 210, two rows a group:    64: [1 3]   224: [0 2], [4]

    Args:
      lengths: tokens of each context.
      rows: M, that are held.
      most: the model's positions.
    """
    widths = [width_of(length, most) for length in lengths]
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    groups: list[Group] = []
    left: list[int] = []
    for width in sorted(set(widths)):
        size = min(few_of(rows), max(PREFILL_TOKENS // width, 1))
        left += [i for i in order if widths[i] == width]
        full = len(left) if width == max(widths) else len(left) // size * size
        groups += [Group(width, size, left[begin : begin + size]) for begin in range(0, full, size)]
        left = left[full:]
    return groups


@functools.partial(jax.jit, static_argnames="config")
def begin_rows(params: Params, config: GPT2Config, request: Request, draft: Draft | None = None) -> DecodeState:
    """Prefills contexts and draws the first token of each reply: P rows that can be admitted.

    What is no row's, `processors` and `stops`, is not in the state: `go_on` is given it.
    """
    rows, width = request.tokens_BT.shape
    cache = init_cache(config, rows, width, cache_dtype(params))
    logits_PV, cache = prefill(params, config, request.tokens_BT, request.settings.lengths_M, cache)
    how: dict[str, Any] = {"slots": request.slots, "bucket": request.bucket, "eos": config.eos_token_id}
    how |= {"processors": request.processors, "stops": request.stops}
    state = _by_row(begin(logits_PV, candidate_settings(request.settings, 1), cache, **how))
    if draft is None:
        return state
    return begin_drafting(state, read_by_draft(draft, request.tokens_BT, request.settings.lengths_M))


@functools.partial(jax.jit, static_argnames=("rows", "slots"))
def no_rows(begun: DecodeState, *, rows: int, slots: int) -> DecodeState:
    """A state of M rows, none of which is taken: all are done. Of `begun` only the shapes matter."""
    caches, begun = _apart(begun)
    first = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], (rows, *x.shape[1:])), begun)
    few = begun.counts_M.shape[0]
    empty = jax.tree.map(lambda x: jnp.zeros((x.shape[0] // few * rows, slots, x.shape[2]), x.dtype), caches)
    return _together(dataclasses.replace(first, finished_M=jnp.ones(rows, bool)), empty)


@functools.partial(jax.jit, donate_argnames="state")
def admit(state: DecodeState, rows_P: jax.Array, begun: DecodeState) -> DecodeState:
    """Writes P rows that have begun into a state, and leaves the others alone.

    Args:
      state: M rows.
      rows_P: int32, where each goes; M and more: nowhere.
      begun: of `begin_rows`, no wider than the state's cache.
    """
    (caches, state), (new_caches, begun) = _apart(state), _apart(begun)
    written = jax.tree.map(lambda old, new: old.at[rows_P].set(new, mode="drop"), state, begun)
    return _together(written, put_rows(caches, rows_P, new_caches, rows=state.counts_M.shape[0]))


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def go_on(
    params: Params,
    config: GPT2Config,
    state: DecodeState,
    most: jax.typing.ArrayLike,
    enough: jax.typing.ArrayLike,
    processors: tuple[Any, ...] = (),
    stops: Stops | None = None,
    draft: Draft | None = None,
) -> tuple[DecodeState, Told]:
    """Steps, or rounds of drafts, until `enough` rows are done, or `most` are taken."""
    state = dataclasses.replace(state, processors=processors, stops=stops)
    state = decode_some(model_step(params, config), state, most, enough, model_advance(draft))
    drafted = () if state.drafting is None else (state.drafting.forwards_M, state.drafting.accepted_M)
    told = Told(state.tokens_MR, state.logprobs_MR, state.counts_M, state.finished_M, state.done_M, *drafted)
    return _by_row(state), told


def roll(
    params: Params,
    config: GPT2Config,
    groups: Iterable[Group],
    request_of: Callable[[Group], Request],
    *,
    rows: int,
    draft: Draft | None = None,
) -> Iterator[list[Ended]]:
    """The reply to each context of the groups, those that ended in one call of `go_on` at a time.

    They are given when the next call is under way, at first none: so what the caller does with them costs no time, and a
    caller who takes turns between several devices keeps all of them at work.

    Args:
      params, config: the model.
      groups: of `plan`, whose narrowest come first; or an iterator of them, which others take from too.
      request_of: a group's request, of `group.rows` rows and `group.width` columns. All have the same structure, buckets
        and width of history, or each would be a program.
      rows: M, contexts whose replies are made at once.
      draft: how tokens are drafted, if they are; the requests then have the "context" in their history.
    """
    waiting, a_step = iter(groups), 1 if draft is None else draft.tokens + 1

    def begun() -> tuple[Group, Request, DecodeState] | None:
        group = next(waiting, None)
        if group is None:
            return None
        request = request_of(group)
        return group, request, begin_rows(params, config, request, draft)

    state, free = None, list(range(rows))
    held: dict[int, Held] = {}  # by row
    ended: list[Ended] = []

    def slots(least: int = 0) -> int:
        """For the next steps of all that are held, and at least so many."""
        return slots_of(max(least, *(one.slots(MOST_STEPS * a_step) for one in held.values())), config.n_positions)

    coming = begun()
    whole = (coming[1].processors, coming[1].stops, draft) if coming else ()  # the same for all
    while coming or held:
        while coming and len(coming[0].members) <= len(free):
            group, request, new = coming
            taken, free = free[: len(group.members)], free[len(group.members) :]
            lengths_M, limits_M = (x.tolist() for x in (request.settings.lengths_M, request.settings.limits_M))
            for i, row in enumerate(taken):
                held[row] = Held(group.members[i], lengths_M[i], limits_M[i])
            if state is None:
                state = no_rows(new, rows=rows, slots=slots(group.width))
            elif group.width > state.cache.num_slots:
                state = _with_slots(state, slots(group.width))
            state = admit(state, np.array([*taken, *[rows] * (group.rows - len(taken))], np.int32), new)
            coming = begun()
        assert state is not None
        most = steps_within(held.values(), state.cache.num_slots, a_step)
        if most < FEWEST_STEPS:
            state = _with_slots(state, slots())
            most = steps_within(held.values(), state.cache.num_slots, a_step)
        enough = few_of(rows) if coming else rows  # fewer are free, or the group would have been let in
        state, told = go_on(params, config, state, np.int32(most), np.int32(enough), *whole)
        yield ended
        told = jax.device_get(told)
        for row, one in held.items():
            one.count = int(told.counts_M[row])
        done = [row for row in held if told.done_M[row]]
        ended = [_ended(held.pop(row).number, told, row) for row in done]
        free += done
    if ended:
        yield ended


def steps_within(held: Iterable[Held], slots: int, a_step: int = 1) -> int:
    """How many steps, of at most so many tokens each, the slots of a cache are enough for; at most `MOST_STEPS`.

    A reply whose limit is inside needs no more: of its own limit the loop takes care.
    """
    short = [one for one in held if one.length + one.limit > slots]
    return min([MOST_STEPS, *((slots - one.length - one.count) // a_step for one in short)])


def _with_slots(state: DecodeState, slots: int) -> DecodeState:
    caches, rest = _apart(state)
    return _together(rest, with_slots(caches, slots=slots))


def _ended(number: int, told: Any, row: int) -> Ended:
    length = int(told.counts_M[row])
    drafted = () if told.forwards_M is None else (int(told.forwards_M[row]), int(told.accepted_M[row]))
    return Ended(number, told.tokens_MR[row], told.logprobs_MR[row], length, bool(told.finished_M[row]), *drafted)


def _apart(state: DecodeState) -> tuple[Any, DecodeState]:
    """A state's caches, the model's and the draft model's, in which rows are merged with heads; and all the rest of it."""
    drafting = state.drafting
    if drafting is None:
        return (state.cache, None), dataclasses.replace(state, cache=None)
    rest = dataclasses.replace(state, cache=None, drafting=dataclasses.replace(drafting, cache=None))
    return (state.cache, drafting.cache), rest


def _together(state: DecodeState, caches: Any) -> DecodeState:
    cache, drafts = caches
    drafting = None if state.drafting is None else dataclasses.replace(state.drafting, cache=drafts)
    return dataclasses.replace(state, cache=cache, drafting=drafting)


def _by_row(state: DecodeState) -> DecodeState:
    """A state without what is no row's."""
    return dataclasses.replace(state, processors=(), stops=None)
