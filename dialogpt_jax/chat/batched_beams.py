"""The best replies of a beam search to many dialogues, in compiled batches of similar length.

Letters: B rows, T prompt tokens.
"""

import dataclasses
from collections.abc import Callable, Iterable

import jax

from dialogpt_jax.chat.batched import SHORTEST_BATCH, as_dialogues, checked_progress, checked_rows, rows_that_fit
from dialogpt_jax.data.batches import fill_up, pad_right
from dialogpt_jax.decoding.beam_options import BeamOptions, check_room
from dialogpt_jax.decoding.beam_search import beam_search, check_groups
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.replies.candidates import Candidate, Candidates, candidate_of
from dialogpt_jax.replies.keys import row_keys
from dialogpt_jax.replies.language_model import LanguageModel
from dialogpt_jax.replies.settings import (
    checked_length,
    checked_sampling,
    few_buckets,
    rows_of_sampling,
    seed_or_drawn,
)
from dialogpt_jax.text.dialogue import TurnList


def searched_answers(
    model: LanguageModel,
    dialogues: Iterable[TurnList],
    options: BeamOptions,
    *,
    sampling: Sampling,
    seed: int | None,
    max_new_tokens: int,
    batch_size: int | None,
    progress: Callable[[int, int], None] | None,
) -> list[Candidate]:
    """The best reply to each dialogue, in their order; the arguments are those of `Bot.replies`."""
    checked = as_dialogues(dialogues)
    sampling = model.with_ids(checked_sampling(sampling, len(checked)))
    check_room(options, model.config.vocab_size)
    check_groups(options, sampling)
    longest_reply, seed = min(checked_length(max_new_tokens), model.config.n_positions), seed_or_drawn(seed)
    batch_size = checked_rows(batch_size, len(checked))
    progress = checked_progress(progress)
    contexts = [model.encode(turns, max_new_tokens=longest_reply) for turns in checked]
    longest = max(map(len, contexts), default=1)
    # To the model each beam is a row.
    fit = rows_that_fit(model, len(contexts) * options.beams, longest, longest_reply)
    rows = batch_size or max(1, fit // options.beams)
    order = sorted(range(len(contexts)), key=lambda i: len(contexts[i]))
    found: dict[int, Candidate] = {}
    for chosen in (order[begin : begin + rows] for begin in range(0, len(order), rows)):
        filled = fill_up(chosen, rows)
        width = few_buckets(len(contexts[chosen[-1]]), model.config.n_positions, SHORTEST_BATCH)
        tokens_BT, lengths_B = pad_right([contexts[i] for i in filled], width)
        out = beam_search(
            model.params,
            model.config,
            tokens_BT,
            lengths_B,
            sampling=rows_of_sampling(sampling, filled),
            max_new_tokens=longest_reply,
            keys=row_keys(seed, filled, [len(checked[i]) for i in filled]),
            stops=model.stops(sampling),
            **dataclasses.asdict(options),
        )
        out = jax.device_get(out)
        for row, i in enumerate(chosen):
            best = (x[row, 0] for x in (out.tokens, out.logprobs, out.lengths, out.finished))
            try:
                found[i] = candidate_of(model.tokenizer, *best)
            except ValueError as error:
                raise type(error)(f"dialogue {i}: {error}") from None
        if progress is not None:
            progress(len(found), len(contexts))
    return Candidates(found[i] for i in range(len(contexts)))
