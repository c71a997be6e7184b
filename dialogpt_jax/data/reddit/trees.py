"""The comments of one thread to paths: records in any order in; for each reply the comments before it, in order, out.

Source: microsoft/DialoGPT at 61194e4, reddit_extractor/src/reddit.py, `get_convo`. A path goes up from a reply and ends
where the thread does, after `max_depth` comments, above a comment that is not there (skipped, deleted, or in no dump: what
answers it is an orphan), at a comment of too many words, or where it would meet a comment again.

    t3_a ── t1_b ── t1_c ── t1_d        leaves: d, e           d: b c d        e: b e
                └── t1_e
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dialogpt_jax.data.reddit.records import SUBMISSION, Comment, Gone, Submission
from dialogpt_jax.data.reddit.rules import Rules, is_long_turn


class Thread(NamedTuple):
    """A thread.

    Attributes:
      id: its submission's.
      submission: where there is one.
      comments: by their ids; the bodies are flattened.
      duplicates: how many comments were replaced by a later record of the same id.
      dropped: how many comments were more than a thread may have.
      deleted: how many comments were taken away because a dump has them as deleted.
    """

    id: str
    submission: Submission | None
    comments: dict[str, Comment]
    duplicates: int = 0
    dropped: int = 0
    deleted: int = 0


class Path(NamedTuple):
    """A reply and what it answers.

    Attributes:
      turns: comments, the reply last.
      title: the thread's title, where it is the first turn.
      cut: why it does not begin with the thread: "orphan", "cycle", "long_turn", "depth", or "" where it does.
    """

    turns: tuple[Comment, ...]
    title: str | None
    cut: str


def build_thread(name: str, records: Iterable[Comment | Submission | Gone], rules: Rules) -> Thread:
    """A thread of its records, in the order of the dumps: of one id the last counts, as in the reference.

    But what is deleted in one of them is deleted, whatever the order.
    """
    submission, comments, gone, count, duplicates, dropped = None, {}, set(), 0, 0, 0
    for record in records:
        if isinstance(record, Submission):
            untitled = submission is not None and not submission.title and rules.fixes("deleted")
            submission = record._replace(title="") if untitled else record
        elif isinstance(record, Gone):
            gone.add(record.id)
        elif count == rules.max_thread and "huge_thread" not in rules.without:
            dropped += 1
        else:
            count += 1
            duplicates += record.id in comments
            comments[record.id] = record
    deleted = [comments.pop(own) for own in gone if own in comments]
    return Thread(name, submission, comments, duplicates, dropped, len(deleted))


def replies(thread: Thread, rules: Rules) -> Iterator[Comment]:
    """The comments that end a path, in the reference's order: by parent, then id. A circle has no leaf."""
    answered = set() if rules.all_comments else {comment.parent for comment in thread.comments.values()}
    for comment in sorted(thread.comments.values(), key=lambda comment: (comment.parent, comment.id)):
        if comment.id not in answered:
            yield comment


def path_to(reply: Comment, thread: Thread, rules: Rules) -> Path:
    """The path that ends with a reply; no turns if the reply itself is too long."""
    turns: list[Comment] = []
    met: set[str] = set()
    here: Comment | None = reply
    cut, title = "", None
    while here is not None:
        if len(turns) == rules.max_depth:
            cut = "depth"
        elif is_long_turn(here.body, rules):
            cut = "long_turn"
        elif here.id in met and rules.fixes("cycles"):
            cut = "cycle"
        if cut:
            break
        turns.append(here)
        met.add(here.id)
        if here.parent.startswith(SUBMISSION):
            title = thread.submission.title if rules.titles and thread.submission else None
            break
        here = thread.comments.get(here.parent)
        cut = "" if here else "orphan"
    return Path(tuple(reversed(turns)), title or None, cut)
