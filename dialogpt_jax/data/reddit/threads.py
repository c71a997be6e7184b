"""A thread to its dialogues: its records in; for each reply a dialogue, or the rule that skips it, out.

Pure, and all that happens between the reading and the writing of a thread; one machine, a cluster and a notebook call it.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dialogpt_jax.data.reddit.normalise import flatten, normalise
from dialogpt_jax.data.reddit.records import Comment, Gone, Submission
from dialogpt_jax.data.reddit.rules import (
    Rules,
    is_bad_subreddit,
    is_deleted,
    is_long_turn,
    weigh,
    why_no_comment,
    why_no_pair,
)
from dialogpt_jax.data.reddit.trees import Thread, build_thread, path_to, replies


class LeaveOut(NamedTuple):
    """What must not be read: ids of comments (`t1_…`) and of whole threads (`t3_…`), and authors in small letters."""

    ids: frozenset[str] = frozenset()
    authors: frozenset[str] = frozenset()


NOTHING = LeaveOut()


class Outcome(NamedTuple):
    """What became of a reply.

    Attributes:
      reply: the comment.
      rule: the name of the rule that skips it; None: it ends a dialogue.
      turns, weights: of the dialogue, normalised; where a rule skipped it, as far as it came.
      ids: of the turns; the thread's, for a title.
      cut: why the dialogue does not begin with the thread; see `trees.Path`.
    """

    reply: Comment
    rule: str | None
    turns: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    ids: tuple[str, ...] = ()
    cut: str = ""


def read(record: Comment | Submission, rules: Rules, leave_out: LeaveOut = NOTHING) -> Comment | Submission | str:
    """A record as its thread is read, flattened; or the rule by which the thread is as if it were not there.

    A title that is gone is empty.
    """
    if leave_out.ids or leave_out.authors:
        thread = record.thread if isinstance(record, Comment) else record.id
        if not leave_out.ids.isdisjoint((record.id, thread)) or record.author.lower() in leave_out.authors:
            return "left_out"
    author = "[deleted]" if record.gone else record.author
    if isinstance(record, Comment):
        flat = flatten(record.body)
        return why_no_comment(record.body, flat, author, rules) or record._replace(body=flat)
    gone = "deleted" not in rules.without and rules.fixes("deleted") and is_deleted(record.title, author, rules)
    return record._replace(title="" if gone else flatten(record.title))


def gone_elsewhere(comment: Comment, rule: str, rules: Rules, leave_out: LeaveOut) -> Gone | None:
    """What is noted of a comment that is not read, for what other dumps have of it; nothing of one that a list names."""
    deleted = rule == "deleted" and rules.fixes("deleted")
    return Gone(comment.id, comment.thread) if deleted or comment.author.lower() in leave_out.authors else None


def judge(name: str, records: Iterable[Comment | Submission | Gone], rules: Rules) -> tuple[Thread, list[Outcome]]:
    """A thread, and what becomes of each of its replies.

    Args:
      name: the thread's id.
      records: what `read` and `gone_elsewhere` give of it, in the order of the dumps.
      rules: what is asked.
    """
    thread = build_thread(name, records, rules)
    return thread, list(_outcomes(thread, rules))


def _outcomes(thread: Thread, rules: Rules) -> Iterator[Outcome]:
    texts: dict[str, str] = {}  # normalised once, however many paths a comment stands on

    def text_of(comment: Comment) -> str:
        if comment.id not in texts:
            texts[comment.id] = normalise(comment.body, rules.faithful)
        return texts[comment.id]

    submission = thread.submission
    known = submission is not None and (submission.comments is None or submission.comments >= 2)
    if not known and not rules.fixes("submissions") and "no_submission" not in rules.without:
        for comment in thread.comments.values():
            yield Outcome(comment, "no_submission")
        return
    for reply in replies(thread, rules):
        subreddit = (submission and submission.subreddit) or reply.subreddit
        if "subreddit" not in rules.without and is_bad_subreddit(subreddit, known, rules):
            yield Outcome(reply, "subreddit")
            continue
        if "score" not in rules.without and reply.score < rules.min_score:
            yield Outcome(reply, "score")
            continue
        if is_long_turn(reply.body, rules):
            yield Outcome(reply, "long_turn")
            continue
        path = path_to(reply, thread, rules)
        ids = tuple(comment.id for comment in path.turns)
        if path.title:
            ids = (thread.id, *ids)
        if "depth" not in rules.without and len(ids) < rules.min_depth:
            yield Outcome(reply, "depth", ids=ids, cut=path.cut)
            continue
        turns = [text_of(comment) for comment in path.turns]
        if path.title:
            turns.insert(0, normalise(f"title: {path.title}", rules.faithful))
        weights = weigh(turns, rules)
        rule = why_no_pair(turns, weights, rules)
        yield Outcome(reply, rule, tuple(turns), tuple(weights), ids, path.cut)
