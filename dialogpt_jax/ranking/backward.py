"""The backward model that ranks a bot's replies: a bot's own, or the one that ships with the package."""

import functools
from pathlib import Path

from dialogpt_jax.int8 import dtype_name
from dialogpt_jax.replies.language_model import LanguageModel, same_vocabulary
from dialogpt_jax.replies.loading import load_language_model


def backward_for(model: LanguageModel, reverse: LanguageModel | None) -> LanguageModel:
    """The backward model for the replies of `model`: `reverse`, or the bundled one where the vocabulary is its own.

    Raises:
      ValueError: there is none for this vocabulary.
    """
    if reverse is not None:
        return reverse
    if has_backward(model, None):
        return bundled_reverse(dtype_name(model.params))
    raise ValueError(
        "ranking by mmi needs a backward model with this model's vocabulary: give one, `load(…, reverse=DIR)` or "
        "`--reverse DIR`; Microsoft's for medium is small_reverse.pkl, which `dialogpt convert` reads"
    )


def has_backward(model: LanguageModel, reverse: LanguageModel | None) -> bool:
    """Whether there is one."""
    return reverse is not None or same_vocabulary(model, bundled_reverse(dtype_name(model.params)))


def check_backward(model: LanguageModel, reverse: LanguageModel) -> None:
    """Whether a backward model reads the ids of a forward one.

    Raises:
      TypeError: it is no model.
      ValueError: its vocabulary is another.
    """
    if not isinstance(reverse, LanguageModel):
        raise TypeError(f"reverse is {type(reverse).__name__}; give a model's directory to `load`, or a LanguageModel")
    if not same_vocabulary(model, reverse):
        sizes = f"{reverse.tokenizer.vocab_size:,} tokens, the model {model.tokenizer.vocab_size:,}"
        raise ValueError(
            f"the backward model has another vocabulary ({sizes}); give one that was made with the model's"
        )


@functools.lru_cache(maxsize=2)
def bundled_reverse(dtype: str) -> LanguageModel:
    """The backward model that ships with the package."""
    return load_language_model(Path(__file__).resolve().parents[1] / "bundled" / "reverse", dtype=dtype)
