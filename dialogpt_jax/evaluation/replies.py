"""Replies to contexts flow in; a file of JSON lines comes out, from which an interrupted run goes on.

    {"run": {"model": …, "contexts": …, "decode": "greedy", …}}               what decides the replies
    {"context": 0, "dialogue": 0, "turn": 3, "seed": 0, "text": …, "truth": …, "finished": true, "tokens": 9, "logprob": …}
    …

While the run goes on, lines stand in the order in which they came; when it is done, in the order of the contexts. A last
line without a line end was being written when the run died, and is ignored. The first line may stand again further down:
the files of a run made in several parts may be put one behind the other.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dialogpt_jax.errors import naming


class RepliesFileError(ValueError):
    """A file of replies that cannot be gone on with; the message names file and line."""


class Reply(NamedTuple):
    """What a model said to a context.

    Attributes:
      context: number of the context, from 0.
      dialogue: number of its dialogue in the data, from 0.
      turn: turns before the reply.
      seed: of the draw; with it, `context` and `turn` decide the row's key.
      text: the reply.
      truth: the turn that really came.
      finished: it ended by itself.
      tokens: of the reply, EOS included where it ended.
      logprob: the model's own log-probability of them all.
    """

    context: int
    dialogue: int
    turn: int
    seed: int
    text: str
    truth: str
    finished: bool
    tokens: int
    logprob: float


_KINDS = {"context": int, "dialogue": int, "turn": int, "seed": int, "text": str, "truth": str, "finished": bool}
_KINDS |= {"tokens": int, "logprob": float}


def as_line(reply: Reply) -> str:
    """A reply as one line of JSON."""
    return json.dumps(reply._asdict(), ensure_ascii=False) + "\n"


def head_line(run: Mapping[str, Any]) -> str:
    """What decides the replies, as the first line of the file."""
    return json.dumps({"run": dict(run)}, ensure_ascii=False) + "\n"


def read_replies(path: str | os.PathLike[str], run: Mapping[str, Any] | None = None) -> dict[int, Reply]:
    """The replies of a file by the number of their context; none where there is no file or only a part of a first line.

    Args:
      path: the file.
      run: what decides the replies now; `None` takes what the file says.

    Raises:
      OSError: it cannot be read.
      RepliesFileError: it is no file of replies, it holds those of another run, or a line is broken.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return {}
    *lines, half = data.split(b"\n")
    if run is not None and not lines and head_line(run).encode().startswith(half):
        return {}
    if not lines:
        raise RepliesFileError(f"{path}, line 1: no replies of an evaluation; name another file")
    said, found = None, {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:  # UnicodeDecodeError is one
            raise RepliesFileError(
                f"{path}, line {number}: not JSON; take the line out, or name another file"
            ) from None
        if isinstance(entry, dict) and isinstance(entry.get("run"), dict):
            said = entry["run"] if said is None else said
            _compare(path, number, entry["run"], said if run is None else run)
        elif said is None:
            raise RepliesFileError(f"{path}, line 1: no replies of an evaluation; name another file")
        else:
            reply = _reply(path, number, entry)
            found[reply.context] = reply
    return found


def save_replies(path: str | os.PathLike[str], run: Mapping[str, Any], replies: Iterable[Reply]) -> None:
    """Writes the first line and the replies in the order of their contexts, all at once: killed, the old file stays."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with naming(path), part.open("w", encoding="utf-8", newline="\n") as file:
        file.write(head_line(run))
        file.writelines(as_line(reply) for reply in sorted(replies))
    os.replace(part, path)


def _compare(path, number: int, said: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    other = [f"{k} {said.get(k)}, now {run.get(k)}" for k in {**run, **said} if said.get(k) != run.get(k)]
    if other:
        raise RepliesFileError(
            f"{path}, line {number}: replies of another run ({'; '.join(other)}); name another file, or delete it"
        )


def _reply(path, number: int, entry: Any) -> Reply:
    sound = isinstance(entry, dict) and set(entry) == set(_KINDS)
    if not sound or any(type(entry[name]) is not kind for name, kind in _KINDS.items()):
        raise RepliesFileError(f"{path}, line {number}: not a reply; take the line out, or name another file")
    return Reply(**entry)
