"""What a training run is told: numbers and names in; the optimiser, the planner of its batches and its identity out."""

import dataclasses
from typing import Any

import jax
import optax

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import Buckets, Planner
from dialogpt_jax.training.optim import make_optimizer
from dialogpt_jax.training.recipes import Recipe
from dialogpt_jax.training.schedules import make_schedule
from dialogpt_jax.weights.dtypes import parse_dtype

MOST = 3.4e38  # float32's end


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """A training run, but for its data, its model and where it runs.

    Attributes:
      steps: of the optimiser.
      batch_size: examples of the full length in a step, over all devices and parts; a shorter bucket has more rows.
      accumulate: parts that a batch is computed in, one after the other: less memory, the same result.
      learning_rate: the schedule's peak; noam and noamwd scale it (see `schedules.py`).
      warmup: steps to the peak.
      schedule: constant, linear, cosine, noam, noamwd or trapezoid.
      decay: steps of a trapezoid's fall, or between noamwd's halvings.
      optimizer: adamw or muon.
      weight_decay, b2, clip: see `optim.py`; a clip of 0 is none.
      dropout: everywhere in the model; `None` is what its config says.
      dtype: of the products; parameters and the optimiser are float32 always.
      seed: of the order of the data and of dropout.
      max_length: of a row in tokens; `None`: that of prepared data, or of the longest example, up to a multiple of 8.
      buckets: lengths of batches, each a program to compile; 1 pads every example to the longest.
      checkpoint_blocks: compute the inside of every block twice, and keep less.
      recipe: the paper's quirks; its optimiser and its batches replace those above, with these numbers.
      log_every, evaluate_every, save_every: in steps; 0 is never (the last step does all three).
      keep: newest checkpoints that stay; the best one stays too.
    """

    steps: int
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 1e-4
    warmup: int = 0
    schedule: str = "linear"
    decay: int | None = None
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    b2: float = 0.999
    clip: float = 1.0
    dropout: float | None = None
    dtype: str = "float32"
    seed: int = 0
    max_length: int | None = None
    buckets: int = 8
    checkpoint_blocks: bool = False
    recipe: Recipe | None = None
    log_every: int = 10
    evaluate_every: int = 0
    save_every: int = 0
    keep: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "buckets", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("learning_rate", "warmup", "weight_decay", "clip", "log_every", "evaluate_every", "save_every"):
            if not 0 <= getattr(self, name) <= MOST:  # NaN neither
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a finite number from 0")
        if self.steps >= 2**31:
            raise ValueError(f"steps is {self.steps}; they are counted up to 2^31 − 1")
        if not 0 <= self.b2 < 1:
            raise ValueError(f"b2 is {self.b2}; it is a share from 0 to below 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it must be from 0 to 2^32 − 1")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length is {self.max_length}; an example has at least 2 tokens")
        if self.decay is not None and self.decay < 1:
            raise ValueError(f"decay is {self.decay}; it must be at least 1 step")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it is a share from 0 to below 1")

    @property
    def compute_dtype(self) -> Any:
        """The dtype of the products."""
        return parse_dtype(self.dtype)

    def with_dropout(self, config: GPT2Config) -> GPT2Config:
        """The model's config with this run's dropout."""
        rate = self.dropout if self.recipe is None or self.dropout is not None else self.recipe.dropout_rate
        return (
            config if rate is None else dataclasses.replace(config, embd_pdrop=rate, attn_pdrop=rate, resid_pdrop=rate)
        )

    def rate(self, config: GPT2Config) -> optax.Schedule:
        """The learning rate by step."""
        if self.recipe is not None:
            return self._numbered().schedule(config.n_embd)
        return make_schedule(
            self.schedule,
            learning_rate=self.learning_rate,
            steps=self.steps,
            warmup=self.warmup,
            d_model=config.n_embd,
            decay=self.decay,
        )

    def transformation(self, config: GPT2Config) -> optax.GradientTransformation:
        """The optimiser, schedule and clipping included."""
        if self.recipe is not None:
            return self._numbered().optimizer(config.n_embd)
        return make_optimizer(
            self.optimizer, self.rate(config), weight_decay=self.weight_decay, clip=self.clip, b2=self.b2
        )

    def planner(self, length: int, multiple: int) -> Planner:
        """How an epoch of examples of at most `length` tokens is cut into batches."""
        planner = None if self.recipe is None else self._numbered().planner()
        return planner or Buckets(self.batch_size, length, self.buckets, multiple)

    def weigh(self, weights_BT: jax.Array) -> jax.Array:
        """The weights of targets as the recipe takes them."""
        return weights_BT if self.recipe is None else self._numbered().weigh(weights_BT)

    def identity(self) -> dict[str, Any]:
        """What a run must not change when it goes on, as JSON: all that has to do with the numbers that come out."""
        said = dataclasses.asdict(self)
        for name in ("log_every", "evaluate_every", "save_every", "keep", "checkpoint_blocks"):
            del said[name]
        return said

    def _numbered(self) -> Recipe:
        """The recipe with this run's numbers."""
        assert self.recipe is not None
        return self.recipe.with_numbers(
            steps=self.steps,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            schedule=self.schedule,
            clip=self.clip,
            weight_decay=self.weight_decay,
            b2=self.b2,
        )
