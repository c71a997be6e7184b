"""Replies with what is known of each, as values that show themselves: on one line, in a list, as a table in a notebook."""

import dataclasses
import html
import reprlib

import numpy as np

from dialogpt_jax.decoding.soundness import check_finite
from dialogpt_jax.text.tokenizer import Tokenizer

_LONGEST = 80  # characters of a text on one line
_MOST = 16  # candidates that are shown


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Candidate:
    """One of several replies.

    Attributes:
      text: the reply.
      tokens: int32, its ids, EOS included where it ended.
      logprobs: float32, the model's own log-probability of each.
      logprob: their sum.
      finished: it ended by itself.

    Example:
      >>> one, other = bot.candidates("Any plans for today?", n=2)
      >>> one.text == bot.reply("Any plans for today?")
      True
      >>> len(one.tokens) == len(one.logprobs)
      True
    """

    text: str
    tokens: np.ndarray
    logprobs: np.ndarray
    logprob: float
    finished: bool

    def __repr__(self) -> str:
        cut = "" if self.finished else ", cut"
        return f"Candidate({on_one_line(self.text)}, logprob {self.logprob:.2f}, {len(self.tokens)} tokens{cut})"


class Candidates(list[Candidate]):
    """A list of candidates that shows one a line, the first 16 of them; in a notebook it is a table."""

    def __repr__(self) -> str:
        more = [f"… {len(self) - _MOST} more"] if len(self) > _MOST else []
        return "[" + ",\n ".join([*map(repr, self[:_MOST]), *more]) + "]"

    def _repr_html_(self) -> str:
        head = "<tr><th></th><th>reply</th><th>log P</th><th>tokens</th><th>ended</th></tr>"
        rows = (
            f"<tr><td>{i}</td><td style='text-align:left'>{html.escape(c.text)}</td><td>{c.logprob:.2f}</td>"
            f"<td>{len(c.tokens)}</td><td>{'yes' if c.finished else 'cut'}</td></tr>"
            for i, c in enumerate(self[:_MOST])
        )
        more = f"<p>… {len(self) - _MOST} more</p>" if len(self) > _MOST else ""
        return f"<table>{head}{''.join(rows)}</table>{more}"


def candidate_of(
    tokenizer: Tokenizer, tokens: np.ndarray, logprobs: np.ndarray, length: int, finished: bool
) -> Candidate:
    """A reply as the decoding gives it, in slots of which `length` are its own, found sound.

    Raises:
      NonFiniteLogits: a log-probability is not finite.
    """
    tokens, logprobs = tokens[:length], logprobs[:length]
    check_finite(bool(np.isfinite(logprobs).all()))
    return Candidate(tokenizer.decode(tokens), tokens, logprobs, float(logprobs.sum()), bool(finished))


def on_one_line(text: str) -> str:
    """A text as its `repr`, the middle left out where it is long."""
    shortener = reprlib.Repr()
    shortener.maxstring = _LONGEST
    return shortener.repr(text)
