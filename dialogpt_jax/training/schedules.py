"""Learning rates: a step number in, the rate of that step out (`optax.Schedule`s, pure, under jit too).

The first step is number 0, and no schedule wastes it on a rate of 0: a warm-up of w steps has its rate at (step+1)/w of
the peak, so that step w−1 is the first at the peak. Where a schedule ends at 0, it does so at step `steps`, which is no
longer run.

    warm-up 4, 8 steps          step  0     1     2     3     4     5     6     7    (8)
    linear, share of the peak        1/4   1/2   3/4    1     1    3/4   1/2   1/4    0
"""

import jax.numpy as jnp
import optax

from dialogpt_jax.arguments import as_number, as_whole_number
from dialogpt_jax.training.names import SCHEDULES, UnknownSchedule

# What microsoft/DialoGPT multiplies `--learning_rate` by (gpt2_training/train_utils.py, set_lr).
_NOAM_FACTOR = 1e4
# lsp_model/optim.py there, the defaults of noamwd_decay, which nothing overrides.
_NOAMWD_START, _NOAMWD_STEPS, _NOAMWD_RATE = 500, 1000, 0.5


def constant(peak: float, *, warmup: int = 0) -> optax.Schedule:
    """Level after the warm-up."""
    return lambda step: peak * _rise(step, warmup)


def linear(peak: float, *, steps: int, warmup: int = 0) -> optax.Schedule:
    """Straight down from the warm-up's end to 0 at `steps`."""
    _check_fits(steps, warmup)
    return lambda step: peak * _rise(step, warmup) * (1.0 - _progress(step, steps, warmup))


def cosine(peak: float, *, steps: int, warmup: int = 0) -> optax.Schedule:
    """Half a cosine from the warm-up's end down to 0 at `steps` (Loshchilov & Hutter 2017, without restarts)."""
    _check_fits(steps, warmup)
    return lambda step: peak * _rise(step, warmup) * 0.5 * (1.0 + jnp.cos(jnp.pi * _progress(step, steps, warmup)))


def noam_to(peak: float, *, warmup: int) -> optax.Schedule:
    """peak · min(t/w, √(w/t)) with t = step+1: up to `peak` at t = w, then down with the root of the steps."""
    if warmup < 1:
        raise ValueError(f"noam rises over its warm-up, which has {warmup} steps; give it at least 1")

    def rate(step):
        t = jnp.asarray(step, jnp.float32) + 1.0
        return peak * jnp.minimum(t / warmup, jnp.sqrt(warmup / t))

    return rate


def noam(learning_rate: float, *, warmup: int, d_model: int) -> optax.Schedule:
    """The rate of DialoGPT's paper: learning_rate · 10⁴ · d^-0.5 · min(t^-0.5, t · w^-1.5), t = step+1.

    `learning_rate` is therefore not the peak: with 1e-5 and 16,000 steps of warm-up that is 2.853e-5 for small.

    Source: Vaswani et al. 2017, 5.3; `noam_decay` and `set_lr` of microsoft/DialoGPT.
    """
    return noam_to(learning_rate * _NOAM_FACTOR * (d_model * max(warmup, 1)) ** -0.5, warmup=warmup)


def noamwd(
    learning_rate: float, *, warmup: int, d_model: int, decay: int = _NOAMWD_STEPS, start: int = _NOAMWD_START
) -> optax.Schedule:
    """`noam` halved at t = `start` and every `decay` steps from there: noam · 0.5^⌊max(t − start + decay, 0) / decay⌋.

    "Optimized for huge batches", says the source; the defaults halve at t = 500, 1500, 2500, whatever the warm-up.

    Source: `noamwd_decay` in lsp_model/optim.py of microsoft/DialoGPT, by way of OpenNMT-py.
    """
    if decay < 1:
        raise ValueError(f"noamwd halves every `decay` steps, which is {decay}; give it at least 1")
    risen = noam(learning_rate, warmup=warmup, d_model=d_model)

    def rate(step):
        halvings = jnp.maximum(jnp.asarray(step, jnp.int32) + 1 - start + decay, 0) // decay
        return risen(step) * _NOAMWD_RATE ** halvings.astype(jnp.float32)

    return rate


def trapezoid(peak: float, *, steps: int, warmup: int, decay: int) -> optax.Schedule:
    """Up over `warmup` steps, level, and down to 0 over the last `decay` of `steps`."""
    return optax.join_schedules(
        [
            optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1)),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.0, decay),
        ],
        boundaries=[warmup, steps - decay],
    )


def make_schedule(
    name: str, *, learning_rate: float, steps: int, warmup: int, d_model: int, decay: int | None = None
) -> optax.Schedule:
    """The schedule of a name.

    Args:
      name: one of `SCHEDULES`.
      learning_rate: the peak; for noam and noamwd the number that their formulas scale.
      steps: of the run; noam, noamwd and constant do not look at it.
      warmup: steps to the peak.
      d_model: width of the model; noam and noamwd divide by its root.
      decay: steps of trapezoid's fall (default: a fifth of the run), or between noamwd's halvings (default: 1000).

    Raises:
      UnknownSchedule: a ValueError that names those there are.
      ValueError: the numbers do not fit each other.
    """
    learning_rate = as_number("learning_rate", learning_rate)
    steps, warmup = as_whole_number("steps", steps, least=1), as_whole_number("warmup", warmup, least=0)
    decay = None if decay is None else as_whole_number("decay", decay, least=1)
    if name == "constant":
        return constant(learning_rate, warmup=warmup)
    if name == "linear":
        return linear(learning_rate, steps=steps, warmup=warmup)
    if name == "cosine":
        return cosine(learning_rate, steps=steps, warmup=warmup)
    if name == "noam":
        return noam(learning_rate, warmup=warmup, d_model=d_model)
    if name == "noamwd":
        return noamwd(learning_rate, warmup=warmup, d_model=d_model, decay=_NOAMWD_STEPS if decay is None else decay)
    if name == "trapezoid":
        decay = max(steps // 5, 1) if decay is None else decay
        if warmup + decay > steps:
            raise ValueError(f"a trapezoid of {steps} steps does not hold a warm-up of {warmup} and a fall of {decay}")
        return trapezoid(learning_rate, steps=steps, warmup=warmup, decay=decay)
    raise UnknownSchedule(f"no schedule is called {name!r}; there are {', '.join(SCHEDULES)}")


def _rise(step, warmup):
    return jnp.minimum((jnp.asarray(step, jnp.float32) + 1.0) / max(warmup, 1), 1.0)


def _progress(step, steps, warmup):
    """0 until the warm-up's end, 1 from `steps` on."""
    return jnp.clip((jnp.asarray(step, jnp.float32) - warmup) / (steps - warmup), 0.0, 1.0)


def _check_fits(steps, warmup):
    if not 0 <= warmup < steps:
        raise ValueError(f"the warm-up has {warmup} steps and the run {steps}; the warm-up must be shorter")
