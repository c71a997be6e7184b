"""The folder of a corpus: what the corpus is a function of in; whether it stands there, was begun there, or may be, out.

A plan says which dumps, rules and lists. `DIR/unfinished/plan.json` has that of a corpus that was begun,
`DIR/statistics.json` that of a finished one. What has neither, and is not empty, is somebody else's: it is refused, and
stays as it is.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dialogpt_jax.data.reddit.rules import Rules
from dialogpt_jax.data.reddit.split import write_whole
from dialogpt_jax.data.reddit.threads import LeaveOut
from dialogpt_jax.errors import counted
from dialogpt_jax.whole_writes import BusyError, locked

STATISTICS, PROBLEMS, UNFINISHED, PLAN = "statistics.json", "problems.jsonl", "unfinished", "plan.json"
LISTS = ("offensive", "subreddits", "common_words")  # they may be long, or not for other eyes
TAKEN_AWAY = "taken away"
_OURS = re.compile(r"dialogues-\d{5}-of-\d{5}\.(jsonl|tsv)|problems\.jsonl|statistics\.(json|txt|png)(\.part)?")


class ExtractError(ValueError):
    """The folder is not free, or was begun with other dumps or rules."""


def plan_of(names: Sequence[str], rules: Rules, leave_out: LeaveOut, form: str) -> dict[str, Any]:
    """What the corpus is a function of."""
    said = {
        field.name: sorted(value) if isinstance(value := getattr(rules, field.name), frozenset) else value
        for field in dataclasses.fields(rules)
    }
    said |= {name: _noted_list(said[name]) for name in LISTS}
    dumps = [[os.path.abspath(name), os.stat(name).st_size, os.stat(name).st_mtime_ns] for name in names]
    return {"dumps": dumps, **said, "leave_out": _noted_list([sorted(one) for one in leave_out]), "form": form}


def _noted_list(entries: Sequence[Any]) -> list[Any]:
    """How many entries a list has, those of a list within it too, and its digest."""
    count = sum(1 if isinstance(entry, str) else len(entry) for entry in entries)
    return [count, hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]]


@contextlib.contextmanager
def held(target: Path) -> Iterator[None]:
    """The folder, made if it is not there, for this process alone until the block ends.

    Raises:
      ExtractError: a file is in the way, or another process is at work there.
    """
    if os.path.lexists(target) and not target.is_dir():
        raise ExtractError(f"{target}: a file is in the way; name a folder")
    target.mkdir(parents=True, exist_ok=True)
    try:
        with locked(target, wait=False):
            yield
    except BusyError as error:
        raise ExtractError(str(error)) from None


def is_finished(target: Path, plan: dict[str, Any], *, replace: bool) -> bool:
    """Whether a folder that is held has this corpus; False if it may be written, or gone on with.

    Args:
      replace: whether to take away another corpus.

    Raises:
      ExtractError: the folder has other files, or another corpus.
    """
    work = target / UNFINISHED
    begun, finished = work / PLAN, target / STATISTICS
    if finished.exists():
        known = _noted(target, finished)
    elif begun.exists():
        known = _noted(target, begun)
    elif any(path != work for path in target.iterdir()) or (
        work.exists() and any(path.name != f"{PLAN}.part" for path in work.iterdir())
    ):
        raise _not_ours(target)
    else:
        return False
    if known == plan:
        if finished.exists():
            shutil.rmtree(work, ignore_errors=True)
        return finished.exists()
    if not replace:
        if TAKEN_AWAY in known:
            raise ExtractError(f"{target}: a corpus is half taken away here; --force makes a new one")
        changed = "; ".join(
            _change(name, known.get(name), plan[name]) for name in plan if known.get(name) != plan[name]
        )
        raise ExtractError(
            f"{target} was begun otherwise ({changed}); give what it was begun with, another folder, or --force to begin "
            "anew here"
        )
    _clear(target)
    return False


def _change(name: str, before: Any, now: Any) -> str:
    """How a part of a plan was and how it is now: `--min-score 1, now 2`."""
    if name == "dumps":
        return f"dumps: {_dumps_change(before or [], now)}"
    flag = f"--{name.replace('_', '-')}"
    if name in (*LISTS, "leave_out"):
        if not isinstance(before, list) or before[0] == now[0]:
            return f"{flag}: other entries, now {now[0]:,}"
        return f"{flag}: {counted(before[0], 'entries')}, now {now[0]:,}"
    shown, shown_now = (
        ",".join(x) or "none" if isinstance(x, list) else json.dumps(x).strip('"') for x in (before, now)
    )
    return f"{flag} {shown}, now {shown_now}"


def _dumps_change(before: Sequence[Any], now: Sequence[Any]) -> str:
    names, names_now = [name for name, *_ in before], [name for name, *_ in now]
    if len(names) != len(names_now):
        return f"{len(names)}, now {len(names_now)}"
    other = next((name for name in names_now if name not in names), None)
    if other is not None:
        return f"{other} was not among them"
    return f"{next(new[0] for old, new in zip(before, now, strict=True) if old != new)} has changed since"


def _not_ours(target: Path) -> ExtractError:
    return ExtractError(f"{target}: holds other files and no corpus; choose a new or empty folder")


def _noted(target: Path, file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except ValueError:
        raise _not_ours(target) from None
    if not isinstance(found, dict) or not isinstance(found.get("plan"), dict):
        raise _not_ours(target)
    return found["plan"]


def _clear(target: Path) -> None:
    """Takes a corpus away. Killed in between, what is left is of no plan, and can be taken away again."""
    work = target / UNFINISHED
    work.mkdir(exist_ok=True)
    write_whole(work / PLAN, json.dumps({"plan": {TAKEN_AWAY: True}}))
    (target / STATISTICS).unlink(missing_ok=True)
    for path in (*target.iterdir(), *work.iterdir()):
        if _OURS.fullmatch(path.name) or (path.parent == work and path.name != PLAN):
            path.unlink()
    (work / PLAN).unlink()


def begin(work: Path, plan: dict[str, Any], partitions: int) -> int:
    """Notes the plan, unless that is done already; the number of partitions, which stays what it was."""
    work.mkdir(exist_ok=True)
    file = work / PLAN
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))["partitions"]
    write_whole(file, json.dumps({"plan": plan, "partitions": partitions}))
    return partitions
