"""How probable given replies are to a bot: dialogues and texts in; the same texts with their log-probabilities out."""

from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any

import numpy as np

from dialogpt_jax.arguments import as_plain, shown
from dialogpt_jax.decoding.score_batches import score_replies
from dialogpt_jax.replies.candidates import Candidate, Candidates
from dialogpt_jax.replies.language_model import LanguageModel
from dialogpt_jax.replies.settings import checked_length
from dialogpt_jax.text.dialogue import DialogueError, Turns


def scored(
    model: LanguageModel,
    dialogues: Sequence[Turns],
    replies: Sequence[Sequence[str | Candidate]],
    *,
    max_new_tokens: int,
    progress: Callable[[int, int], None] | None,
    names: Sequence[str],
) -> list[Candidates]:
    """The replies to each dialogue with their log-probabilities. In errors, those to dialogue i are called `names[i]`."""
    max_new_tokens = checked_length(max_new_tokens)
    eos, room = model.config.eos_token_id, model.config.n_positions
    contexts = [model.encode(turns, max_new_tokens=max_new_tokens) for turns in dialogues]
    tokens = [_tokens_of(model, own) for own in replies]
    for name, context, own in zip(names, contexts, tokens, strict=True):
        for number, ids in enumerate(own):
            if len(context) + len(ids) > room:
                raise DialogueError(
                    f"{name}[{number}] has {len(ids)} tokens and its context {len(context)}, {room} together at most; "
                    "shorten it, or give a larger max_new_tokens, which leaves out more of the context"
                )
    # P(reply) is the same behind any context, so a reply that comes again is scored once.
    different = list(dict.fromkeys(tuple(ids) for own in tokens for ids in own))
    done, total = 0, sum(map(len, tokens)) + len(different)

    def count(new: int) -> None:
        nonlocal done
        done += new
        if progress is not None:
            progress(done, total)

    within = score_replies(model.params, model.config, contexts, tokens, progress=count)
    [alone] = score_replies(model.params, model.config, [[eos]], [different], progress=count)
    totals = {ids: _total(logprobs) for ids, logprobs in zip(different, alone, strict=True)}
    return [
        Candidates(
            _candidate(reply, ids, logprobs, eos, totals[tuple(ids)])
            for reply, ids, logprobs in zip(*each, strict=True)
        )
        for each in zip(replies, tokens, within, strict=True)
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


def _tokens_of(model: LanguageModel, replies: Sequence[str | Candidate]) -> list[list[int]]:
    """The ids of each: of a text, its own and EOS; of a candidate, those that it has."""
    texts = [reply for reply in replies if isinstance(reply, str)]
    encoded = iter(model.tokenizer.encode_batch(texts))
    eos = model.config.eos_token_id
    return [[*next(encoded), eos] if isinstance(r, str) else np.asarray(r.tokens).tolist() for r in replies]


def _candidate(reply: str | Candidate, ids: Sequence[int], logprobs: np.ndarray, eos: int, alone: float) -> Candidate:
    total = _total(logprobs)
    text = reply if isinstance(reply, str) else reply.text
    finished = bool(ids) and ids[-1] == eos
    return Candidate(text, np.array(ids, np.int32), logprobs, total, finished, total - alone)


def _total(logprobs: np.ndarray) -> float:
    return float(logprobs.sum(dtype=np.float64))
