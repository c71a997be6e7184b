"""The edge where a model becomes a bot: a directory, a name on the Hub or nothing in, a `Bot` out."""

import difflib
import os
from pathlib import Path
from typing import Any

from dialogpt_jax.arguments import as_path, as_whole_number, shown
from dialogpt_jax.chat.bot import Bot
from dialogpt_jax.decoding.speculative import DEFAULT_DRAFTS, MOST_DRAFTS, Draft
from dialogpt_jax.errors import one_line
from dialogpt_jax.ranking.dialogrpt import load_ranker
from dialogpt_jax.ranking.safety import Safety
from dialogpt_jax.ranking.sense import SenseHead, bundled_sense
from dialogpt_jax.replies.language_model import LanguageModel, draft_by
from dialogpt_jax.replies.loading import load_language_model
from dialogpt_jax.weights.hub import HubError

LOOKUP = "lookup"


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    reverse: str | os.PathLike[str] | None = None,
    ranker: str | os.PathLike[str] | None = None,
    safety: Safety | None = None,
    sense: str | os.PathLike[str] | None = None,
    draft: str | os.PathLike[str] | LanguageModel | None = None,
    draft_tokens: int = DEFAULT_DRAFTS,
) -> Bot:
    """A bot from a model.

    Args:
      model: `None` for the small model that ships with the package; a model directory; or a name on the Hub, such as
        "microsoft/DialoGPT-medium".
      dtype: "float32" (the default, whatever the file holds, unless that is int8), "bfloat16", "float16", or "int8":
        weights of 8 bits, a quarter of the bytes to read for a token, and on CPU the fastest.
      revision: of a Hub repository: a branch, tag or commit.
      reverse: a backward model for `rank="mmi"`, with the same vocabulary. The bundled one is there without it, for the
        bundled model and all that go on from it.
      ranker: a model that scores replies, for `rank="rpt"`; as for `load_ranker`.
      safety: what the bot must not say.
      sense: a sense head's file, for `rank="sense"`, trained on this model. The bundled model's is there without it.
      draft: speculative decoding: one forward of the model gives several tokens, the same as without. "lookup" takes what
        followed the last few tokens the last time that they were said; a smaller model with the same vocabulary, as for
        `model` or a `LanguageModel`, says what may come. For replies, candidates, chats and streams; not with beams, a
        rank or `penalty_alpha`.
      draft_tokens: so many are drafted for each forward, 1 to 15.

    Example:
      >>> bot = dg.load()
      >>> bot.reply("Does money buy happiness?")
      '...'
    """
    as_whole_number("draft_tokens", draft_tokens, least=1, most=MOST_DRAFTS)
    if draft is None and draft_tokens != DEFAULT_DRAFTS:
        raise ValueError(f"draft_tokens is {draft_tokens} and draft is not given; give draft, such as 'lookup', too")
    forward = load_language_model(bundled_directory() if model is None else model, dtype=dtype, revision=revision)
    backward = None if reverse is None else load_language_model(reverse, dtype=dtype)
    scorer = None if ranker is None else load_ranker(ranker, dtype=dtype)
    head = SenseHead.load(sense) if sense is not None else bundled_sense() if model is None else None
    drafts = None if draft is None else _draft_of(forward, draft, draft_tokens, dtype)
    return Bot(forward.params, forward.config, forward.tokenizer, backward, scorer, safety, head, draft=drafts)


def _draft_of(model: LanguageModel, draft: Any, tokens: int, dtype: str | None) -> Draft:
    if isinstance(draft, str) and draft == LOOKUP:
        return Draft(tokens=tokens)
    if isinstance(draft, str | os.PathLike):
        as_path("draft", draft)
        try:
            draft = load_language_model(draft, dtype=dtype)
        except (HubError, FileNotFoundError) as error:
            if not difflib.get_close_matches(os.fspath(draft).strip().lower(), [LOOKUP], cutoff=0.75):
                raise
            raise HubError(
                f"draft is {shown(draft)}; did you mean {LOOKUP!r}? As a model's name: {one_line(error)}"
            ) from None
    return draft_by(model, draft, tokens)


def bundled_directory() -> Path:
    """The model directory that ships with the package."""
    return Path(__file__).resolve().parents[1] / "bundled" / "model"
