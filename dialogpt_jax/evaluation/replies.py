"""Replies to contexts flow in; a file of JSON lines comes out, from which an interrupted run goes on. It has two layouts:

    {"run": {"model": …, "contexts": …, "decode": "greedy", …}}               an evaluation: first what decides the replies
    {"context": 0, "dialogue": 0, "turn": 3, "seed": 0, "text": …, "truth": …, "finished": true, "tokens": 9, "logprob": …}

    {"turns": ["Hi!"], "reply": "Hello.", "finished": true, "tokens": 3, "logprob": …, "index": 0, "seed": 0, "run": …}

The second is `dialogpt reply --data`'s: each line has the dialogue and its place in the file, from 0, and digests of the
data, the model and the settings. While a run goes on, lines stand in the order in which they came; when it is done, in
the order of the contexts. A last line without a line end was being written when the run died, and is ignored. The files
of an evaluation made in several parts may be put one behind the other: its first line may stand again further down.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dialogpt_jax.evaluation.contexts import Context
from dialogpt_jax.evaluation.kept_rows import RepliesFileError


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
      forwards, accepted: where tokens were drafted: how often the model read drafts, and how many became tokens.
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
    forwards: int | None = None
    accepted: int | None = None

    @property
    def drafted(self) -> dict[str, int]:
        """The last two by their names; nothing where none was drafted."""
        if self.forwards is None or self.accepted is None:
            return {}
        return {"forwards": self.forwards, "accepted": self.accepted}


class EvaluationFile(NamedTuple):
    """A file of an evaluation: what decides the replies on its first line, then a reply a line.

    Attributes:
      path: of the file.
      run: what decides the replies now.
      contexts: what was replied to.
    """

    path: str | os.PathLike[str]
    run: Mapping[str, Any]
    contexts: Sequence[Context]

    def head(self) -> str:
        return json.dumps({"run": dict(self.run)}, ensure_ascii=False) + "\n"

    def line(self, reply: Reply) -> str:
        figures = {name: value for name, value in reply._asdict().items() if name in _KINDS}
        return json.dumps(figures | reply.drafted, ensure_ascii=False) + "\n"

    def read(self) -> dict[int, Reply]:
        """`read_replies` of this run."""
        return read_replies(self.path, self.run)


class DialogueFile(NamedTuple):
    """A file of replies to the dialogues of another, a line each; attributes as in `EvaluationFile`."""

    path: str | os.PathLike[str]
    run: Mapping[str, Any]
    contexts: Sequence[Context]

    def head(self) -> str:
        return ""

    def line(self, reply: Reply) -> str:
        start = {"turns": self.contexts[reply.context].turns, "reply": reply.text}
        figures = {"finished": reply.finished, "tokens": reply.tokens, "logprob": reply.logprob, **reply.drafted}
        place = {"index": reply.context, "seed": reply.seed, "run": digest_of(self.run)}
        return json.dumps(start | figures | place, ensure_ascii=False) + "\n"

    def read(self) -> dict[int, Reply]:
        """The replies by the number of their context; none where there is no file, or a part of a first line.

        Raises:
          OSError: it cannot be read.
          RepliesFileError: a line is no such reply, or one of another run.
        """
        entries, half = json_entries(self.path)
        if not entries and not any(_agree(self._start(context), half) for context in self.contexts):
            raise RepliesFileError(f"{self.path}, line 1: no replies to a file; name another file")
        found: dict[int, Reply] = {}
        digest = digest_of(self.run)
        for number, entry in entries:
            where = f"{self.path}, line {number}"
            if not _sound(entry, _DIALOGUE_KINDS):
                what = "no reply to a dialogue; take the line out, or" if found else "no replies to a file;"
                raise RepliesFileError(f"{where}: {what} name another file")
            if entry["run"] != digest:
                seed = f"seed {entry['seed']}, now {self.run['seed']}" if entry["seed"] != self.run["seed"] else ""
                raise another_run(where, entry["run"], self.run, settings=seed)
            index = entry["index"]
            context = self.contexts[index] if 0 <= index < len(self.contexts) else None
            if context is None or entry["turns"] != context.turns:
                raise RepliesFileError(f"{where}: not the dialogue at index {index}; take the line out")
            figures = {
                name: entry[name] for name in ("seed", "finished", "tokens", "logprob", *_DRAFTED) if name in entry
            }
            where_from = {"context": index, "dialogue": context.dialogue, "turn": len(context.turns)}
            found[index] = Reply(**where_from, text=entry["reply"], truth=context.truth, **figures)
        return found

    def _start(self, context: Context) -> bytes:
        return json.dumps({"turns": context.turns, "reply": ""}, ensure_ascii=False)[:-2].encode()


_KINDS = {"context": int, "dialogue": int, "turn": int, "seed": int, "text": str, "truth": str, "finished": bool}
_KINDS |= {"tokens": int, "logprob": float}
_DIALOGUE_KINDS = {"turns": list, "reply": str, "finished": bool, "tokens": int, "logprob": float}
_DIALOGUE_KINDS |= {"index": int, "seed": int, "run": str}
_DRAFTED = {"forwards": int, "accepted": int}  # which stand there together, or not at all


_DIGESTED = ("data", "model", "settings")


def digest_of(run: Mapping[str, Any]) -> str:
    """What decides the replies, in a few characters: of the data, the model and the settings, with hyphens between."""
    parts = {name: {name: value} for name, value in run.items() if name in _DIGESTED}
    parts["settings"] = {name: value for name, value in run.items() if name not in ("contexts", *parts)}
    digests = (hashlib.sha256(json.dumps(parts[name], sort_keys=True).encode()) for name in _DIGESTED)
    return "-".join(digest.hexdigest()[:8] for digest in digests)


def another_run(where: str, said: str, run: Mapping[str, Any], *, settings: str = "") -> RepliesFileError:
    """The error for a line of another run: what changed since it was written, as far as its digest tells.

    Args:
      where: the line.
      said: its digest.
      run: what decides the replies now.
      settings: what is known of the settings that changed.
    """
    before, now = said.split("-"), digest_of(run).split("-")
    told = {
        "data": f"other dialogues, now {run['contexts']:,}",
        "model": "another model",
        "settings": settings or "other settings",
    }
    difference = "another model, data or settings"
    if len(before) == len(now):
        same = [name for name, one, other in zip(_DIGESTED, before, now, strict=True) if one == other]
        changed = [told[name] for name in _DIGESTED if name not in same]
        difference = "; ".join([*changed, *([f"{' and '.join(same)} as before"] if same else [])])
    return RepliesFileError(
        f"{where}: replies of another run ({difference}); name another file, or delete it to begin anew"
    )


def read_replies(path: str | os.PathLike[str], run: Mapping[str, Any] | None = None) -> dict[int, Reply]:
    """The replies of an evaluation's file by the number of their context; none where there is no file or only a part of
    a first line.

    Args:
      path: the file.
      run: what decides the replies now; `None` takes what the file says.

    Raises:
      OSError: it cannot be read.
      RepliesFileError: it is no file of replies, it holds those of another run, or a line is broken.
    """
    entries, half = json_entries(path)
    if not entries and not (
        half == b"" if run is None else EvaluationFile(path, run, ()).head().encode().startswith(half)
    ):
        raise RepliesFileError(f"{path}, line 1: no replies of an evaluation; name another file")
    said, found = None, {}
    for number, entry in entries:
        if isinstance(entry, dict) and isinstance(entry.get("run"), dict):
            said = entry["run"] if said is None else said
            check_run(path, number, entry["run"], said if run is None else run)
        elif said is None:
            raise RepliesFileError(f"{path}, line 1: no replies of an evaluation; name another file")
        elif not _sound(entry, _KINDS):
            raise RepliesFileError(f"{path}, line {number}: not a reply; take the line out, or name another file")
        else:
            found[entry["context"]] = Reply(**entry)
    return found


def json_entries(path: str | os.PathLike[str]) -> tuple[list[tuple[int, Any]], bytes]:
    """The numbered lines of a file, read as JSON, and what stands behind the last line end."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return [], b""
    *lines, half = data.split(b"\n")
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append((number, json.loads(line)))
        except (ValueError, RecursionError):  # UnicodeDecodeError is one
            raise RepliesFileError(
                f"{path}, line {number}: not JSON; take the line out, or name another file"
            ) from None
    return entries, half


def _agree(one: bytes, other: bytes) -> bool:
    return one.startswith(other) or other.startswith(one)


def check_run(path, number: int, said: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    other = [f"{k} {said.get(k)}, now {run.get(k)}" for k in {**run, **said} if said.get(k) != run.get(k)]
    if other:
        raise RepliesFileError(
            f"{path}, line {number}: replies of another run ({'; '.join(other)}); name another file, or delete it"
        )


def _sound(entry: Any, kinds: Mapping[str, type]) -> bool:
    """Whether an entry has these fields and no other, each of its kind; those of drafts may stand there, too."""
    if isinstance(entry, dict) and not entry.keys().isdisjoint(_DRAFTED):
        kinds = {**kinds, **_DRAFTED}
    return isinstance(entry, dict) and set(entry) == set(kinds) and all(type(entry[k]) is v for k, v in kinds.items())
