"""Five million comments: bounded memory, and the same bytes from one process, from two, and from a run that is killed."""

import os
import random
import time

import pytest
import reddit_runs as runs

from dialogpt_jax.data.reddit.synthetic import BAD_SUBREDDIT, BAD_WORD, write_dumps

COMMENTS = int(os.environ.get("DIALOGPT_TESTS_COMMENTS", 5_000_000))
MOST_BYTES = 1_000_000_000


@pytest.mark.slow
def test_five_million_comments(tmp_path):
    pytest.importorskip("zstandard")
    dumps = write_dumps(tmp_path, COMMENTS, files=32, suffix=".zst")
    for name, entry in (("words", BAD_WORD), ("subreddits", BAD_SUBREDDIT)):
        (tmp_path / name).write_text(f"{entry}\n")
    lists = ("--offensive", tmp_path / "words", "--subreddits", tmp_path / "subreddits", "--memory", 64)
    found = []
    for workers in (1, 2):
        out = tmp_path / f"of-{workers}"
        said, most, seconds = runs.run(*dumps, out, *lists, "--workers", workers)
        print(f"{workers} processes: {seconds:.0f} s, {most / 1e6:.0f} MB\n{said}", flush=True)
        assert most < MOST_BYTES
        found.append(runs.digests(out))
    assert found[0] == found[1]
    assert len(found[0]) > 2  # parts, and the statistics

    out, rng, kills = tmp_path / "killed", random.Random(0), 0
    whole = seconds  # of the run with two processes
    while kills < int(os.environ.get("DIALOGPT_TESTS_KILLS", 30)):
        end = time.monotonic() + rng.uniform(0.02, 0.25) * whole
        if not runs.kill_when(lambda end=end: time.monotonic() > end, *dumps, out, *lists, "--workers", 2):
            break
        kills += 1
    runs.run(*dumps, out, *lists, "--workers", 2)  # to its end, or of a corpus that is finished
    print(f"killed {kills} times")
    assert kills > 1
    assert runs.digests(out) == found[0]
