"""Which comments, paths and pairs belong to the corpus: texts and numbers in; the rule that says no, or none, out.

The rules are those of the paper (arXiv 1911.00536, section 3.1) and of microsoft/DialoGPT at 61194e4,
reddit_extractor/src/reddit.py with the settings of its Makefile.local, asked in the order of that script; the paper's that
are not in the script come behind them. Where script and paper differ, or the script does what it cannot mean, a quirk has a
name (`QUIRKS`): "faithful" is what the script does, "fixed" what this package does unless told otherwise.

    Rules()                                   # everything fixed: the paper's rules
    Rules.as_the_script()                     # everything faithful
    Rules(faithful=frozenset({"brackets"}))   # but for one
    Rules(without=frozenset({"score"}))       # a rule less

Each turn of a line has a weight. A turn of weight 0 stays as context, and is no target.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

from dialogpt_jax.data.reddit.normalise import SEPARATOR, URL

# In the order in which they are asked; who is skipped, and why.
COMMENT_RULES = {
    "left_out": "the list of what to leave out names it, its author or its thread",
    "deleted": "text or author are deleted or removed, then or later, in one dump at least",
    "quote": "it quotes: it holds > or &gt;",
    "short": "it has fewer than two words",
    "no_submission": "its submission is not in the dumps, or has fewer than two comments (faithful alone)",
}
PATH_RULES = {
    "huge_thread": "its thread has more comments than --max-thread, of which the first are kept",
    "subreddit": "the subreddit is on the list, or unknown where there is a list (faithful alone)",
    "score": "the score is too low",
    "long_turn": "the reply has too many words (an earlier turn that has cuts the path behind it)",
    "depth": "the path has too few turns",
}
PAIR_RULES = {
    "offensive": "the reply holds a word on the list (where all turns are targets: it weighs 0)",
    "empty_target": "nothing is left of the reply",
    "long_word": "the reply holds a word of too many characters",
    "long_pair": "all turns together have too many words",
    "url": "a turn holds a link",
    "brackets": "the reply holds [ or ], as markup does",
    "capitals": "a turn holds five capitals on end",
    "repetitions": "the reply says a word three times on end",
    "common_words": "the reply holds none of the commonest English words",
    "empty_source": "nothing is left of an earlier turn",
    "weightless": "no turn after the first weighs anything",
    "bland": "nine in ten of the reply's word triples are said over a thousand times (all turns targets: it weighs 0)",
}
RULES = COMMENT_RULES | PATH_RULES | PAIR_RULES

QUIRKS = {
    "deleted": "only the text [deleted] counts as deleted | also [removed] and its like, and authors who are gone, "
    "in one dump for all",
    "submissions": "a thread without a submission of two comments is dropped | it is kept, without a title",
    "cycles": "comments that answer each other in a circle stand in a path again and again | the path begins there",
    "entities": "&amp; becomes the word amp | it becomes what it stands for",
    "apostrophes": "don’t becomes don t | it becomes don't",
    "url_word": "the words URL and MENTION in a text count as links | they are words",
    "separator": "the word EOS in a text later reads as the end of a turn | it is written eos",
    "counting": "weights and EOS count as words, so that replies of one word pass with weights alone | words count",
    "brackets": "round brackets count too, and earlier turns | [ and ] in the reply, as the paper says",
    "inner_targets": "rules of a reply look at the last turn alone | an earlier target that breaks one weighs 0",
    "all_comments": "with --all-comments turns have no weights, and count again in each line | only the last one counts",
    "empty_turns": "a turn of which nothing is left stays | its line is skipped",
    "weightless": "a line without a target stays | it is skipped",
    "common_words": "the rule is absent (the script comes with lists of its outcome) | it is asked",
    "bland": "the rule is absent (the script comes with lists of its outcome) | it is asked",
}

# The paper says "the top-50 most frequent English words (e.g. the or of)" and prints no list; these are the first fifty of
# common counts of English text, as written forms.
COMMON_WORDS = frozenset(
    """the of and to a in is it you that he was for on are with as i his they be at one have this from or had by not but
    what all were we when your can said there an which she do how their if will up other about""".split()  # noqa: SIM905
)
_GONE_TEXTS = ("[deleted]", "[removed]", "[deleted by user]")
_GONE_AUTHORS = ("[deleted]", "[removed]", "deleted_by_user")
_WORD = re.compile(r"[A-Za-z0-9_]+")


class RulesError(ValueError):
    """No rule or quirk has this name, or a number is out of range."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is asked of comments, paths and pairs. The numbers are those of the script's Makefile.local.

    Attributes:
      min_score: the lowest score of a reply.
      min_depth: the fewest turns.
      max_depth: the most comments in a path; a title comes on top.
      max_turn_words: the longest turn, in words.
      max_word_characters: the longest word of a reply.
      max_pair_words: the most words of all turns together.
      bland_count: a word triple is said often if it is said more than so many times.
      bland_share: a reply is bland if so large a share of its word triples is said often.
      max_thread: the most comments of a thread that are read.
      all_comments: each comment is a reply once; without it only those that nobody answered, whose paths hold the others.
      titles: a thread's title is its first turn.
      offensive, subreddits, common_words: lists, in small letters.
      faithful: names of quirks that stay as the script has them; the others are fixed.
      without: names of rules that are not asked.

    Raises:
      RulesError: a name is unknown, or a number out of range.
    """

    min_score: int = 1
    min_depth: int = 2
    max_depth: int = 5
    max_turn_words: int = 30
    max_word_characters: int = 30
    max_pair_words: int = 200
    bland_count: int = 1000
    bland_share: float = 0.9
    max_thread: int = 100_000
    all_comments: bool = False
    titles: bool = False
    offensive: frozenset[str] = frozenset()
    subreddits: frozenset[str] = frozenset()
    common_words: frozenset[str] = COMMON_WORDS
    faithful: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for what, names, known in (("quirk", self.faithful, QUIRKS), ("rule", self.without, RULES)):
            if unknown := sorted(set(names) - known.keys()):
                raise RulesError(f"no {what} is called {unknown[0]!r}; there are {', '.join(known)}")
        for field in (
            "min_depth",
            "max_depth",
            "max_turn_words",
            "max_word_characters",
            "max_pair_words",
            "max_thread",
        ):
            if getattr(self, field) < 1:
                raise RulesError(f"{field} is {getattr(self, field)}; it must be a whole number, at least 1")
        if self.max_depth + self.titles < self.min_depth:
            raise RulesError(f"max_depth is {self.max_depth}, below min_depth, {self.min_depth}: no path is left")
        if self.bland_count < 0 or not 0 < self.bland_share <= 1:
            raise RulesError(
                f"bland_count is {self.bland_count}, bland_share {self.bland_share}; from 0, and above 0 to 1"
            )

        if not self.common_words and self.fixes("common_words") and "common_words" not in self.without:
            raise RulesError("common_words holds no word: every reply would be skipped; name words, or drop the rule")

    @classmethod
    def as_the_script(cls, **changes) -> "Rules":
        """All quirks as microsoft/DialoGPT's script has them."""
        return cls(faithful=frozenset(QUIRKS), **changes)

    def fixes(self, quirk: str) -> bool:
        return quirk not in self.faithful

    @property
    def weighted(self) -> bool:
        """Whether the turns of a line have weights."""
        return not self.all_comments or self.fixes("all_comments")

    @property
    def asks_bland(self) -> bool:
        return self.fixes("bland") and "bland" not in self.without


# Of a comment by itself.


def is_deleted(text: str, author: str, rules: Rules) -> bool:
    """Whether a text is gone, or who wrote it."""
    if not rules.fixes("deleted"):
        return text == "[deleted]"
    plain = text.strip().lower()
    return plain in _GONE_TEXTS or plain.startswith("[ removed by reddit") or author.lower() in _GONE_AUTHORS


def is_quote(body: str) -> bool:
    """Whether a comment quotes, or may: the script takes every > for a quotation's mark."""
    return ">" in body or "&gt;" in body


def is_short(body: str) -> bool:
    """Whether a flattened comment has fewer than two words."""
    return len(body.split(maxsplit=2)) < 2


def why_no_comment(body: str, flat: str, author: str, rules: Rules) -> str | None:
    """The first rule of a comment by itself that says no."""
    if "deleted" not in rules.without and is_deleted(body, author, rules):
        return "deleted"
    if "quote" not in rules.without and is_quote(body):
        return "quote"
    if "short" not in rules.without and is_short(flat):
        return "short"
    return None


# Of a path: the place of a reply in its thread.


def is_bad_subreddit(subreddit: str, known: bool, rules: Rules) -> bool:
    """Whether a list is given and names the subreddit; where a list is given the script also skips what it cannot know."""
    return bool(rules.subreddits) and (subreddit in rules.subreddits or not (known or rules.fixes("submissions")))


def is_long_turn(flat: str, rules: Rules) -> bool:
    """Whether a flattened comment has too many words."""
    return "long_turn" not in rules.without and len(flat.split()) > rules.max_turn_words


# Of a pair: a reply and the turns before it, normalised.


def is_offensive(text: str, rules: Rules) -> bool:
    """Whether a text holds a word or phrase of the list, whole and in any case."""
    if not rules.offensive:
        return False
    low = text.lower()
    words = set(_WORD.findall(low))
    if not rules.offensive.isdisjoint(words):
        return True
    phrases = _by_first_word(rules.offensive)
    asked = (phrase for word in ("", *words) for phrase in phrases.get(word, ()) if phrase in low)
    return any(re.search(rf"(?<![a-z0-9_]){re.escape(phrase)}(?![a-z0-9_])", low) for phrase in asked)


@functools.lru_cache(maxsize=4)
def _by_first_word(entries: frozenset[str]) -> dict[str, list[str]]:
    """A list's phrases by their first word, which stands whole in every text that holds them; "" where they have none."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        if not _WORD.fullmatch(entry):
            word = _WORD.search(entry)
            found.setdefault(word[0] if word else "", []).append(entry)
    return found


def is_empty(words: Sequence[str], rules: Rules) -> bool:
    """Whether nothing is left of a reply; the script calls one word nothing, and counts the weight as one."""
    return len(words) <= (0 if rules.fixes("counting") else 1)


def has_long_word(words: Sequence[str], rules: Rules) -> bool:
    return any(len(word) > rules.max_word_characters for word in words)


def has_brackets(text: str, rules: Rules) -> bool:
    """Whether a text holds what may be markup: square brackets, and in the script round ones too."""
    return any(mark in text for mark in ("[]" if rules.fixes("brackets") else "[]()"))


def has_capitals(text: str) -> bool:
    """Whether a text holds five capitals on end."""
    return re.search("[A-Z]{5}", text) is not None


def has_repetitions(words: Sequence[str]) -> bool:
    """Whether a word is said three times on end."""
    return any(a == b == c for a, b, c in zip(words, words[1:], words[2:], strict=False))


def lacks_common_words(words: Sequence[str], rules: Rules) -> bool:
    """Whether none of the commonest words is said: it may not be English."""
    return rules.common_words.isdisjoint(word.lower() for word in words)


def is_no_target(text: str, rules: Rules) -> bool:
    """Whether a turn between the first and the last breaks a rule of replies."""
    words = text.split()
    asked = (
        ("empty_target", not words),
        ("long_word", has_long_word(words, rules)),
        ("brackets", rules.fixes("brackets") and has_brackets(text, rules)),
        ("repetitions", has_repetitions(words)),
        ("common_words", rules.fixes("common_words") and lacks_common_words(words, rules)),
    )
    return any(broken and name not in rules.without for name, broken in asked)


def weigh(turns: Sequence[str], rules: Rules) -> list[float]:
    """The weight of each turn of a line: 0 for what no model should learn to say, else 1.

    Example:
      >>> weigh(["Hi !", "You fool !", "Sorry ?"], Rules(offensive=frozenset({"fool"})))
      [1.0, 0.0, 1.0]
    """
    if rules.all_comments:
        return [0.0] * (len(turns) - 1) + [1.0]
    weights = [0.0 if "offensive" not in rules.without and is_offensive(turn, rules) else 1.0 for turn in turns]
    if rules.fixes("inner_targets"):
        for place, turn in enumerate(turns[1:-1], start=1):
            if is_no_target(turn, rules):
                weights[place] = 0.0
    return weights


def why_no_pair(turns: Sequence[str], weights: Sequence[float], rules: Rules) -> str | None:
    """The first rule of a pair that says no, in the script's order; `bland` is asked later, of the whole corpus."""
    *source, target = turns
    words, source_words = target.split(), [turn.split() for turn in source]
    count = sum(map(len, source_words)) + len(words)
    if not rules.fixes("counting"):
        words = [f"{weights[-1]:.1f}", *words] if rules.weighted else words
        count += (rules.weighted * len(turns)) + len(source) - 1
    both = " ".join(turns)
    asked = (
        ("offensive", rules.all_comments and is_offensive(target, rules)),
        ("empty_target", is_empty(words, rules)),
        ("long_word", has_long_word(words, rules)),
        ("long_pair", count > rules.max_pair_words),
        ("url", URL in both),
        ("brackets", has_brackets(target if rules.fixes("brackets") else both, rules)),
        ("capitals", has_capitals(both)),
        ("repetitions", has_repetitions(words)),
        ("common_words", rules.fixes("common_words") and lacks_common_words(words, rules)),
        ("empty_source", rules.fixes("empty_turns") and not all(source_words)),
        ("weightless", rules.fixes("weightless") and rules.weighted and not any(weights[1:])),
    )
    return next((name for name, broken in asked if broken and name not in rules.without), None)


def as_tsv(turns: Sequence[str], weights: Sequence[float] | None) -> str:
    """A line of Microsoft's TSV, without its end."""
    said = turns if weights is None else [f"{weight:.1f} {turn}" for weight, turn in zip(weights, turns, strict=True)]
    return f" {SEPARATOR} ".join(said[:-1]) + "\t" + said[-1]
