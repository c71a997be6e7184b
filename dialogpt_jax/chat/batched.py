"""Replies to many dialogues: rows that are held at once, each given to the next dialogue when its reply has ended."""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax

from dialogpt_jax.arguments import MOST, as_plain, as_whole_number, shown
from dialogpt_jax.cache import cache_dtype
from dialogpt_jax.decoding.request import bucket_of
from dialogpt_jax.decoding.rolling import slots_of
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.replies.candidates import Candidate, Candidates, candidate_of
from dialogpt_jax.replies.language_model import LanguageModel
from dialogpt_jax.replies.rolled import rolled_replies
from dialogpt_jax.replies.settings import checked_length, checked_sampling, few_buckets, seed_or_drawn
from dialogpt_jax.text.dialogue import DialogueError, TurnList, as_turns

DEFAULT_ROWS = 32
SHORTEST_BATCH = 64  # tokens; a context takes at least this of the memory, or 4 times as much, or 16 times


def batched_answers(
    model: LanguageModel,
    dialogues: Iterable[TurnList],
    *,
    sampling: Sampling,
    seed: int | None,
    max_new_tokens: int,
    batch_size: int | None,
    progress: Callable[[int, int], None] | None,
    places: Sequence[int] | None = None,
) -> list[Candidate]:
    """A reply to each dialogue, in their order; the arguments are those of `Bot.replies`.

    `places` are those that decide the rows' keys, where the list is a part of another.
    """
    checked = as_dialogues(dialogues)
    sampling = model.with_ids(checked_sampling(sampling, len(checked)))
    longest_reply, seed = min(checked_length(max_new_tokens), model.config.n_positions), seed_or_drawn(seed)
    batch_size = checked_rows(batch_size, len(checked))
    progress = checked_progress(progress)
    contexts = [model.encode(turns, max_new_tokens=longest_reply) for turns in checked]
    places = range(len(checked)) if places is None else places
    rows = batch_size or rows_that_fit(model, len(contexts), max(map(len, contexts), default=1), longest_reply)
    lots = rolled_replies(
        model,
        contexts,
        sampling=sampling,
        seed=seed,
        places=places,
        turns=[len(turns) for turns in checked],
        max_new_tokens=longest_reply,
        rows=rows,
    )
    found: dict[int, Candidate] = {}
    with contextlib.closing(lots):
        for replies in lots:
            for reply in replies:
                i = reply.number
                try:
                    found[i] = candidate_of(model.tokenizer, *reply[1:])
                except ValueError as error:
                    raise type(error)(f"dialogue {i}: {error}") from None
            if progress is not None and replies:
                progress(len(found), len(contexts))
    return Candidates(found[i] for i in range(len(contexts)))


def checked_progress(progress: Callable[[int, int], None] | None) -> Callable[[int, int], None] | None:
    """A function of (done, all), or none."""
    if progress is not None and not callable(progress):
        raise TypeError(f"progress is {shown(progress)}; give a function of (done, all)")
    return progress


def checked_rows(batch_size: int | None, dialogues: int) -> int | None:
    """A batch's rows as asked; over 32, no more than the dialogues can fill."""
    if batch_size is None:
        return None
    rows = as_whole_number("batch_size", batch_size, least=1, most=MOST)
    return min(rows, max(DEFAULT_ROWS, 1 << (max(dialogues, 1) - 1).bit_length()))


def rows_that_fit(model: LanguageModel, dialogues: int, context: int, reply: int) -> int:
    """So many rows of a batch as a quarter of the memory holds."""
    config = model.config
    slots = few_buckets(context, config.n_positions, SHORTEST_BATCH) + bucket_of(reply, config.n_positions)
    slots = max(slots, slots_of(context + reply, config.n_positions))
    size = cache_dtype(model.params).itemsize
    cache = 2 * config.n_layer * config.n_embd * size * slots
    # A few float32 copies of a row's logits are alive at once.
    logits = 4 * 4 * config.padded_vocab_size * (1 if model.draft is None else model.draft.tokens + 1)
    rows = min(DEFAULT_ROWS, 1 << (max(dialogues, 1) - 1).bit_length())
    while rows > 1 and rows * (cache + logits) > _memory() / 4:
        rows //= 2
    return rows


def as_dialogues(dialogues: Iterable[TurnList], *, many: str = "replies", one: str = "reply") -> list[list[str]]:
    """The turns of each dialogue, found sound; `many` and `one` are the functions of which an error speaks.

    Raises:
      DialogueError: these are no dialogues; the message says which.
    """
    wanted = f"{many} takes a list of dialogues, each a list of turns: [[text, …], …]; for one dialogue use {one}"
    plain = as_plain(dialogues)
    if isinstance(plain, str | bytes | Mapping) or not isinstance(plain, Iterable):
        raise DialogueError(f"{wanted}; got {type(dialogues).__name__}")
    dialogues = list(plain)
    if any(isinstance(d, str | Mapping) for d in dialogues):
        raise DialogueError(wanted)
    checked = []
    for number, dialogue in enumerate(dialogues):
        try:
            checked.append(as_turns(dialogue))
        except DialogueError as error:
            raise DialogueError(f"dialogue {number}: {error}") from None
    return checked


def _memory() -> float:
    """Bytes of the memory that the default device computes in."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    except (ValueError, OSError, AttributeError):  # not on this system
        return 4e9
