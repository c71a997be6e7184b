"""What disqualifies a reply, whatever its score: texts in, flags out.

A backward model gives its best score to a reply that is degenerate: one that copies what was said before, or says one
thing again and again. So such a reply stands behind every other one, by how grave its gravest flag is.
"""

import math
import re
from collections.abc import Sequence

CUT, REPEATS, COPIES, DUPLICATE, EMPTY, UNSAFE, NOT_FINITE = (
    "cut",
    "repeats itself",
    "copies what was said",
    "duplicate",
    "empty",
    "unsafe",
    "not finite",
)
GRAVITY = {CUT: 1, REPEATS: 2, COPIES: 2, DUPLICATE: 3, EMPTY: 4, UNSAFE: 5, NOT_FINITE: 6}
NO_REPLY = GRAVITY[UNSAFE]  # from here on, a reply is never given

_WORD = re.compile(r"\w+(?:['’]\w+)*")
# (words, times): so many words in a row, said so many times one after the other
_LOOPS = ((1, 4), (2, 3), (3, 3))
_SAID_TWICE = 4  # words in a row that stand anywhere a second time
_COPIED_WORDS, _COPIED_PART = 5, 0.6  # words in a row from the turn before, and what part of the reply they are


def words_of(text: str) -> list[str]:
    """A text's words in lower case; a text that has none is its own only word."""
    return _WORD.findall(text.lower()) or text.split()


def is_flag(word: str) -> bool:
    """Whether `gravity` knows it."""
    return word.partition(":")[0] in GRAVITY


def gravity(flags: Sequence[str]) -> int:
    """How grave the gravest of the flags is, 0 for none."""
    return max((GRAVITY[flag.partition(":")[0]] for flag in flags), default=0)


def flags_of(texts: Sequence[str], turns: Sequence[str], *, finished: Sequence[bool]) -> list[tuple[str, ...]]:
    """The flags of each reply.

    Args:
      texts: the replies to one dialogue.
      turns: the dialogue.
      finished: whether each ended by itself.

    "a cat and a cat and a cat" repeats itself; "I like it." after a turn "I like it" copies; the second of two that have
    the same words is a duplicate.
    """
    said = [words_of(turn) for turn in turns]
    seen: set[tuple[str, ...]] = set()
    found = []
    for text, ended in zip(texts, finished, strict=True):
        words, flags = words_of(text), []
        if not words:
            flags.append(EMPTY)
        elif tuple(words) in seen:
            flags.append(DUPLICATE)
        seen.add(tuple(words))
        if repeats(words):
            flags.append(REPEATS)
        if words and (words in said or (said and copies(words, said[-1]))):
            flags.append(COPIES)
        if not ended:
            flags.append(CUT)
        found.append(tuple(flags))
    return found


def repeats(words: Sequence[str]) -> bool:
    """Whether a reply goes round in circles."""
    runs = [tuple(words[i : i + _SAID_TWICE]) for i in range(len(words) - _SAID_TWICE + 1)]
    if len(set(runs)) < len(runs):
        return True
    return any(
        list(words[i : i + size]) * times == list(words[i : i + size * times])
        for size, times in _LOOPS
        for i in range(len(words) - size * times + 1)
    )


def copies(words: Sequence[str], before: Sequence[str]) -> bool:
    """Whether most of a reply is one piece of the turn before it."""
    size = max(_COPIED_WORDS, math.ceil(_COPIED_PART * len(words)))
    pieces = {tuple(before[i : i + size]) for i in range(len(before) - size + 1)}
    return any(tuple(words[i : i + size]) in pieces for i in range(len(words) - size + 1))


def repetition(words: Sequence[str], order: int = 2) -> float:
    """1 − different pairs of words / pairs of words; 0 for a reply too short to repeat any."""
    runs = [tuple(words[i : i + order]) for i in range(len(words) - order + 1)]
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0
