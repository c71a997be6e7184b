"""Replies with what is known of each, as values that show themselves: on one line, in a list, as a table in a notebook.

A reply that was drawn and one that was given and scored are the same kind of value. `pandas.DataFrame` makes a row of each.
"""

import dataclasses
import html
import math
import reprlib

import numpy as np

from dialogpt_jax.decoding.soundness import check_logprobs, check_possible
from dialogpt_jax.errors import counted
from dialogpt_jax.replies.token_colors import token_texts, tokens_as_html
from dialogpt_jax.text.tokenizer import Tokenizer

_LONGEST = 80  # characters of a text on one line
_MOST = 16  # candidates that are shown


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Candidate:
    """A reply, drawn by a model or scored by it.

    Attributes:
      text: the reply.
      tokens: int32, its ids, EOS included where it ended.
      logprobs: float32, the model's own log-probability of each.
      logprob: their sum, log P(reply | context).
      finished: it ended by itself.
      pmi: of a scored reply, what the context adds: log P(reply | context) − log P(reply), where P(reply) is after a lone
        EOS (Li et al. 2016). `None` of a drawn one.
      mean: of the log-probabilities, a token.
      perplexity: exp(−mean).
      pieces: what each token adds to the text; the last token of a character adds all of it. Empty where nobody knows.
      forwards, accepted: of a reply whose tokens were drafted: how often the model read drafts, and how many of these
        became tokens; (len(tokens) − 1) / forwards is how many tokens a forward gave. Else `None`.
      sense: of a reply that a sense head has read, how sensible it is, 0 to 1. Else `None`.

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
    pmi: float | None = None
    pieces: tuple[str, ...] = ()
    forwards: int | None = None
    accepted: int | None = None
    sense: float | None = None
    mean: float = dataclasses.field(init=False)  # fields, so that a table of pandas has them as columns
    perplexity: float = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        mean = self.logprob / len(self.tokens) if len(self.tokens) else math.nan
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "perplexity", float(np.exp(-mean)))

    def __repr__(self) -> str:
        pmi = "" if self.pmi is None else f"pmi {self.pmi:.2f}, "
        cut = "" if self.finished else ", cut"
        text, said = on_one_line(self.text), counted(len(self.tokens), "tokens")
        return f"Candidate({text}, logprob {self.logprob:.2f}, {pmi}{said}{cut})"

    def _repr_html_(self) -> str:
        """The text, each token on the colour of its log-probability, which shows where the mouse is; and the `repr`."""
        return f"<p>{tokens_as_html(self)}</p><small>{html.escape(repr(self))}</small>"


class Candidates(list[Candidate]):
    """A list of candidates that shows one a line, the first 16 of them; in a notebook it is a table."""

    def __repr__(self) -> str:
        more = [f"… {len(self) - _MOST} more"] if len(self) > _MOST else []
        return "[" + ",\n ".join([*map(repr, self[:_MOST]), *more]) + "]"

    def _repr_html_(self) -> str:
        scored = any(c.pmi is not None for c in self[:_MOST])
        head = f"<tr><th></th><th>reply</th><th>log P</th>{'<th>PMI</th>' * scored}<th>tokens</th><th>ended</th></tr>"
        rows = (
            f"<tr><td>{i}</td><td style='text-align:left'>{html.escape(c.text)}</td><td>{c.logprob:.2f}</td>"
            f"{('<td></td>' if c.pmi is None else f'<td>{c.pmi:.2f}</td>') * scored}"
            f"<td>{len(c.tokens)}</td><td>{'yes' if c.finished else 'cut'}</td></tr>"
            for i, c in enumerate(self[:_MOST])
        )
        more = f"<p>… {len(self) - _MOST} more</p>" if len(self) > _MOST else ""
        return f"<table>{head}{''.join(rows)}</table>{more}"


def candidate_of(
    tokenizer: Tokenizer,
    tokens: np.ndarray,
    logprobs: np.ndarray,
    length: int,
    finished: bool,
    forwards: int | None = None,
    accepted: int | None = None,
    sense: float | None = None,
) -> Candidate:
    """A reply as the decoding gives it, in slots of which `length` are its own, found sound.

    Raises:
      NonFiniteLogits: a log-probability is not finite.
      ValueError: no token was possible; a beam search then gives none.
    """
    check_possible(length > 0)
    tokens, logprobs = tokens[:length], logprobs[:length]
    check_logprobs(logprobs)
    text, pieces = tokenizer.decode(tokens), token_texts(tokenizer, tokens.tolist())
    drafted = {} if forwards is None or accepted is None else {"forwards": int(forwards), "accepted": int(accepted)}
    read = None if sense is None else float(sense)
    return Candidate(
        text, tokens, logprobs, float(logprobs.sum()), bool(finished), pieces=pieces, sense=read, **drafted
    )


def on_one_line(text: str) -> str:
    """A text as its `repr`, the middle left out where it is long."""
    shortener = reprlib.Repr()
    shortener.maxstring = _LONGEST
    return shortener.repr(text)
