"""How microsoft/DialoGPT trains, quirk by quirk: a recipe in; its schedule, optimiser, weights and planner out.

Each quirk is a field of `Recipe`, "faithful" to what that code does or "fixed". Source: microsoft/DialoGPT at 61194e4,
the file named at each field; the optimiser is `lsp_model/optim.py`'s Adam, which runs without `--fp16`. (With it runs
apex's FusedAdam: biases and norms do not decay, epsilon is 1e-8, and each of the two groups is clipped by its norm.)

    recipe = Recipe.paper()                          # as they did
    recipe = Recipe.paper().fixed("clip", "decay")   # but for two things
    recipe = Recipe.paper().with_numbers(steps=200, batch_size=64, accumulate=1)
    optimizer = recipe.optimizer(config.n_embd)

What looks like a quirk and is none, since it changes no number here: no padding mask (rows are padded at their right and
attention is causal), −1e4 for masked scores (its softmax is 0 in float32 as well), token types (none are used). Two more
need no choice. Data-parallel replicas have mean losses of their own there, whose gradients are summed: R replicas of A
parts are R · A parts here. And "ppl" is there the exponential of the mean over *samples* of their mean loss: a run tells
it as `valid_sample_perplexity`, beside `valid_perplexity`, which is per token.

Letters: B rows, T tokens.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from dialogpt_jax.data.batches import SortedWindows

if (
    TYPE_CHECKING
):  # else where it is used: a recipe is a field of the options, whose defaults the help of a command shows
    import jax
    import optax

Choice = Literal["faithful", "fixed"]


class UnknownQuirk(ValueError):
    """No quirk has this name."""


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The figures of `demo.py`, and of the optimiser it calls. The paper itself warms up for 16,000 steps.

    Attributes:
      batch_size: examples of one optimiser step on one replica; `accumulate` parts of 64.
      learning_rate: the number that noam's formula scales, not its peak.
      max_length: in tokens.
      validate_every: optimiser steps.
    """

    batch_size: int = 512
    accumulate: int = 8
    steps: int = 10_000
    schedule: str = "noam"
    decay: int | None = None
    learning_rate: float = 1e-5
    warmup: int = 4_000
    max_length: int = 128
    validate_every: int = 5_000
    seed: int = 42
    weight_decay: float = 0.01
    clip: float = 1.0
    b1: float = 0.9
    b2: float = 0.999


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One choice per quirk, "faithful" or "fixed"; the default is the paper's training.

    Who acts on it: [optimiser] `optimizer`; [loss] `weigh`; [data], [model] and [loop] whoever builds those, by the
    properties below.

    Attributes:
      rate: [optimiser] faithful: noam's learning rate is scaled by 10⁴·d^-0.5, so its peak depends on the width; fixed:
        the learning rate is the peak. Other schedules are as they are. (gpt2_training/train_utils.py, set_lr)
      weights: [loss] faithful: a target counts 1 if its weight is not 0: the weights of prepro.py never reach the loss;
        fixed: 0.3 means 0.3. (data_loader.py, collate)
      accumulation: [optimiser, loss] faithful: each accumulated part has its own mean loss, and the gradients of these
        means are *summed*; fixed: one mean over all targets of the batch. (LSP_train.py)
      clip: [optimiser] faithful: each parameter's gradient by its own norm; fixed: all by their global norm.
      bias_correction: [optimiser] faithful: none; fixed: Adam's.
      epsilon: [optimiser] faithful: 1e-6; fixed: Adam's 1e-8.
      decay: [optimiser] faithful: everything decays, biases and norms too: the groups set `weight_decay`, and the
        optimiser reads `weight_decay_rate`; fixed: matrices only.
      dropout: [model] faithful: none: the pinned pytorch-pretrained-bert 0.6.1 has no dropout in its GPT-2; fixed: the
        0.1 of the released models' config.json.
      padding: [data] faithful: rows are padded to a multiple of 8; fixed: no further than the longest in their batch.
        (prepro.py; where batches are buckets, a bucket has one length and this says nothing)
      batching: [data] faithful: examples are sorted by length within windows of 100 parts of the shuffled corpus, and
        the last batch, which theirs drops, is filled by other examples; fixed: buckets of length over the whole corpus.
        (data_loader.py, BucketSampler)
      resume: [loop] faithful: the optimiser begins anew, only the schedule goes on; fixed: exactly where it stopped.
        Fixed by default even here: it changes no run that is not stopped. (LSP_train.py, --continue_from)
      numbers: steps, rates, sizes.
    """

    rate: Choice = "faithful"
    weights: Choice = "faithful"
    accumulation: Choice = "faithful"
    clip: Choice = "faithful"
    bias_correction: Choice = "faithful"
    epsilon: Choice = "faithful"
    decay: Choice = "faithful"
    dropout: Choice = "faithful"
    padding: Choice = "faithful"
    batching: Choice = "faithful"
    resume: Choice = "fixed"
    numbers: Numbers = Numbers()

    @classmethod
    def paper(cls) -> "Recipe":
        """Faithful throughout, but for `resume`."""
        return cls()

    def fixed(self, *quirks: str) -> "Recipe":
        """With these quirks fixed; with none named, all.

        Raises:
          UnknownQuirk: a ValueError that names those there are.
        """
        return self._with(quirks or QUIRKS, "fixed")

    def faithful(self, *quirks: str) -> "Recipe":
        """With these quirks faithful; with none named, all."""
        return self._with(quirks or QUIRKS, "faithful")

    def with_numbers(self, **numbers: Any) -> "Recipe":
        """With other `Numbers`."""
        return dataclasses.replace(self, numbers=dataclasses.replace(self.numbers, **numbers))

    def schedule(self, d_model: int) -> "optax.Schedule":
        """The learning rate by step, of a model of this width."""
        from dialogpt_jax.training.schedules import make_schedule, noam_to

        n = self.numbers
        if n.schedule == "noam" and self.rate == "fixed":
            return noam_to(n.learning_rate, warmup=n.warmup)
        return make_schedule(
            n.schedule, learning_rate=n.learning_rate, steps=n.steps, warmup=n.warmup, d_model=d_model, decay=n.decay
        )

    def optimizer(self, d_model: int) -> "optax.GradientTransformation":
        """The optimiser. It takes the gradient of the mean loss of a batch whose weights are those of `weigh`.

        Args:
          d_model: the model's width, for noam.
        """
        import optax

        from dialogpt_jax.training.optim import clip_each, decays, scale_by_uncorrected_adam

        n = self.numbers
        eps = 1e-6 if self.epsilon == "faithful" else 1e-8
        adam = scale_by_uncorrected_adam if self.bias_correction == "faithful" else optax.scale_by_adam
        parts = [adam(n.b1, n.b2, eps)]
        if n.clip:
            parts.insert(0, clip_each(n.clip) if self.clip == "faithful" else optax.clip_by_global_norm(n.clip))
        if n.weight_decay:
            parts.append(optax.add_decayed_weights(n.weight_decay, None if self.decay == "faithful" else decays))
        if self.groups > 1:
            parts.insert(0, optax.scale(self.groups))  # the sum of the groups' gradients, from their mean
        return optax.chain(*parts, optax.scale_by_learning_rate(self.schedule(d_model)))

    @property
    def groups(self) -> int:
        """How many parts of a batch have a mean loss of their own, whose gradients are summed."""
        return self.numbers.accumulate if self.accumulation == "faithful" else 1

    def weigh(self, weights_BT: "jax.Array") -> "jax.Array":
        """Weights with which the loss's Σ weighted / Σ weights is the mean of the groups' own means.

        Args:
          weights_BT: float32, of the whole batch of one optimiser step, 0 where a token is no target. Rows that follow
            each other make a group. A group without any target stays without.

        Raises:
          ValueError: the groups would not be equally large.

        Two groups of one row:   [0 1 1 1 1]        [0 1/4 1/4 1/4 1/4]
                                 [0 1 1 0 0]   →    [0 1/2 1/2   0   0]
        """
        import jax.numpy as jnp

        if self.weights == "faithful":
            weights_BT = (weights_BT != 0).astype(weights_BT.dtype)
        groups, rows = self.groups, weights_BT.shape[0]
        if groups == 1:
            return weights_BT
        if rows % groups:
            raise ValueError(f"a batch of {rows} rows does not divide into {groups} equal parts; change its size")
        grouped = weights_BT.reshape(groups, -1)
        total = grouped.sum(axis=1, keepdims=True)
        return (grouped / jnp.where(total > 0, total, 1.0)).reshape(weights_BT.shape)

    @property
    def dropout_rate(self) -> float:
        """Of embeddings, attention and residuals."""
        return 0.0 if self.dropout == "faithful" else 0.1

    @property
    def multiple(self) -> int:
        """The length of a row is padded to a multiple of this."""
        return 8 if self.padding == "faithful" else 1

    @property
    def sort_window(self) -> int | None:
        """How many shuffled examples are sorted by length at a time: 100 parts; `None`: buckets over the whole corpus."""
        n = self.numbers
        return 100 * (n.batch_size // n.accumulate) if self.batching == "faithful" else None

    def planner(self, multiple: int = 1) -> SortedWindows | None:
        """How an epoch is divided into batches of `batch_size` rows; `None`: as the caller does it.

        A batch is cut from its window in one piece, where theirs joins `accumulate` parts from anywhere. The window is
        rounded down to whole batches. `multiple`: what the rows of a smaller batch are divided by.
        """
        rows, window = self.numbers.batch_size, self.sort_window
        return None if window is None else SortedWindows(rows, max(window // rows, 1), self.multiple, multiple)

    def resumed(self, restored: Any, optimizer: "optax.GradientTransformation", params: Any, step: int) -> Any:
        """The optimiser's state with which a run goes on after `step` steps: `restored`, or a new one at that rate."""
        import jax

        if self.resume == "fixed":
            return restored
        state = optimizer.init(params)
        return jax.tree.map(lambda x: _counted_from(step, x), state, is_leaf=_is_schedule)

    def _with(self, quirks: tuple[str, ...], choice: Choice) -> "Recipe":
        for name in quirks:
            if name not in QUIRKS:
                raise UnknownQuirk(f"no quirk is called {name!r}; there are {', '.join(QUIRKS)}")
        chosen: dict[str, Any] = dict.fromkeys(quirks, choice)
        return dataclasses.replace(self, **chosen)


def named_recipe(name: str | None, fixed: str | None = None) -> Recipe | None:
    """The recipe of a name, with quirks fixed; `None` where no name is given.

    Args:
      name: "paper".
      fixed: names of quirks between commas, or "all".

    Raises:
      ValueError: no recipe has this name, or quirks are named without a recipe.
      UnknownQuirk: no quirk is called so.
    """
    if name is None:
        if fixed:
            raise ValueError("--fixed names quirks of a recipe; give --recipe paper too")
        return None
    if name != "paper":
        raise ValueError(f"no recipe is called {name!r}; there is paper")
    if not fixed:
        return Recipe.paper()
    return Recipe.paper().fixed(*([] if fixed == "all" else fixed.split(",")))


QUIRKS = tuple(field.name for field in dataclasses.fields(Recipe) if field.name != "numbers")


def _is_schedule(state: Any) -> bool:
    import optax

    return isinstance(state, optax.ScaleByScheduleState)


def _counted_from(step: int, state: Any) -> Any:
    import jax.numpy as jnp

    return state._replace(count=jnp.asarray(step, jnp.int32)) if _is_schedule(state) else state
