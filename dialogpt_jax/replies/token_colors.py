"""A reply's tokens by how probable each was: ids to pieces of text, pieces to levels that have a colour, levels to HTML.

tokens ─token_texts→ "I", " am", " fine"      logprobs ─levels→ 0, 1, 3      ─tokens_as_html→ <span style=…>I</span>…
"""

import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from dialogpt_jax.text.tokenizer import Tokenizer

END = "∎"  # stands for the token that ends a reply, which has no text


class Level(NamedTuple):
    """How probable a token is, at least; its colour on a terminal, and behind it on a page."""

    least: float
    on_terminal: str
    on_page: str


LEVELS = (
    Level(0.5, "green", "#c8e6c9"),
    Level(0.1, "cyan", "#b3e5fc"),
    Level(0.01, "yellow", "#ffe0b2"),
    Level(0.0, "red", "#ffcdd2"),
)


class Span(NamedTuple):
    """A piece of a reply's text, and the log-probability of the token that says it."""

    text: str
    logprob: float

    @property
    def level(self) -> Level:
        probability = math.exp(min(self.logprob, 0.0))
        return next((level for level in LEVELS if probability >= level.least), LEVELS[-1])


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, ...]:
    """What each id adds to the text; a character of several ids comes whole with its last."""
    pieces, held = [], b""
    for number in ids:
        held += tokenizer.token_bytes(number)
        try:
            piece, held = held.decode(), b""
        except UnicodeDecodeError as error:
            whole = error.reason != "unexpected end of data"  # it can never become a character
            piece, held = (held.decode(errors="replace"), b"") if whole else ("", held)
        pieces.append(piece)
    if held:  # the reply is cut within a character
        pieces[-1] += held.decode(errors="replace")
    return tuple(pieces)


def spans_of(candidate: Any) -> list[Span]:
    """The pieces of a `Candidate` with their log-probabilities; of a character of several tokens, their sum."""
    spans, waiting = [], 0.0
    for piece, logprob in zip(candidate.pieces, candidate.logprobs.tolist(), strict=True):
        waiting += logprob
        if piece:
            spans.append(Span(piece, waiting))
            waiting = 0.0
    if candidate.finished and candidate.pieces and not candidate.pieces[-1]:
        spans.append(Span(END, candidate.logprobs.tolist()[-1]))
    return spans


def tokens_as_html(candidate: Any) -> str:
    """A candidate's text, each token on the colour of its log-probability; plain text where its pieces are not known."""
    if not candidate.pieces:
        return html.escape(candidate.text)
    return "".join(
        f"<span style='background:{span.level.on_page};color:#222' title='{span.logprob:.2f}'>"
        f"{html.escape(span.text)}</span>"
        for span in spans_of(candidate)
    )
