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
from dialogpt_jax.whole_writes import BusyError, locked

STATISTICS, PROBLEMS, UNFINISHED, PLAN = "statistics.json", "problems.jsonl", "unfinished", "plan.json"
LISTS = ("offensive", "subreddits", "common_words")  # they may be long, or not for other eyes
_OURS = re.compile(r"dialogues-\d{5}-of-\d{5}\.(jsonl|tsv)|problems\.jsonl|statistics\.(json|txt|png)(\.part)?")


class ExtractError(ValueError):
    """The folder is not free, or was begun with other dumps or rules."""


def plan_of(names: Sequence[str], rules: Rules, leave_out: LeaveOut, form: str) -> dict[str, Any]:
    """What the corpus is a function of."""
    said = {
        field.name: sorted(value) if isinstance(value := getattr(rules, field.name), frozenset) else value
        for field in dataclasses.fields(rules)
    }
    said |= {name: _digest(said[name]) for name in LISTS}
    dumps = [[os.path.abspath(name), os.stat(name).st_size, os.stat(name).st_mtime_ns] for name in names]
    return {"dumps": dumps, **said, "leave_out": _digest([sorted(one) for one in leave_out]), "form": form}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


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
        name = next(name for name in plan if known.get(name) != plan[name])
        shown = f" ({json.dumps(known.get(name))}, now {json.dumps(plan[name])})"
        raise ExtractError(
            f"{target}: a corpus was begun here with {'other dumps' if name == 'dumps' else f'another {name}'}"
            f"{'' if name in ('dumps', 'leave_out', *LISTS) else shown}; choose another folder, or --force"
        )
    _clear(target)
    return False


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
    write_whole(work / PLAN, json.dumps({"plan": {"taken away": True}}))
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
