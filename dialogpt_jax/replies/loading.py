"""The edge where files become a model with its tokenizer."""

import os

from dialogpt_jax.arguments import as_path
from dialogpt_jax.replies.language_model import LanguageModel
from dialogpt_jax.text.tokenizer import Tokenizer
from dialogpt_jax.weights.directory import load_params
from dialogpt_jax.weights.hub import resolve


def load_language_model(
    model: str | os.PathLike[str], *, dtype: str | None = None, revision: str | None = None
) -> LanguageModel:
    """A model directory, or a name on the Hub, as a model with its tokenizer; arguments as for `dialogpt_jax.load`."""
    as_path("model", model)  # found sound; it stays what it is, for a name on the Hub is no path
    folder = resolve(model, revision=revision)
    params, config = load_params(folder, dtype=dtype)
    tokenizer = Tokenizer.load(folder)
    try:
        return LanguageModel(params, config, tokenizer)
    except ValueError as error:  # the weights and the tokenizer do not belong together
        raise ValueError(f"{folder}: {error}") from None
