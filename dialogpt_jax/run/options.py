"""What a training run is told: numbers and names in; the optimiser, the planner of its batches and its identity out."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dialogpt_jax.arguments import MOST, as_flag, as_number, as_whole_number, shown
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import Buckets, Planner
from dialogpt_jax.training.names import ADAM_SHARE, OPTIMIZERS, SCHEDULES, UnknownOptimizer, UnknownSchedule
from dialogpt_jax.training.recipes import Recipe
from dialogpt_jax.weights.dtypes import parse_dtype

if TYPE_CHECKING:  # else where it is used, for the help of a command shows the defaults below
    import jax
    import optax

LARGEST = 3.4e38  # float32's

# What stands where neither the caller nor a recipe says a number; `warmup`, `evaluate_every` and `save_every` follow the
# number of steps.
DEFAULTS: dict[str, Any] = {
    "steps": 1000,
    "batch_size": 32,
    "accumulate": 1,
    "learning_rate": 1e-4,
    "schedule": "linear",
    "weight_decay": 0.01,
    "b2": 0.999,
    "clip": 1.0,
    "seed": 0,
}
LONGEST_WARMUP = 1000
LEAST_BETWEEN_LOOKS = 10  # steps: a short run would else evaluate, and show replies, after every step
VALID_DIALOGUES = 500  # of a held-out file: enough for a steady perplexity, and soon done at every evaluation
TOPOLOGY = "v5e:2x4"  # that a run is compiled for without a TPU, where none is named
TOLD = ("log_every", "evaluate_every", "save_every", "keep")  # these do not change the trained weights
UNSAID: Any = None  # so the fields below have the type that they have once they are filled in


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """A training run, but for its data, its model and where it runs.

    A number that is not said is the recipe's, if there is one, or the default in brackets. After that every field has
    its value: `TrainOptions().batch_size` is 32, `TrainOptions(recipe=Recipe.paper()).batch_size` is 512.

    Attributes:
      steps: of the optimiser (1000).
      batch_size: examples of the full length in a step, over all devices and parts; a shorter bucket has more rows (32).
      accumulate: parts that a batch is computed in, one after the other: less memory, the same result (1).
      learning_rate: the schedule's peak; noam and noamwd scale it, see `schedules.py` (1e-4).
      warmup: steps to the peak (a tenth of the run, at most 1000).
      schedule: constant, linear, cosine, noam, noamwd or trapezoid (linear).
      decay: steps of a trapezoid's fall, or between noamwd's halvings.
      optimizer: adamw or muon.
      weight_decay: of matrices and embeddings, see `optim.py` (0.01).
      embedding_decay: of the embeddings alone, where they are to have another.
      adam_share: with muon, Adam's rate over Muon's.
      average: decay of a running average of the parameters, which is then evaluated and exported; 0 is none.
      teacher_share: of the targets that is the teachers', where `fit` is given some, 0 to 1; see `distillation.py`.
      b2: of Adam (0.999).
      clip: greatest norm of the gradient; 0 is none (1.0).
      dropout: everywhere in the model; `None` is what its config says.
      dtype: of the products, float32 or bfloat16; parameters and the optimiser are float32 always.
      seed: of the order of the data and of dropout (0).
      max_length: of a row in tokens; `None`: that of prepared data, or of the longest example, up to a multiple of 8.
      buckets: lengths of batches, each a program to compile; 1 pads every example to the longest.
      checkpoint_blocks: compute the inside of every block twice, and keep less.
      recipe: the paper's quirks and numbers; its optimiser and its batches replace those above.
      log_every: steps between two lines; 0 is never. The last step does all three.
      evaluate_every, save_every: steps between two evaluations, or checkpoints; 0 is never (a tenth of the run; for
        evaluations, at least 10).
      keep: newest checkpoints that stay; the best one stays too.

    Raises:
      ValueError: a number or a name that cannot be, in one line.

    Example:
      >>> dg.TrainOptions(steps=200, learning_rate=1e-3).batch_size
      32
    """

    steps: int = UNSAID
    batch_size: int = UNSAID
    accumulate: int = UNSAID
    learning_rate: float = UNSAID
    warmup: int = UNSAID
    schedule: str = UNSAID
    decay: int | None = None
    optimizer: str = "adamw"
    weight_decay: float = UNSAID
    embedding_decay: float | None = None
    adam_share: float = ADAM_SHARE
    average: float = 0.0
    teacher_share: float = 0.5
    b2: float = UNSAID
    clip: float = UNSAID
    dropout: float | None = None
    dtype: str = "float32"
    seed: int = UNSAID
    max_length: int | None = None
    buckets: int = 8
    checkpoint_blocks: bool = False
    recipe: Recipe | None = None
    log_every: int = 10
    evaluate_every: int = UNSAID
    save_every: int = UNSAID
    keep: int = 2

    def __post_init__(self) -> None:
        self._fill_in()
        for name in ("batch_size", "accumulate", "buckets", "keep", "steps"):
            self._check(name, as_whole_number, least=1, most=MOST)
        for name in ("warmup", "log_every", "evaluate_every", "save_every"):
            self._check(name, as_whole_number, least=0, most=MOST)
        for name in ("learning_rate", "weight_decay", "embedding_decay", "adam_share", "clip"):
            self._check(name, as_number, below=LARGEST)
        for name in ("b2", "dropout", "average"):
            self._check(name, as_number, below=1)
        self._check("teacher_share", as_number, most=1)
        self._check("seed", as_whole_number, least=0, most=2**32 - 1)
        self._check("max_length", as_whole_number, least=2, most=MOST)
        self._check("decay", as_whole_number, least=1, most=MOST)
        self._check("checkpoint_blocks", as_flag)
        if not isinstance(self.schedule, str) or self.schedule not in SCHEDULES:
            raise UnknownSchedule(f"no schedule is called {shown(self.schedule)}; there are {', '.join(SCHEDULES)}")
        if not isinstance(self.optimizer, str) or self.optimizer not in OPTIMIZERS:
            raise UnknownOptimizer(f"no optimiser is called {shown(self.optimizer)}; there are {', '.join(OPTIMIZERS)}")
        if self.recipe is not None and self.optimizer != "adamw":
            raise ValueError(f"optimizer is {self.optimizer}; the recipe has an optimiser of its own: give one of them")
        if self.recipe is not None and self.average:
            raise ValueError(f"average is {self.average}; the paper's recipe keeps none: leave one of them out")
        object.__setattr__(self, "dtype", parse_dtype(self.dtype).name)
        if self.dtype == "int8":
            raise ValueError("dtype is int8, through which no gradient flows: take float32 or bfloat16")
        if self.dtype == "float16":
            raise ValueError(
                "dtype is float16; small gradients would become 0 there, as the loss is not scaled: take bfloat16"
            )

    def _fill_in(self) -> None:
        """What was not said: the recipe's number, or the default."""
        if self.recipe is not None and not isinstance(self.recipe, Recipe):
            raise TypeError(f"recipe is {shown(self.recipe)}; give Recipe.paper(), or one made from it")
        found = dict(DEFAULTS)
        if self.recipe is not None:
            numbers = dataclasses.asdict(self.recipe.numbers)
            found |= {name: numbers[name] for name in (*DEFAULTS, "warmup", "decay")}
            found["evaluate_every"] = numbers["validate_every"]
        steps = as_whole_number("steps", found["steps"] if self.steps is None else self.steps, least=1, most=MOST)
        rises = str(found["schedule"] if self.schedule is None else self.schedule).startswith("noam")
        tenth = max(steps // 10, 1)
        found.setdefault("warmup", max(min(steps // 10, LONGEST_WARMUP), int(rises)))  # noam has no run without one
        found.setdefault("evaluate_every", max(tenth, LEAST_BETWEEN_LOOKS))
        found.setdefault("save_every", tenth)
        for name, value in found.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _check(self, name: str, convert: Callable[..., Any], **limits: Any) -> None:
        """The field as a plain number of Python, for checkpoints hold it as JSON; `None` stays where it is the default."""
        value = getattr(self, name)
        if value is not None or getattr(TrainOptions, name) is not None:
            object.__setattr__(self, name, convert(name, value, **limits))

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

    def rate(self, config: GPT2Config) -> "optax.Schedule":
        """The learning rate by step."""
        if self.recipe is not None:
            return self._numbered().schedule(config.n_embd)
        from dialogpt_jax.training.schedules import make_schedule

        return make_schedule(
            self.schedule,
            learning_rate=self.learning_rate,
            steps=self.steps,
            warmup=self.warmup,
            d_model=config.n_embd,
            decay=self.decay,
        )

    def transformation(self, config: GPT2Config) -> "optax.GradientTransformation":
        """The optimiser, schedule and clipping included."""
        if self.recipe is not None:
            return self._numbered().optimizer(config.n_embd)
        from dialogpt_jax.training.average import averaged
        from dialogpt_jax.training.optim import make_optimizer

        optimizer = make_optimizer(
            self.optimizer,
            self.rate(config),
            weight_decay=self.weight_decay,
            embedding_decay=self.embedding_decay,
            adam_share=self.adam_share,
            clip=self.clip,
            b2=self.b2,
        )
        return averaged(optimizer, self.average) if self.average else optimizer

    def planner(self, length: int, multiple: int) -> Planner:
        """How an epoch of examples of at most `length` tokens is cut into batches."""
        planner = None if self.recipe is None else self._numbered().planner(multiple)
        return planner or Buckets(self.batch_size, length, self.buckets, multiple)

    def weigh(self, weights_BT: "jax.Array") -> "jax.Array":
        """The weights of targets as the recipe takes them."""
        return weights_BT if self.recipe is None else self._numbered().weigh(weights_BT)

    def identity(self) -> dict[str, Any]:
        """What a run must not change when it goes on, as JSON: all that has to do with the numbers that come out."""
        said = dataclasses.asdict(self)
        for name in (
            *TOLD,
            "checkpoint_blocks",
            "teacher_share",
        ):  # the last stands with the teachers, if there are any
            del said[name]
        return said

    def without_what_is_told(self) -> "TrainOptions":
        """The same run, all that decides how often something is told or kept at one value: what is compiled is the same."""
        return dataclasses.replace(self, log_every=1, evaluate_every=1, save_every=1, keep=1)

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
            decay=self.decay,
            clip=self.clip,
            weight_decay=self.weight_decay,
            b2=self.b2,
        )
