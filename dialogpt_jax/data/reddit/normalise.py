"""The text of a comment to the text of a turn: words apart by single spaces, links as `__url__`, few characters left.

Source: microsoft/DialoGPT at 61194e4, reddit_extractor/src/reddit.py, `minimal_norm_sentence` and `gpt_norm_sentence`, and
NLTK's TweetTokenizer, which that calls. Of the tokenizer stands here what can match after all but some eighty characters
have become spaces: no e-mail, no tag, no emoji.
"""

import html
import re
from collections.abc import Collection

URL = "__url__"
SEPARATOR = "EOS"  # between the turns of a line of Microsoft's TSV

_LINK = "\ue000"  # stands for a link while the text is cleaned; the text itself cannot hold it any more
_KEPT = r"A-Za-z0-9()\[\]:,.!?'“” "
_NOT_KEPT, _NOT_KEPT_OR_LINK = re.compile(f"[^{_KEPT}]"), re.compile(f"[^{_KEPT}{_LINK}]")
_FLAT = str.maketrans({"\\": None, "\n": " ", "\r": " ", "\t": " "})
_APOSTROPHES = str.maketrans("’‘", "''")
_SHORTHAND = (("b/c", "because"), ("j/k", "just kidding"), ("w/o", "without"), ("w/", "with"))
_HANGING = re.compile(r"([^a-zA-Z0-9])\1{3,}")  # "!!!!!!" counts as "!!!"
_TOKEN = re.compile(
    r"""
    # A domain; or sentences without a space. Without going back (`++`): else each place in a run of digits takes all of it.
    (?-i:[A-Za-z0-9]++(?:\.[A-Za-z0-9]++){0,126}\.[A-Za-z]{2,13}\b)
    | (?:[01][ .)]*)?(?:\(?[0-9]{3}[ .)]*)?[0-9]{3}[ .)]*[0-9]{4}           # a telephone number
    | [:8][o']?[)\](\[dp:] | [)\](\[dp:][o']?[:8]                           # a smiley, or a reversed one
    | [a-z](?:[a-z]|['_])+[a-z] | [0-9]+[,.:][0-9]+ | [a-z0-9_]+            # a word, a number, letters and digits
    | \.(?:[ ]*\.)+ | \S                                                    # an ellipsis; anything else
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)


def flatten(text: str) -> str:
    """A comment on one line, without backslashes; what the lengths of turns are counted on."""
    return text.translate(_FLAT)


def tokenize(text: str) -> list[str]:
    """The tokens that NLTK's TweetTokenizer makes of a text that holds no other character than a cleaned one.

    Example:
      >>> tokenize("Hi! it's 3.50 ... :)")
      ['Hi', '!', "it's", '3.50', '...', ':)']
    """
    return _TOKEN.findall(_HANGING.sub(r"\1\1\1", text))


def normalise(text: str, faithful: Collection[str] = ()) -> str:
    """The text of a turn: its tokens, apart by single spaces.

    Args:
      text: a comment, flattened.
      faithful: names of quirks that stay as the reference has them; see `rules.QUIRKS`. Here: entities, apostrophes,
        url_word, separator.

    Example:
      >>> normalise("I don’t, see http://a.b/c #tag w/ R&amp;D")
      "I don't , see __url__ with R D"
    """
    if "entities" not in faithful and "&" in text:
        text = html.unescape(text)
    if "apostrophes" not in faithful:
        text = text.translate(_APOSTROPHES)
    by_word = "url_word" in faithful
    if not by_word:
        text = text.replace(_LINK, " ")
    link = URL if by_word else _LINK
    words = []
    for word in text.split():
        if word[0] == "#":
            continue
        start = word.lower().find("http")
        words.append(word if start < 0 else f"{word[:start]} {link}".strip())
    text = " ".join(words).replace("\\", "")
    if "/" in text:
        for short, long in _SHORTHAND:
            text = text.replace(short, long)
    if by_word:  # the capitals that stand for links meanwhile are also words that people write
        text = text.replace("__mention__", "MENTION").replace(URL, "URL")
        text = _NOT_KEPT.sub(" ", text).replace("MENTION", "__mention__").replace("URL", URL)
    else:
        text = _NOT_KEPT_OR_LINK.sub(" ", text).replace(_LINK, URL)
    tokens = " ".join(tokenize(text)).split()
    if "separator" not in faithful and SEPARATOR in tokens:
        tokens = [token.lower() if token == SEPARATOR else token for token in tokens]
    return " ".join(tokens)
