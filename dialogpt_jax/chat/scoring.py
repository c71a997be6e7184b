"""How probable given replies are to a bot: dialogues and texts in; the same texts with their log-probabilities out."""

from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any

import numpy as np

from dialogpt_jax.arguments import as_plain, shown
from dialogpt_jax.decoding.score_batches import score_replies
from dialogpt_jax.replies.candidates import Candidate, Candidates
from dialogpt_jax.replies.language_model import LanguageModel
from dialogpt_jax.replies.settings import checked_length
from dialogpt_jax.replies.token_colors import token_texts
from dialogpt_jax.text.dialogue import DialogueError, Turns


def encode_to_score(
    model: LanguageModel,
    dialogues: Sequence[Turns],
    replies: Sequence[Sequence[str | Candidate]],
    *,
    max_new_tokens: int,
    name: Callable[[int, int], str],
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """The ids of each dialogue, as for a reply to it, and of each of the replies to it.

    Raises:
      DialogueError: reply j to dialogue i, called `name(i, j)`, does not fit behind its context.
    """
    room = model.config.n_positions
    max_new_tokens = checked_length(max_new_tokens)
    contexts = [model.encode(turns, max_new_tokens=max_new_tokens) for turns in dialogues]
    ids = [_ids_of(model, own) for own in replies]
    for i, (context, own) in enumerate(zip(contexts, ids, strict=True)):
        for j, reply in enumerate(own):
            if len(context) + len(reply) > room:
                raise DialogueError(
                    f"{name(i, j)} has {len(reply)} tokens and its context {len(context)}, {room} together at most; "
                    "shorten it, or give a larger max_new_tokens, which leaves out more of the context"
                )
    return contexts, ids


def score_encoded(
    model: LanguageModel,
    replies: Sequence[Sequence[str | Candidate]],
    contexts: Sequence[Sequence[int]],
    ids: Sequence[Sequence[Sequence[int]]],
    progress: Callable[[int, int], None] | None = None,
) -> list[Candidates]:
    """The replies to each context with their log-probabilities.

    Args:
      model: the model.
      replies, contexts, ids: what was encoded by `encode_to_score`, and what it gave.
      progress: called with (done, all) after each batch.
    """
    eos = model.config.eos_token_id
    # P(reply) is the same behind any context, so a reply that comes again is scored once.
    different = list(dict.fromkeys(tuple(reply) for own in ids for reply in own))
    done, total = 0, sum(map(len, ids)) + len(different)

    def count(new: int) -> None:
        nonlocal done
        done += new
        if progress is not None:
            progress(done, total)

    within = score_replies(model.params, model.config, contexts, ids, progress=count)
    [alone] = score_replies(model.params, model.config, [[eos]], [different], progress=count)
    totals = {reply: _total(logprobs) for reply, logprobs in zip(different, alone, strict=True)}
    return [
        Candidates(
            _candidate(model, reply, tokens, logprobs, totals[tuple(tokens)])
            for reply, tokens, logprobs in zip(*each, strict=True)
        )
        for each in zip(replies, ids, within, strict=True)
    ]


def as_replies(name: str, replies: Any) -> list[str | Candidate]:
    """A list of replies, each a text or a `Candidate`.

    Raises:
      DialogueError: it is something else, or a text is empty.
    """
    plain = as_plain(replies)
    if not _is_list(plain):
        raise DialogueError(f"{name} is {shown(replies)}; give a list of texts, [text, …]")
    checked = list(plain)
    for number, reply in enumerate(checked):
        if not isinstance(reply, str | Candidate):
            raise DialogueError(f"{name}[{number}] is {shown(reply)}; give a text, or a Candidate")
        if isinstance(reply, str) and not reply.strip():
            raise DialogueError(f"{name}[{number}] is empty; write something, or leave it out")
    return checked


def as_replies_to_each(replies: Any, dialogues: int) -> tuple[list[list[str | Candidate]], bool]:
    """A list of replies for each dialogue; and whether one reply each was given, not a list of them.

    Raises:
      DialogueError: these are neither, or not as many as there are dialogues.
    """
    wanted = "give one reply, or one list of replies, for each dialogue: [text, …] or [[text, …], …]"
    plain = as_plain(replies)
    if not _is_list(plain):
        raise DialogueError(f"replies is {shown(replies)}; {wanted}")
    listed = list(plain)
    if len(listed) != dialogues:
        raise DialogueError(f"there are {dialogues} dialogues and {len(listed)} replies; {wanted}")
    one_each = bool(listed) and all(isinstance(reply, str | Candidate) for reply in listed)
    if one_each:
        return [[reply] for reply in as_replies("replies", listed)], True
    return [as_replies(f"replies[{number}]", own) for number, own in enumerate(listed)], False


def _is_list(value: Any) -> bool:
    """Whether one can go through it in order: no text, set or reply; nor a dict or a table, which would give its keys."""
    no_list = isinstance(value, str | bytes | Candidate | Set) or hasattr(value, "keys")
    return isinstance(value, Iterable) and not no_list


def _ids_of(model: LanguageModel, replies: Sequence[str | Candidate]) -> list[list[int]]:
    """The ids of each: of a text, its own and EOS; of a candidate, those that it has."""
    texts = [reply for reply in replies if isinstance(reply, str)]
    encoded = iter(model.tokenizer.encode_batch(texts))
    eos = model.config.eos_token_id
    return [[*next(encoded), eos] if isinstance(r, str) else np.asarray(r.tokens).tolist() for r in replies]


def _candidate(
    model: LanguageModel, reply: str | Candidate, ids: Sequence[int], logprobs: np.ndarray, alone: float
) -> Candidate:
    total = _total(logprobs)
    text = reply if isinstance(reply, str) else reply.text
    finished = bool(ids) and ids[-1] == model.config.eos_token_id
    pieces = token_texts(model.tokenizer, ids)
    return Candidate(text, np.array(ids, np.int32), logprobs, total, finished, total - alone, pieces)


def _total(logprobs: np.ndarray) -> float:
    return float(logprobs.sum(dtype=np.float64))
