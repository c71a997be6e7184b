"""The edge where a model becomes a bot: a directory, a name on the Hub or nothing in, a `Bot` out."""

import os
from pathlib import Path

from dialogpt_jax.chat.bot import Bot
from dialogpt_jax.ranking.dialogrpt import load_ranker
from dialogpt_jax.ranking.safety import Safety
from dialogpt_jax.replies.loading import load_language_model


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    reverse: str | os.PathLike[str] | None = None,
    ranker: str | os.PathLike[str] | None = None,
    safety: Safety | None = None,
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

    Example:
      >>> bot = dg.load()
      >>> bot.reply("Does money buy happiness?")
      '...'
    """
    forward = load_language_model(bundled_directory() if model is None else model, dtype=dtype, revision=revision)
    backward = None if reverse is None else load_language_model(reverse, dtype=dtype)
    scorer = None if ranker is None else load_ranker(ranker, dtype=dtype)
    return Bot(forward.params, forward.config, forward.tokenizer, backward, scorer, safety)


def bundled_directory() -> Path:
    """The model directory that ships with the package."""
    return Path(__file__).resolve().parents[1] / "bundled" / "model"
