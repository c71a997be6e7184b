"""The edge where a model becomes a bot: a directory, a name on the Hub or nothing in, a `Bot` out."""

import os
from pathlib import Path

from dialogpt_jax.arguments import as_path
from dialogpt_jax.chat.bot import Bot
from dialogpt_jax.text.tokenizer import Tokenizer
from dialogpt_jax.weights.directory import load_params
from dialogpt_jax.weights.hub import resolve


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    dtype: str | None = None,
    revision: str | None = None,
) -> Bot:
    """A bot from a model.

    Args:
      model: `None` for the small model that ships with the package; a model directory; or a name on the Hub, such as
        "microsoft/DialoGPT-medium".
      dtype: "float32" (the default, whatever the file holds, unless that is int8), "bfloat16", "float16", or "int8":
        weights of 8 bits, a quarter of the bytes to read for a token, and on CPU the fastest.
      revision: of a Hub repository: a branch, tag or commit.

    Example:
      >>> bot = dg.load()
      >>> bot.reply("Does money buy happiness?")
      '...'
    """
    if model is not None:
        as_path("model", model)
    folder = resolve(bundled_directory() if model is None else model, revision=revision)
    params, config = load_params(folder, dtype=dtype)
    tokenizer = Tokenizer.load(folder)
    try:
        return Bot(params, config, tokenizer)
    except ValueError as error:  # the weights and the tokenizer do not belong together
        raise ValueError(f"{folder}: {error}") from None


def bundled_directory() -> Path:
    """The model directory that ships with the package."""
    return Path(__file__).resolve().parents[1] / "bundled" / "model"
