"""The user's lists: a file with an entry a line in; words, subreddits, or what must be left out, out. None ships."""

import os
from collections.abc import Iterator
from pathlib import Path

from dialogpt_jax.data.reddit.records import COMMENT, SUBMISSION, as_bare_id
from dialogpt_jax.data.reddit.threads import LeaveOut

MAX_CHARACTERS = 1_000  # of an entry


class ListError(ValueError):
    """A line of a list that cannot be what it should be; the message names the file and the line."""


def read_entries(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """The numbered entries of a file, in small letters; blank lines and lines that begin with # are none.

    Raises:
      OSError: it cannot be read.
      ListError: it is not UTF-8, or an entry is longer than any word or phrase.
    """
    with Path(path).open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(iter(lambda: file.readline(MAX_CHARACTERS + 1), ""), start=1):
                if len(line) > MAX_CHARACTERS:
                    raise ListError(f"{path}, line {number}: more than {MAX_CHARACTERS:,} characters; is this a list?")
                if line.strip() and not line.startswith("#"):
                    yield number, line.strip().lower()
        except UnicodeDecodeError as error:
            raise ListError(f"{path}: not UTF-8 ({error.reason} at byte {error.start + 1}); convert the file") from None


def read_words(path: str | os.PathLike[str]) -> frozenset[str]:
    """Words and phrases."""
    return frozenset(" ".join(entry.split()) for _, entry in read_entries(path))


def read_subreddits(path: str | os.PathLike[str]) -> frozenset[str]:
    """Names of subreddits, with or without `r/`."""
    return frozenset(entry.removeprefix("/").removeprefix("r/") for _, entry in read_entries(path))


def read_leave_out(path: str | os.PathLike[str]) -> LeaveOut:
    """What must not be read: `t1_abc` a comment, `t3_abc` a thread with all its comments, `u/name` an author.

    Raises:
      ListError: a line is none of these. Without its prefix a name could be an id, and would stay where it is.
    """
    ids, authors = set(), set()
    for number, entry in read_entries(path):
        name = entry.removeprefix("/")
        if name.startswith("u/"):
            authors.add(name.removeprefix("u/"))
            continue
        bare = as_bare_id(entry) if entry.startswith((COMMENT, SUBMISSION)) else None
        if bare is None:
            raise ListError(f"{path}, line {number}: {entry[:40]!r} is no id (t1_…, t3_…) and no author (u/…)")
        ids.add((SUBMISSION if entry.startswith(SUBMISSION) else COMMENT) + bare)
    return LeaveOut(frozenset(ids), frozenset(authors))
