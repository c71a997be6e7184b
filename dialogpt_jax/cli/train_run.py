"""What `dialogpt train` hands to `fit`, whatever is trained: a model, examples, an objective and what is measured."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dialogpt_jax.run.options import TrainOptions


class TrainRun(NamedTuple):
    """A run before its first step.

    Attributes:
      params, config, tokenizer: the model it begins from.
      examples, options, objective, teachers, evaluate, sample: as `fit` takes them.
      told: a line on what is learned or measured; "" is none.
      use: what the exported model is for, with its directory as `{}`.
    """

    params: Any
    config: Any
    tokenizer: Any
    examples: Sequence[Any]
    options: TrainOptions
    objective: Any
    use: str
    told: str = ""
    teachers: Sequence[Any] = ()
    evaluate: Callable[[Any], dict[str, float]] | None = None
    sample: Callable[[Any], list[str]] | None = None
