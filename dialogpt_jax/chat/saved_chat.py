"""A chat in a file: its turns and settings in, one JSON object out; and back, or one line that says why not.

The object's `turns` are a line of training data. The cache is not kept: a chat that goes on computes it anew.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dialogpt_jax.arguments import as_path, as_plain
from dialogpt_jax.decoding.beam_options import BeamOptions
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.ranking.rank_options import Rank
from dialogpt_jax.whole_writes import whole_file

FORMAT = "dialogpt_jax chat 1"


class ChatError(ValueError):
    """There is nothing to undo or retry, another thread is using the chat, or a file holds no chat."""


class SavedChat(NamedTuple):
    """What a file keeps of a chat; `attempt` counts the retries of the last turn."""

    turns: Sequence[str]
    seed: int
    attempt: int
    max_new_tokens: int
    sampling: Sampling
    beams: BeamOptions | None = None
    rank: Rank | None = None


def write_chat(path: str | os.PathLike[str], chat: SavedChat) -> None:
    """Writes a chat, whole or not at all.

    Raises:
      ChatError: its sampling has functions.
      OSError: it cannot be written.
    """
    path = as_path("path", path)
    if chat.sampling.processors:
        raise ChatError("a file cannot hold the functions of its sampling; take them out before you save the chat")
    if chat.rank is not None and callable(chat.rank.by):
        raise ChatError("a file cannot hold the function by which its replies are ranked; set another rank, or none")
    sampling = {name: as_plain(value) for name, value in vars(chat.sampling).items()}
    state = {"format": FORMAT} | chat._asdict() | {"sampling": sampling}
    for name, options in (("beams", chat.beams), ("rank", chat.rank)):
        if options is None:
            del state[name]
        else:
            state[name] = vars(options)
    with whole_file(path) as part:
        part.write_text(json.dumps(state, ensure_ascii=False) + "\n", encoding="utf-8")


def read_chat(path: str | os.PathLike[str]) -> SavedChat:
    """The chat of a file.

    Raises:
      ChatError: the file holds no chat.
      OSError: it cannot be read.
    """
    path = as_path("path", path)
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise ValueError(f"its format is {state['format']!r}")
        turns = state["turns"]
        if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
            raise ValueError("its turns are not a list of texts")
        seed, attempt, length = state["seed"], state["attempt"], state["max_new_tokens"]
        "".join(turns).encode()  # a lone surrogate would break every later turn
        for number, least, most in ((seed, 0, 2**63), (attempt, 0, 2**32), (length, 1, 2**31)):
            if isinstance(number, bool) or not isinstance(number, int) or not least <= number < most:
                raise ValueError(f"its numbers are out of range: {number!r}")
        sampling = Sampling(**_as_today(state["sampling"]))
        if any(isinstance(value, list | dict) for value in vars(sampling).values()):
            raise ValueError("its sampling holds no numbers")
        beams = BeamOptions(**state["beams"]) if state.get("beams") is not None else None
        rank = Rank(**state["rank"]) if state.get("rank") is not None else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ChatError(f"{path}: not a saved chat ({error})") from None
    return SavedChat(turns, seed, attempt, length, sampling, beams, rank)


def _as_today(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a saved chat by the names they have now: 0.1.0 had `penalize_context`."""
    settings = dict(sampling)
    if settings.pop("penalize_context", False):
        settings["penalty_scope"] = "context"
    return settings
