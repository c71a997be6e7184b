"""Names of every origin in, Hugging Face's names out: the step before the table of `mapping.py`.

    {"module.h.0.ln_1.weight": …, "h.0.attn.bias": …} ─normalise→ {"transformer.h.0.ln_1.weight": …}

It renames, turns Flax's kernels, and drops what is computed and not learned; and it keeps a list of all it did.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.errors import escape_controls

Tensors = Mapping[str, np.ndarray]

EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"

_BUFFER = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")
_BARE = re.compile(r"(wte|wpe|ln_f)\.|h\.\d+\.")
_FLAX_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
_OLD_NORM = re.compile(r"(ln_\w+)\.(gamma|beta)$")


class MappingError(ValueError):
    """Tensors that do not fit the config. The message shows the whole difference: `-` expected, `+` found."""


class WeightsWarning(UserWarning):
    """Weights that can be used, and are perhaps not what they seem; the message says what to look at."""


class Normalised(NamedTuple):
    """Tensors under Hugging Face's names, and what was renamed and dropped on the way."""

    tensors: dict[str, np.ndarray]
    renamed: tuple[tuple[str, str], ...]
    dropped: tuple[tuple[str, str], ...]


def normalise(tensors: Tensors) -> Normalised:
    """Names of every origin made Hugging Face's; Flax kernels turned to torch's (in, out); buffers dropped.

    Taken away: `module.` and `_orig_mod.` (torch's wrappers), a doubled `transformer.` (DialogRPT). Added: a missing
    `transformer.`. Read anew: `lm_head.decoder.weight`, `gamma` and `beta`, Flax names joined by `/`.

    Raises:
      MappingError: two names of the file mean the same tensor and their contents differ.
    """
    out: dict[str, np.ndarray] = {}
    origins: dict[str, str] = {}
    renamed, dropped = [], []
    for original, array in tensors.items():
        name, array = _normalise_one(original, array)
        if _is_buffer(name, array):
            dropped.append((original, "causal mask, computed"))
            continue
        if name in out:
            if not same_bits(out[name], array):
                first, second, both = (escape_controls(text, keep="") for text in (original, origins[name], name))
                raise MappingError(f"{first} and {second} are both {both} and differ; which one is meant?")
            dropped.append((original, f"same as {origins[name]}"))
            continue
        if name != original:
            renamed.append((original, name))
        out[name], origins[name] = array, original
    return Normalised(out, tuple(renamed), tuple(dropped))


def _normalise_one(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    if "/" in name:  # Flax
        name = name.removeprefix("params/").replace("/", ".")
        stem, _, leaf = name.rpartition(".")
        if leaf in _FLAX_LEAVES:
            name = f"{stem}.{_FLAX_LEAVES[leaf]}"
        array = array.T if leaf == "kernel" else array
    while name.startswith(("module.", "_orig_mod.")):
        name = name.partition(".")[2]
    if name.startswith(("transformer.transformer.", "transformer.lm_head.")):
        name = name.removeprefix("transformer.")
    if _BARE.match(name):
        name = f"transformer.{name}"
    if name == "lm_head.decoder.weight":
        name = HEAD
    name = _OLD_NORM.sub(lambda m: f"{m[1]}.{'weight' if m[2] == 'gamma' else 'bias'}", name)
    return name, array


def _is_buffer(name: str, array: np.ndarray) -> bool:
    found = _BUFFER.fullmatch(name)
    if not found:
        return False
    if found[1] == "masked_bias":
        return array.size == 1
    return array.ndim >= 2 and array.shape[-1] == array.shape[-2]


def to_microsoft(tensors: Tensors, config: GPT2Config) -> dict[str, np.ndarray]:
    """Hugging Face's names → those of Microsoft's own `.pkl`: a head always, and the causal masks as buffers.

    The sum of bytes is then 2·P + 2·L·n² + 2·V·D in half precision, as in their files (n = 1024): a check of size.
    """
    n, dtype = config.n_positions, tensors[EMBEDDING].dtype
    out: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        if name.endswith(".attn.c_attn.weight"):
            out[name.replace("c_attn.weight", "bias")] = np.tril(np.ones((1, 1, n, n), dtype))
        out["lm_head.decoder.weight" if name == HEAD else name] = array
    # A copy: in their files the head is stored on its own.
    out.setdefault("lm_head.decoder.weight", tensors[EMBEDDING].copy())
    return out


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal shape, dtype and bytes; NaN equals itself, 0.0 is not -0.0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (a, b))
    return bool(np.array_equal(a, b))


def count_differences(a: np.ndarray, b: np.ndarray) -> int:
    """The number of values in which two arrays of one shape differ: by their bits, or across dtypes by their numbers."""
    if a.dtype == b.dtype:
        a, b = (np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}") for array in (a, b))
    return int(np.count_nonzero(a != b))


def count_layers(names: Iterable[str]) -> int:
    """One more than the highest number of a layer. A file has twelve tensors a layer, so a higher number is no layer's."""
    names = list(names)
    numbers = [match[1] for match in (re.match(r"transformer\.h\.(\d{1,9})\.", name) for name in names) if match]
    return 1 + max((int(number) for number in numbers if int(number) < len(names)), default=-1)


def by_kind(lines: Iterable[str]) -> list[str]:
    """Lines that differ only in a layer's number, as one line with their count."""
    counts: dict[str, int] = {}
    for line in lines:
        kind = re.sub(r"(?<=\bh[./])\d+", "*", line)
        counts[kind] = counts.get(kind, 0) + 1
    return [kind if count == 1 else f"{kind}  × {count}" for kind, count in counts.items()]
