"""How a token is chosen, as a caller says it: numbers in, a checked `Sampling` out, which is a pytree (`logits.py`).

Nothing here imports jax, so that the help of a command, which shows the defaults, need not wait for it.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dialogpt_jax.arguments import as_flag, shown

TOP_K_BUCKETS = (16, 64, 256, 1024)

if TYPE_CHECKING:
    import jax

    Number = float | int | np.ndarray | np.number | jax.Array | None
else:
    Number = float | int | np.ndarray | np.number | None


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is chosen. A pytree: numbers are leaves, so another number compiles nothing; `None` leaves a step out.

    Attributes:
      temperature: divides the logits; `None` (or 0, made `None`) takes the best token: greedy.
      top_k: only the k best, 1 to 1024. Ties with the last of them stay, as far as they are among the best 16, 64, 256 or
        1024: the first of these that is over k (at 1024 none stay).
      top_p: only the smallest set of best tokens that holds this probability, over 0 to 1 (Holtzman et al. 2019), to
        within 3e-7. Of ties with the last of them, as many stay as are needed, the last by id; without `top_k`, all.
      min_p: only tokens at least this fraction as probable as the best, 0 to 1 (Nguyen et al. 2024).
      repetition_penalty: logits of seen tokens are divided by it where positive, else multiplied (Keskar et al. 2019);
        over 0, 1 changes nothing.
      penalize_context: static; seen are the tokens of the whole context, not of the reply alone.
      min_new_tokens: the reply's length before its EOS is at least this; 1 by default: a reply is not empty.

    Numbers may be scalars or arrays with one value a row.

    Raises:
      ValueError: a number out of range (jax's arrays are not looked at).

    Example:
      >>> bot.reply("Hi!", sampling=dg.Sampling(temperature=0.8, top_k=50, top_p=0.9))
      '...'
      >>> bot.reply("Hi!", sampling=dg.GREEDY) == bot.reply("Hi!", sampling=dg.GREEDY, seed=1)
      True
    """

    temperature: Number = 1.0
    top_k: Number = None
    top_p: Number = None
    min_p: Number = None
    repetition_penalty: Number = None
    penalize_context: bool = False
    min_new_tokens: Number = 1

    def __post_init__(self) -> None:
        if is_number(self.temperature) and self.temperature == 0:
            object.__setattr__(self, "temperature", None)
        _check("temperature", self.temperature, low=0.0, high=1e4, open_low=True)
        _check("top_k", self.top_k, low=1, high=TOP_K_BUCKETS[-1], whole=True)
        _check("top_p", self.top_p, low=0.0, high=1.0, open_low=True)
        _check("min_p", self.min_p, low=0.0, high=1.0)
        _check("repetition_penalty", self.repetition_penalty, low=0.0, high=1e4, open_low=True)
        as_flag("penalize_context", self.penalize_context)
        _check("min_new_tokens", self.min_new_tokens, low=0, high=2**31 - 1, whole=True)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _check(name: str, value: Any, *, low: float, high: float, open_low: bool = False, whole: bool = False) -> None:
    if isinstance(value, str | bool | bytes | np.bool_):
        raise ValueError(f"{name} is {value!r}; it must be a number")
    if isinstance(value, list | tuple | dict):  # a pytree of its own, not one leaf
        raise ValueError(f"{name} is {shown(value)}; for one number a row, give an array")
    if value is None or not (hasattr(value, "__array__") or is_number(value)):
        return  # left out, or what jax puts in a tree for a moment
    if not isinstance(value, int | float | np.number | np.ndarray):
        import jax

        if isinstance(value, jax.Array):  # not to be looked at
            return
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "iuf":
        raise ValueError(f"{name} is {shown(value)}; it must be a number")
    if numbers.ndim:
        open_low = open_low and name != "temperature"  # 0 for some rows: they take their best token
    inside = ((low < numbers) if open_low else (low <= numbers)) & (numbers <= high)
    if whole:
        inside &= numbers == np.floor(numbers)
    if not inside.all():
        kind = "a whole number" if whole else "a number"
        wrong = value if numbers.ndim == 0 else f"{shown(value)}, of which {numbers[~inside].flat[0]}"
        above = open_low and name != "temperature"  # whose 0 is greedy
        limits = f"over {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
        raise ValueError(f"{name} is {wrong}; it must be {kind} {limits}")


GREEDY = Sampling(temperature=None)
PAPER = Sampling(top_k=10)  # arXiv 1911.00536, section 3.3: top-k sampling, k = 10


def describe_sampling(sampling: Sampling) -> str:
    """The settings that are on, for a person: `temperature 0.8, top_k 50`."""
    on = ["greedy"] if sampling.temperature is None else []
    for field in dataclasses.fields(sampling):
        value = getattr(sampling, field.name)
        if value is None or value is False:
            continue
        if field.name != "min_new_tokens" or not is_number(value) or value != 1:
            on.append(f"{field.name} {value:g}" if is_number(value) else f"{field.name} {value}")
    return ", ".join(on)
