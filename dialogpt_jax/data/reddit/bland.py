"""Which replies are bland: the targets of the whole corpus in; the word triples said most often, and who holds them, out.

The paper leaves out replies of whose trigrams 90 % are seen more than 1,000 times. That is asked of the whole corpus, so
it comes last: each partition counts the triples of its targets (sorted hashes and counts, a file), the sums over all
partitions are made a range of hashes at a time, in bounded memory, and what is above the limit is a short list. A triple
goes by 64 bits; that two among 10⁹ share them happens once in some 40 corpora.
"""

import functools
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

COUNTS = np.dtype([("triple", "<u8"), ("count", "<u8")])
_MASK = (1 << 64) - 1
_ODD = (
    0x9E3779B97F4A7C15,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
)  # any three odd numbers: the places of a triple differ


@functools.lru_cache(maxsize=200_000)
def _hash_word(word: str) -> tuple[int, int, int]:
    """A word's share of a triple's hash, as its first, second and third word."""
    number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    return tuple(number * odd & _MASK for odd in _ODD)  # type: ignore[return-value]


def triples(text: str) -> list[int]:
    """The hashes of a normalised text's word triples, in any case; none of fewer than three words."""
    shares = [_hash_word(word) for word in text.lower().split()]
    return [(a[0] + b[1] + c[2]) & _MASK for a, b, c in zip(shares, shares[1:], shares[2:], strict=False)]


def targets_of(turns: Sequence[str], weights: Sequence[float]) -> list[str]:
    """The turns of a line that are targets."""
    return [turn for turn, weight in zip(turns[1:], weights[1:], strict=True) if weight]


def count_triples(hashes: Sequence[int] | np.ndarray) -> np.ndarray:
    """How often each hash stands in a list: `COUNTS`, sorted by hash."""
    found, counts = np.unique(np.asarray(hashes, np.uint64), return_counts=True)
    table = np.empty(len(found), COUNTS)
    table["triple"], table["count"] = found, counts
    return table


def add_counts(tables: Iterable[np.ndarray]) -> np.ndarray:
    """The sum of tables of counts, sorted by hash."""
    together = np.concatenate([np.empty(0, COUNTS), *tables])
    together = together[np.argsort(together["triple"], kind="stable")]
    starts = np.flatnonzero(np.diff(together["triple"], prepend=together["triple"][:1] ^ np.uint64(1)))
    table = together[starts].copy()
    if len(table):
        table["count"] = np.add.reduceat(together["count"], starts)
    return table


def said_often(tables: Sequence[np.ndarray], limit: int, *, rows: int = 4_000_000) -> np.ndarray:
    """The hashes whose counts in all tables together are above a limit, sorted.

    Args:
      tables: of counts; may lie on disk.
      rows: about how many rows of all tables are in memory at once.
    """
    ranges = max(1, -(-sum(map(len, tables)) // rows))
    edges = [number * (1 << 64) // ranges for number in range(ranges)]
    found = []
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        parts = []
        for table in tables:
            first = np.searchsorted(table["triple"], np.uint64(low))
            last = len(table) if high is None else np.searchsorted(table["triple"], np.uint64(high))
            parts.append(np.asarray(table[first:last]))
        together = add_counts(parts)
        found.append(together["triple"][together["count"] > limit])
    return np.concatenate(found)


def is_bland(text: str, often: frozenset[int] | set[int], share: float) -> bool:
    """Whether so large a share of a text's triples is said often; a text of fewer than three words cannot be judged."""
    held = triples(text)
    return bool(held) and sum(triple in often for triple in held) >= share * len(held)


def without_bland(
    turns: Sequence[str], weights: Sequence[float], often: frozenset[int] | set[int], share: float, *, only_last: bool
) -> list[float] | None:
    """The weights of a line, 0 for bland targets; None where that leaves no target.

    Args:
      only_last: whether the last turn is the line's only target.
    """
    places = [len(turns) - 1] if only_last else range(1, len(turns))
    new = list(weights)
    for place in places:
        if weights[place] and is_bland(turns[place], often, share):
            new[place] = 0.0
    if new != list(weights) and not any(new[1:]):
        return None
    return new
