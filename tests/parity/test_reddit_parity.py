"""Turns against the reference's way to normalise them: its steps one by one here, and its tokenizer, NLTK's."""

import random
import re

import pytest

from dialogpt_jax.data.reddit.normalise import normalise
from dialogpt_jax.data.reddit.rules import QUIRKS

pytestmark = pytest.mark.parity
PIECES = """hello I don't it's :) :-( 8) d: ... 1,000 3.5 (555) 1 800 555 1234 google.com a.b.c Hi.There http://x.y/z
seehttps://a #tag w/o w/ b/c j/k URL CURL MENTION __url__ __mention__ [link](http://a) !!!!!! ?! “q” ’ é ☕ \\ EOS x_y ''
'tis o' 8 D P : ( ) [ ] . , 0 12345678 &amp; _ aaa1 1aaa o'clock Ünï 10:30 4/5 $5 -- -""".split()  # noqa: SIM905


def as_the_script(text, tokenize):
    """What reddit_extractor/src/reddit.py makes of a flattened comment."""
    words = []
    for word in text.split():
        if not word.startswith("#"):
            place = word.lower().find("http")
            words.append((word if place < 0 else word[:place] + " __url__").strip())
    text = " ".join(words).replace("\\", "")
    for short, long in (("b/c", "because"), ("j/k", "just kidding"), ("w/o", "without"), ("w/", "with")):
        text = text.replace(short, long)
    text = text.replace("__mention__", "MENTION").replace("__url__", "URL")
    text = re.sub(r"[^A-Za-z0-9()\[\]:,.!?'“” ]", " ", text)
    text = text.replace("MENTION", "__mention__").replace("URL", "__url__")
    return " ".join(" ".join(tokenize(text)).split())


def test_normalising_as_the_script():
    tokenize = pytest.importorskip("nltk.tokenize").TweetTokenizer(preserve_case=True).tokenize
    rng = random.Random(0)
    for _ in range(30_000):
        if rng.random() < 0.8:
            text = "".join(rng.choice(PIECES) + rng.choice(["", " ", " "]) for _ in range(rng.randint(1, 8)))
        else:
            text = "".join(rng.choice("abDPo8:.)([]'_ 0123 ,!?HTp/h“”") for _ in range(rng.randint(1, 20)))
        assert normalise(text, QUIRKS) == as_the_script(text, tokenize), text
