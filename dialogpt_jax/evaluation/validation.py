"""What a training run measures and shows of its model: held-out dialogues and prompts in; functions for `fit` out."""

from collections.abc import Callable, Sequence

import numpy as np

from dialogpt_jax.chat.bot import Bot
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.evaluation.perplexity import measure_dialogues
from dialogpt_jax.model import Params
from dialogpt_jax.text.tokenizer import Tokenizer


def make_evaluation(
    config: GPT2Config, tokenizer: Tokenizer, dialogues: Sequence[Sequence[str]]
) -> Callable[[Params], dict[str, float]]:
    """Parameters to what every turn after the first of the dialogues costs, in float32.

    Returns:
      A function to `valid_loss` (nats per token), `valid_perplexity` (its exponential: per token),
      `valid_sample_perplexity` (the paper's: the exponential of the mean over *dialogues* of their mean loss), and
      `valid_bits_per_byte` (of text, so that models with other tokenizers can be compared).

    Raises:
      ValueError: no dialogue has a second turn.
    """
    dialogues = [dialogue for dialogue in dialogues if len(dialogue) > 1]
    if not dialogues:
        raise ValueError("no dialogue to evaluate on has a second turn")

    def evaluate(params: Params) -> dict[str, float]:
        spent = measure_dialogues(params, config, tokenizer, dialogues)
        nats, tokens, num_bytes = (float(x_D.sum()) for x_D in spent)
        return {
            "valid_loss": nats / tokens,
            "valid_perplexity": float(np.exp(nats / tokens)),
            "valid_sample_perplexity": float(np.exp((spent.nats_D / spent.tokens_D).mean())),
            "valid_bits_per_byte": nats / np.log(2) / num_bytes,
        }

    return evaluate


def make_sampling(
    config: GPT2Config, tokenizer: Tokenizer, prompts: Sequence[str], *, seed: int = 0
) -> Callable[[Params], list[str]]:
    """Parameters to a line for each prompt: what the model replies."""

    def sample(params: Params) -> list[str]:
        replies = Bot(params, config, tokenizer).replies([[prompt] for prompt in prompts], seed=seed)
        return [f"{prompt} → {reply}" for prompt, reply in zip(prompts, replies, strict=True)]

    return sample
