"""A text flows in; the words that the DSTC-7 evaluation counts come out, as one text with spaces between them.

Lower case; a word from `http` on becomes `__url__`, and `[text] ( __url__ )` its text; every sign but letters, digits
and `( ) : , . ! ? " '` becomes a space; words and signs stand apart; `don't` is `do n't`, `it's` is `it 's`, `can't` is
`can n't` and `won't` is `will n't`. The evaluation's script leaves the splitting to nltk's TweetTokenizer; these rules
are our own, without nltk: they differ on bare web addresses (`foo.com` is `foo . com`) and on telephone numbers, in
about 1 line of 2,000 of Reddit's.
"""

import re

_LINK = re.compile(r"\[([^\]]*)\] \( *__url__ *\)")
_FOREIGN = re.compile(r"[^a-z0-9():,.!?\"'\0]")
_LONG_RUN = re.compile(r"([^a-z0-9])\1{3,}")
_WORDS = re.compile(
    r"__url__"
    r"|[:8][o']?[()dp:]|[()dp:][o']?[:8]"  # faces of the signs that are left: :) :( :d (: 8)
    r"|[a-z](?:[a-z]|')+[a-z]"  # a word with apostrophes inside
    r"|[0-9]+[,.:][0-9]+"  # 3.5 and 10:30
    r"|[a-z0-9]+"
    r"|\.(?:\s*\.)+"
    r"|\S"
)
_SHORTENED = re.compile(r"('s|'m|'re|n't|'ll|'ve|'d|'em) ")


def clean(text: str) -> str:
    """The text as the DSTC-7 evaluation's option `--clean` counts it.

    `I don't know:). See https://a.b` becomes `i do n't know :) . see __url__`.
    """
    words = []
    for word in text.lower().replace("\0", " ").split():
        before, found, _ = word.partition("http")
        words += [before, "__url__"] if found else [word]
    text = _LINK.sub(r"\1", " ".join(" ".join(words).split()))
    text = _FOREIGN.sub(" ", text.replace("__url__", "\0")).replace("\0", "__url__")
    text = _LONG_RUN.sub(r"\1\1\1", text)
    text = f" {' '.join(_WORDS.findall(text))} ".replace(" won't ", " will n't ").replace(" can't ", " can n't ")
    return " ".join(_SHORTENED.sub(r" \1 ", text).split())
