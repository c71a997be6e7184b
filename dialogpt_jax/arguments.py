"""Arguments as people give them, Python's, NumPy's or pandas', to plain Python values; what is none, to one clear line."""

import math
import operator
import os
import reprlib
from pathlib import Path
from typing import Any

import numpy as np

MOST = 2**31 - 1  # int32's end: sizes and counts are held in it
_SHORT = reprlib.Repr()
_SHORT.maxother = _SHORT.maxstring = 60


def shown(value: Any) -> str:
    """A value as an error shows it: its `repr` on one line, at most some 60 characters of it."""
    return " ".join(_SHORT.repr(value).split())


def as_whole_number(name: str, value: Any, *, least: int, most: int | None = None) -> int:
    """An integer of any kind, such as `np.int64` or an array of no axes, as an `int`.

    Raises:
      ValueError: it is not a whole number, or out of range; 1.0 and True are none.
    """
    number: int | None
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        limits = f", at least {least}" if most is None else f" from {least} to {most}"
        raise ValueError(f"{name} is {shown(value)}; it must be a whole number{limits}")
    return number


def as_number(
    name: str, value: Any, *, least: float = 0.0, below: float = math.inf, most: float | None = None
) -> float:
    """A number of any kind, such as `np.float32` or an array of no axes, as a `float`; `most` stands in place of `below`.

    Raises:
      ValueError: it is not a number, or out of range; NaN and True are none.
    """
    plain = as_plain(value)
    number = not isinstance(plain, bool) and isinstance(plain, int | float)
    if not number or not least <= plain < below or (most is not None and plain > most):
        limits = f"from {least:g}" if below == math.inf else f"from {least:g} to below {below:g}"
        limits = limits if most is None else f"from {least:g} to {most:g}"
        raise ValueError(f"{name} is {shown(value)}; it must be a finite number {limits}")
    return float(plain)


def as_flag(name: str, value: Any) -> bool:
    """True or False, Python's or NumPy's.

    Raises:
      TypeError: it is neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {shown(value)}; give True or False")
    return bool(value)


def as_plain(value: Any) -> Any:
    """NumPy's arrays and scalars and pandas' Series as the lists and scalars they hold; anything else as it is."""
    return value.tolist() if callable(getattr(value, "tolist", None)) else value


def as_path(name: str, value: Any) -> Path:
    """A file's or folder's name as a path.

    Raises:
      TypeError: it is not a name.
      ValueError: it is an empty one, as a variable of a shell that is not set.
    """
    is_name = isinstance(value, str | os.PathLike)
    if not is_name or not str(value):
        raise (ValueError if is_name else TypeError)(f"{name} is {shown(value)}; give the name of a file or folder")
    return Path(value)
