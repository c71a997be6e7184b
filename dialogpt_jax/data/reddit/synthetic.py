"""A dump that nobody wrote: a seed and a number of comments in; lines of comments and submissions, as dumps have them, out.

For tests and for the notebook. It has what dumps have: trees of all shapes, parents that come after their answers or in
another file, orphans, circles, duplicates, deletions, fields of several years, and something for every rule to skip.
"""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

from dialogpt_jax.data.reddit.records import as_bare_id

WORDS = """people think about games music films dogs cats coffee rain work school friends money time food books trains cars
rivers winter summer morning evening really never always maybe better worse new old small big good bad happy sad go went
make made take took see saw know knew want like love need try use find give tell ask feel leave call""".split()  # noqa: SIM905
COMMON = "the of and to a in is it you that he was for on are with as i his they".split()  # noqa: SIM905
BAD_WORD = "zounds"  # what the tests put on the list of offensive words
BAD_SUBREDDIT = "grumbling"
BLAND = "i do not know what you mean"
FIRST_ID = 36**5  # as long as real ones
_STRIDE, _BEGIN, _YEAR = 104_729, 1_325_376_000, 360 * 86_400  # a prime; from 2012-01-01, over a year
# Every so often a body is one of these; each is what a rule, or a fix, is there for.
PLANTED = (
    "[deleted]",
    "[removed]",
    "> said you\n\nand I say no to that",
    "Yes",
    f"you are a {BAD_WORD} and a fool",
    "☕ ☕ ☕",
    "that is a " + "lo" * 20 + "ng word to say",
    "look at http://example.com/a?b=c that is it",
    "see [this] for the rest of it",
    "it was (as they say) a good one",
    "STOP SHOUTING at the people",
    "no no no that is not it",
    "bonjour mes amis encore",
    "it’s the R&amp;D of w/o and b/c",
    "the URL of my EOS camera",
    "so " * 15 + "it is " * 10,
    BLAND,
)


def write_dumps(
    folder: str | os.PathLike[str], comments: int, *, seed: int = 0, files: int = 4, suffix: str = ".jsonl"
) -> list[Path]:
    """Writes comments, over so many files, and a file of submissions; their paths.

    Args:
      suffix: ".jsonl", ".jsonl.gz" or ".zst".
    """
    folder = Path(folder)
    names = [folder / f"RC_2012-{number + 1:02d}{suffix}" for number in range(files)] + [folder / f"RS_2012-01{suffix}"]
    opened = [_open(name) for name in names]
    try:
        rng = random.Random(seed)
        for line, kind in dump_lines(comments, seed=seed):
            # Mostly as time goes on, but a comment may stand in any file: threads cross them.
            opened[-1 if kind == "s" else rng.randrange(files)].write(line.encode() + b"\n")
    finally:
        for file in opened:
            file.close()
    return names


def _open(path: Path):
    if path.suffix == ".zst":
        import zstandard

        parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27, enable_ldm=True)
        return zstandard.open(path, "wb", cctx=zstandard.ZstdCompressor(compression_params=parameters))
    if path.suffix == ".gz":
        import gzip

        return gzip.GzipFile(path, "wb", compresslevel=1, mtime=0)
    return path.open("wb")


def dump_lines(comments: int, *, seed: int = 0) -> Iterator[tuple[str, str]]:
    """So many comments, and the submissions of their threads: (line, "c" or "s")."""
    rng = random.Random(seed)
    made = thread = 0
    while made < comments:
        size = min(comments - made, 1 + int(rng.paretovariate(0.9)) % 400)
        first, thread = made, thread + 1
        made += size
        lines = list(_thread(rng, FIRST_ID + thread, 2 * FIRST_ID + first, size))
        if rng.random() < 0.3:
            rng.shuffle(lines)  # answers before what they answer
        yield from lines


def _thread(rng: random.Random, thread: int, first: int, size: int) -> Iterator[tuple[str, str]]:
    name = as_bare_id(thread)
    subreddit = BAD_SUBREDDIT if rng.random() < 0.02 else rng.choice(("askme", "films", "music", "trains"))
    if rng.random() < 0.9:  # the others have no submission in the dump
        fields = {
            "id": name,
            "subreddit": subreddit,
            "title": _say(rng),
            "num_comments": size,
            "author": "ann",
            "permalink": f"/r/{subreddit}/comments/{name}/x/",
            "domain": f"self.{subreddit}",
        }
        yield json.dumps(fields), "s"
    for number in range(size):
        own = first + number
        chance = rng.random()
        parent = f"t3_{name}"
        if number and chance < 0.85:
            parent = f"t1_{as_bare_id(first + rng.randrange(max(0, number - 6), number))}"
        elif chance > 0.99:
            parent = f"t1_zzz{as_bare_id(own)}"  # an orphan
        elif chance > 0.98 and number + 1 < size:
            parent = f"t1_{as_bare_id(own + 1)}"  # may close a circle
        yield _comment(rng, own, parent, str(name), thread, subreddit, _BEGIN + own * _STRIDE % _YEAR), "c"
        if rng.random() < 0.005:
            yield _comment(rng, own, parent, str(name), thread, subreddit, _BEGIN), "c"  # again


def _comment(rng: random.Random, own: int, parent: str, name: str, thread: int, subreddit: str, when: int) -> str:
    body = rng.choice(PLANTED) if rng.random() < 0.15 else _say(rng)
    fields: dict[str, object] = {
        "id": as_bare_id(own),
        "parent_id": parent,
        "link_id": f"t3_{name}",
        "subreddit": subreddit,
        "body": body,
        "score": rng.choice((-3, 0, 1, 1, 2, 5, 40)),
        "created_utc": when,
        "author": "[deleted]" if rng.random() < 0.02 else rng.choice(("ann", "bob", "cy", "dee")),
    }
    year = rng.random()
    if year < 0.1:  # texts where others have numbers
        fields |= {"score": str(fields["score"]), "created_utc": str(when), "name": f"t1_{fields['id']}"}
    elif year < 0.2:  # numbers where others have texts
        fields |= {"id": own, "link_id": thread}
        if parent.startswith("t3_"):
            fields["parent_id"] = None
        fields["permalink"] = f"/r/{subreddit}/comments/{name}/x/{as_bare_id(own)}/"
    elif year < 0.22:
        fields |= {"score": None, "ups": 3}
    fields |= {"edited": False, "gilded": 0, "distinguished": None, "stickied": False, "controversiality": 0}
    return json.dumps(fields)


def _say(rng: random.Random) -> str:
    words = [rng.choice(COMMON) if rng.random() < 0.4 else rng.choice(WORDS) for _ in range(rng.randint(2, 14))]
    return " ".join(words).capitalize() + rng.choice((".", "!", "?", "", ":)", " ..."))
