"""What became of the records: counts of dumps and partitions in; their sum as text, JSON and a plot out."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dialogpt_jax.data.reddit.rules import COMMENT_RULES, PAIR_RULES, PATH_RULES, RULES
from dialogpt_jax.data.reddit.threads import Outcome
from dialogpt_jax.data.reddit.trees import Thread
from dialogpt_jax.errors import counted, escape_controls

SHOWN = 10  # subreddits, months and problems in the text
HUGE_SHOWN = 100  # threads over --max-thread that are named
CUTS = {
    "orphan": "above them a comment is missing",
    "depth": "they are cut at --max-depth",
    "long_turn": "above them a comment is too long",
    "cycle": "they come out of a circle",
}


@dataclass
class Statistics:
    """Counts.

    Attributes:
      counts: lines, problems, comments, submissions, threads, duplicates, inner (comments that are no reply of their own,
        since somebody answered them), replies, dialogues, and one `rule NAME` for each rule that skipped.
      cuts: of the dialogues, why they do not begin with their thread.
      turns, words: how many dialogues have so many turns, and how many targets so many words.
      weightless: how many targets weigh 0.
      subreddits, months: of the dialogues.
      problems: by kind: how many lines, and the first as (file, line, reason).
      huge: threads with more comments than are read, and how many were not.
    """

    counts: Counter[str] = field(default_factory=Counter)
    cuts: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    words: Counter[int] = field(default_factory=Counter)
    subreddits: Counter[str] = field(default_factory=Counter)
    months: Counter[str] = field(default_factory=Counter)
    weightless: int = 0
    problems: dict[str, tuple[int, list[tuple[str, int, str]]]] = field(default_factory=dict)
    huge: dict[str, int] = field(default_factory=dict)

    def add_thread(self, thread: Thread, outcomes: Iterable[Outcome]) -> None:
        """Counts a thread, and those of its replies that a rule skipped; dialogues are counted when they are written."""
        self.counts["threads"] += bool(thread.submission or thread.comments)
        self.counts.update({"duplicates": thread.duplicates, "rule deleted": thread.deleted})
        if thread.dropped:
            self.counts["rule huge_thread"] += thread.dropped
            self.huge[thread.id] = thread.dropped
        met = 0
        for outcome in outcomes:
            met += 1
            if outcome.rule:
                self.counts[f"rule {outcome.rule}"] += 1
        self.counts.update(replies=met, inner=len(thread.comments) - met)

    def add_dialogue(self, line: Mapping[str, Any]) -> None:
        """Counts a dialogue that is written."""
        self.counts["dialogues"] += 1
        self.cuts[line["cut"]] += 1
        self.turns[len(line["turns"])] += 1
        weights = line["weights"] or [1.0] * len(line["turns"])
        for turn, weight in zip(line["turns"][1:], weights[1:], strict=True):
            self.weightless += not weight
            if weight:
                self.words[len(turn.split())] += 1
        self.subreddits[line["subreddit"]] += 1
        self.months[line["month"]] += 1

    def add_dump(self, said: Mapping[str, Any]) -> None:
        """Counts what `split_dump` says of a dump."""
        self.counts.update(said["counts"])
        for kind, (count, first) in said["problems"].items():
            before, known = self.problems.get(kind, (0, []))
            named = [(said["file"], line, reason) for line, reason in first]
            self.problems[kind] = before + count, [*known, *named][:5]

    def add(self, other: "Statistics") -> None:
        for name in ("counts", "cuts", "turns", "words", "subreddits", "months"):
            getattr(self, name).update(getattr(other, name))
        self.weightless += other.weightless
        self.huge |= other.huge

    def as_json(self) -> dict[str, Any]:
        return {
            "counts": {name: number for name, number in sorted(self.counts.items()) if number},
            "cuts": dict(sorted((name or "none", number) for name, number in self.cuts.items())),
            "turns": {str(key): self.turns[key] for key in sorted(self.turns)},
            "words": {str(key): self.words[key] for key in sorted(self.words)},
            "weightless": self.weightless,
            "subreddits": dict(_ranked(self.subreddits)),
            "months": dict(sorted(self.months.items())),
            "problems": {kind: [count, [list(one) for one in first]] for kind, (count, first) in self.problems.items()},
            "huge": dict(sorted(self.huge.items())),
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> "Statistics":
        return cls(
            Counter(said["counts"]),
            Counter({"" if name == "none" else name: number for name, number in said["cuts"].items()}),
            Counter({int(key): number for key, number in said["turns"].items()}),
            Counter({int(key): number for key, number in said["words"].items()}),
            Counter(said["subreddits"]),
            Counter(said["months"]),
            said["weightless"],
            {kind: (count, [(f, n, r) for f, n, r in first]) for kind, (count, first) in said["problems"].items()},
            dict(said["huge"]),
        )


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def funnel(statistics: Statistics) -> list[tuple[str, int, int]]:
    """What is left after each step: (step, skipped there, left after it); the last number is that of the dialogues."""
    counts = statistics.counts
    left = counts["comments"]
    steps = [("comments", 0, left)]
    for rules in (COMMENT_RULES, PATH_RULES, PAIR_RULES):
        for name in rules:
            if counts[f"rule {name}"]:
                left -= counts[f"rule {name}"]
                steps.append((name, counts[f"rule {name}"], left))
        if rules is COMMENT_RULES:
            for name in ("duplicates", "inner"):
                left -= counts[name]
                steps.append((name, counts[name], left))
    return steps


def as_text(statistics: Statistics) -> list[str]:
    """Lines for a person."""
    counts = statistics.counts
    lines = [
        f"{counted(counts['lines'], 'lines')}: {counted(counts['comments'], 'comments')} and "
        f"{counted(counts['submissions'], 'submissions')}, "
        f"{counts['problems']:,} that are neither",
        f"{counted(counts['threads'], 'threads')}, {counted(counts['dialogues'], 'dialogues')}",
        "",
        f"{'':16}{'skipped':>14}{'left':>16}",
    ]
    why = RULES | {
        "duplicates": "a later record of the same id took its place",
        "inner": "somebody answered it: it stands within the dialogue of the answer",
    }
    for name, skipped, left in funnel(statistics):
        lines.append(
            f"{name:16}{skipped or '':>14,}{left:>16,}  {why.get(name, '')}".rstrip()
            if skipped
            else f"{name:16}{'':>14}{left:>16,}"
        )
    if counts["dialogues"]:
        spoken = sum(statistics.words.values())
        words = sum(key * number for key, number in statistics.words.items())
        lines += [
            "",
            "turns      " + ", ".join(f"{key}: {number:,}" for key, number in sorted(statistics.turns.items())),
            f"targets    {spoken:,}, {words / max(spoken, 1):.1f} words each; {statistics.weightless:,} more weigh 0",
            "subreddits " + ", ".join(f"{name or '?'}: {n:,}" for name, n in _ranked(statistics.subreddits)[:SHOWN]),
            "months     " + _span(statistics.months),
        ]
        lines += [
            f"{counted(statistics.cuts[name], 'dialogues', ('begins', 'begin'))} late: {why}"
            for name, why in CUTS.items()
            if statistics.cuts[name]
        ]
    for kind, (count, first) in statistics.problems.items():
        file, line, reason = first[0]
        lines.append(f"{counted(count, 'lines')}: {kind}; the first is {file}, line {line}: {reason}")
    for name, dropped in sorted(statistics.huge.items())[:HUGE_SHOWN]:
        lines.append(f"{name}: {counted(dropped, 'comments over --max-thread', ('was', 'were'))} not read")
    return [escape_controls(line, keep="") for line in lines]  # a file's name may hold anything


def _span(months: Counter[str]) -> str:
    known = sorted(name for name in months if name)
    unknown = f"; {months['']:,} unknown" if months[""] else ""
    return (f"{known[0]} to {known[-1]}, {len(known)} of them" if known else "none known") + unknown


def save_plot(statistics: Statistics, path: Path) -> None:
    """The funnel, the lengths, the depths and the months as a picture.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    figure = Figure(figsize=(11, 8), layout="constrained")
    (funnel_axes, turns_axes), (words_axes, months_axes) = figure.subplots(2, 2)
    steps = funnel(statistics)
    funnel_axes.barh([name for name, _, _ in steps], [left for _, _, left in steps], color="tab:blue")
    funnel_axes.invert_yaxis()
    funnel_axes.set(title="left after each rule", xlabel="comments")
    for axes, counts, name in (
        (turns_axes, statistics.turns, "turns"),
        (words_axes, statistics.words, "words of a target"),
    ):
        axes.bar(list(counts), list(counts.values()), color="tab:green")
        axes.set(title=name, ylabel="dialogues" if name == "turns" else "targets")
    months = sorted(name for name in statistics.months if name)
    months_axes.bar(months, [statistics.months[name] for name in months], color="tab:orange")
    months_axes.set(title="months", ylabel="dialogues")
    months_axes.set_xticks(months[:: max(1, len(months) // 8)])
    months_axes.tick_params(axis="x", rotation=45)
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png", metadata={"Software": None})
    part.replace(path)
