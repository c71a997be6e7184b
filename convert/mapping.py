"""THE TABLE between a weight file's names and layout and ours: {name: array} in, parameters out, and back bit for bit.

    names of any origin ─normalise→ Hugging Face's names ─TABLE→ params        `to_params`
    params ─TABLE→ Hugging Face's names                                        `from_params`
    a ranker's names ─normalise, TABLE→ params with a scoring row              `to_ranker_params`

Only this file and `model.py` know our layout. A row of the table reads like an einops pattern: `D (3 H K) -> 3 H K D`
says that their array has two axes, the second holding 3·H·K, and ours four, in that order.

Letters: L layers, D model, H heads, K head dim, F mlp, V vocabulary (ours padded with zero rows), P positions. A digit is a
size.

Sources: transformers' `modeling_gpt2.py` (`Conv1D` keeps its weight as (in, out), the transpose of torch's Linear);
`modeling_flax_gpt2.py`, where `FlaxConv1D` declares `kernel` as (features, in) and transposes it at use, so that a Flax
kernel is the transpose of torch's here too, the square `attn.c_proj` included; Microsoft's
`gpt2_training/train_utils.py` for `module.` and `lm_head.decoder.weight`; golsun/DialogRPT's `src/model.py` for `score`.
"""

import dataclasses
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.convert.int8_names import Scaling, put_together, take_apart
from dialogpt_jax.convert.names import (
    EMBEDDING,
    HEAD,
    MappingError,
    Tensors,
    WeightsWarning,
    by_kind,
    count_differences,
    count_layers,
    normalise,
    same_bits,
)
from dialogpt_jax.errors import counted, escape_controls
from dialogpt_jax.int8 import Int8Weight, is_int8

# Hugging Face's name | our path | the pattern. {i} stands for each layer.
TABLE = (
    ("transformer.wte.weight", "wte.embedding", "V D -> V D"),
    ("transformer.wpe.weight", "wpe.embedding", "P D -> P D"),
    ("transformer.h.{i}.ln_1.weight", "h_{i}.ln_1.scale", "D -> D"),
    ("transformer.h.{i}.ln_1.bias", "h_{i}.ln_1.bias", "D -> D"),
    ("transformer.h.{i}.attn.c_attn.weight", "h_{i}.attn.c_attn.kernel", "D (3 H K) -> 3 H K D"),
    ("transformer.h.{i}.attn.c_attn.bias", "h_{i}.attn.c_attn.bias", "(3 H K) -> 3 H K"),
    ("transformer.h.{i}.attn.c_proj.weight", "h_{i}.attn.c_proj.kernel", "(H K) D -> D H K"),
    ("transformer.h.{i}.attn.c_proj.bias", "h_{i}.attn.c_proj.bias", "D -> D"),
    ("transformer.h.{i}.ln_2.weight", "h_{i}.ln_2.scale", "D -> D"),
    ("transformer.h.{i}.ln_2.bias", "h_{i}.ln_2.bias", "D -> D"),
    ("transformer.h.{i}.mlp.c_fc.weight", "h_{i}.mlp.c_fc.kernel", "D F -> F D"),
    ("transformer.h.{i}.mlp.c_fc.bias", "h_{i}.mlp.c_fc.bias", "F -> F"),
    ("transformer.h.{i}.mlp.c_proj.weight", "h_{i}.mlp.c_proj.kernel", "F D -> D F"),
    ("transformer.h.{i}.mlp.c_proj.bias", "h_{i}.mlp.c_proj.bias", "D -> D"),
    ("transformer.ln_f.weight", "ln_f.scale", "D -> D"),
    ("transformer.ln_f.bias", "ln_f.bias", "D -> D"),
    ("lm_head.weight", "lm_head.kernel", "V D -> V D"),
    ("score.weight", "score.kernel", "1 D -> 1 D"),  # of a ranker, which has no head
)
SCORE = "score.weight"

_TENSORS_A_LAYER = sum("{i}" in name for name, *_ in TABLE)
_IN_8_BITS = " as int8_values, int8_scales and int8_factors"
MOST_LINES = 1000  # of a difference that an error shows; GPT-2 XL has 581 tensors


class NonFiniteWeights(WeightsWarning):
    """Weights hold NaN or infinity, or do so after a cast."""


class UntiedHead(WeightsWarning):
    """The config says that the head is the token embedding, and the file holds another one."""


class Row(NamedTuple):
    """A row of `TABLE` for one layer of one config: both names, both shapes, and the way between them."""

    name: str
    path: tuple[str, ...]
    shape: tuple[int, ...]  # theirs
    split: tuple[int, ...]  # theirs, a size per letter
    order: tuple[int, ...]  # our axes among the letters
    vocabulary: bool  # the first axis is V

    def to_ours(self, array: np.ndarray, padded: int) -> np.ndarray:
        ours = array.reshape(self.split).transpose(self.order)
        if self.vocabulary:
            pad = np.zeros((padded - ours.shape[0], *ours.shape[1:]), ours.dtype)
            ours = np.concatenate([ours, pad])
        return ours

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        if self.vocabulary:
            array = array[: self.shape[0]]
        theirs = array.transpose(np.argsort(self.order)).reshape(self.shape)
        return np.ascontiguousarray(theirs)  # writers save the buffer: a transposed view would come out scrambled

    def our_shape(self, padded: int) -> tuple[int, ...]:
        shape = tuple(self.split[axis] for axis in self.order)
        return (padded, *shape[1:]) if self.vocabulary else shape


@dataclasses.dataclass(frozen=True)
class MappingReport:
    """What `to_params` did on the way.

    Attributes:
      config: the one that fits the tensors: as given, but `tie_word_embeddings` is false where the file's head differs.
      renamed: (name in the file, name in the table).
      dropped: (name in the file, why).
      transposed: names in the table whose axes were reordered.
      nonfinite: (name in the table, number of NaN or infinite values).
      untied: the config said that the head is tied and the file's is another.
    """

    config: GPT2Config
    renamed: tuple[tuple[str, str], ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()
    transposed: tuple[str, ...] = ()
    nonfinite: tuple[tuple[str, int], ...] = ()
    untied: bool = False

    def lines(self) -> list[str]:
        """For a person: alike names together, the layers' numbers as `*`."""
        out = by_kind(f"renamed  {old} -> {new}" for old, new in self.renamed)
        out += by_kind(f"dropped  {name} ({why})" for name, why in self.dropped)
        out += by_kind(f"transposed  {name}" for name in self.transposed)
        out += [f"not finite  {name}: {count} values" for name, count in self.nonfinite]
        if self.untied:
            out.append("head  lm_head.weight differs from the token embedding: kept, tie_word_embeddings is now false")
        return [escape_controls(line, keep="") for line in out]


def rows(config: GPT2Config) -> list[Row]:
    """The table written out, in the order of the network: a row per tensor, `lm_head` only where it is separate."""
    sizes = {"V": config.vocab_size, "P": config.n_positions, "D": config.n_embd, "F": config.mlp_dim}
    sizes |= {"1": 1, "3": 3, "H": config.n_head, "K": config.head_dim}
    block = [index for index, (name, *_) in enumerate(TABLE) if "{i}" in name]
    absent = {SCORE, HEAD} if config.tie_word_embeddings else {SCORE}
    before = TABLE[: block[0]]
    after = [row for row in TABLE[block[-1] + 1 :] if row[0] not in absent]
    out = [_row(row, 0, sizes) for row in before]
    out += [_row(TABLE[index], layer, sizes) for layer in range(config.n_layer) for index in block]
    return out + [_row(row, 0, sizes) for row in after]


def ranker_rows(config: GPT2Config) -> list[Row]:
    """The table of a ranker: no head, and the scoring row."""
    score = next(row for row in TABLE if row[0] == SCORE)
    return [*rows(dataclasses.replace(config, tie_word_embeddings=True)), _row(score, 0, {"1": 1, "D": config.n_embd})]


def is_ranker(tensors: Tensors) -> bool:
    """Whether a file has a scoring row, whatever wrapped its names."""
    return SCORE in normalise({name: array for name, array in tensors.items() if name.endswith(SCORE)}).tensors


def _row(row: tuple[str, str, str], layer: int, sizes: Mapping[str, int]) -> Row:
    name, path, pattern = row
    theirs, ours = pattern.split(" -> ")
    groups = [(inner or single).split() for inner, single in re.findall(r"\(([^)]*)\)|(\S+)", theirs)]
    letters = [letter for group in groups for letter in group]
    return Row(
        name.format(i=layer),
        tuple(path.format(i=layer).split(".")),
        shape=tuple(math.prod(sizes[letter] for letter in group) for group in groups),
        split=tuple(sizes[letter] for letter in letters),
        order=tuple(letters.index(letter) for letter in ours.split()),
        vocabulary=letters[0] == "V",
    )


def to_params(tensors: Tensors, config: GPT2Config) -> tuple[dict[str, Any], MappingReport]:
    """A weight file's tensors → our parameters (NumPy, the file's dtypes), and what was done.

    A head that equals the token embedding bit for bit is tied and dropped. One that differs is kept, and the report's
    config says so: the tensors decide. Use `report.config` from here on. With `tie_word_embeddings` false in `config`,
    an equal head stays separate.

    Warns:
      NonFiniteWeights: NaN or infinity in a tensor.
      UntiedHead: `config` says that the head is tied and it differs.

    Raises:
      MappingError: names that are unknown, missing, misshapen or not floating point; all of them in one message.
    """
    plain, scaling = take_apart(tensors)
    found, renamed, dropped = normalise(plain)
    origins = {new: old for old, new in renamed}
    untied = False
    if config.tie_word_embeddings and HEAD in found and not scaling:
        if EMBEDDING in found and same_bits(found[HEAD], found[EMBEDDING]):
            dropped = (*dropped, (origins.get(HEAD, HEAD), "tied: equal to the token embedding"))
            renamed = tuple(pair for pair in renamed if pair[1] != HEAD)
            del found[HEAD]
        else:
            config, untied = dataclasses.replace(config, tie_word_embeddings=False), True
    _check_layers(found, config)
    table = _rows_of(config, bool(scaling))
    _check_tensors(found, scaling, table, config)
    if untied:
        warnings.warn(
            f"{HEAD} differs from the token embedding in {count_differences(found[HEAD], found[EMBEDDING])} of "
            f"{found[HEAD].size} values, and the config says that they are one (tie_word_embeddings): kept as a separate "
            "head, which other programs ignore",
            UntiedHead,
            stacklevel=2,
        )

    params, nonfinite = _apply(table, found, scaling, config)
    return params, MappingReport(config, renamed, dropped, _transposed(table), nonfinite, untied)


def to_ranker_params(tensors: Tensors, config: GPT2Config) -> tuple[dict[str, Any], MappingReport]:
    """`to_params` of a ranker's file: the parameters of a GPT-2 without a head, and beside them the scoring row.

        {"wte": …, "h_0": …, "ln_f": …, "score": {"kernel": (1, D)}}

    A head of a language model that is in the file is dropped, and the report says so.

    Warns:
      NonFiniteWeights: NaN or infinity in a tensor.

    Raises:
      MappingError: as `to_params`, where there is no scoring row, or one of several classes, too.
    """
    config = dataclasses.replace(config, tie_word_embeddings=True)
    found, renamed, dropped = normalise(tensors)
    if found.pop(HEAD, None) is not None:
        dropped = (*dropped, (HEAD, "a ranker scores, and has no head"))
    _check_layers(found, config)
    table = ranker_rows(config)
    _check_tensors(found, {}, table, config)
    params, nonfinite = _apply(table, found, {}, config)
    return params, MappingReport(config, renamed, dropped, _transposed(table), nonfinite)


def _check_layers(found: Tensors, config: GPT2Config) -> None:
    """Before anything of that size is laid out."""
    if config.n_layer * _TENSORS_A_LAYER > 2 * len(found):
        raise MappingError(
            f"the config has n_layer {config.n_layer}, and the file has {counted(count_layers(found), 'layers')} "
            f"({counted(len(found), 'tensors')}): the config is another model's, or damaged"
        )


def _check_tensors(found: Tensors, scaling: Mapping[str, Scaling], table: list[Row], config: GPT2Config) -> None:
    expected = {row.name: _wanted(row, row.shape, bool(scaling)) for row in table}
    _compare(expected, {name: _described(array, name in scaling) for name, array in found.items()}, config)


def _apply(
    table: list[Row], found: Tensors, scaling: Mapping[str, Scaling], config: GPT2Config
) -> tuple[dict[str, Any], tuple[tuple[str, int], ...]]:
    """Parameters of tensors that fit the table, and how many values of which are not finite."""
    params: dict[str, Any] = {}
    nonfinite = []
    for row in table:
        array = found[row.name]
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        ours: Any = row.to_ours(array, config.padded_vocab_size)
        if row.name in scaling:
            scales, factors = scaling[row.name]
            bad = sum(x.size - int(np.count_nonzero(np.isfinite(x))) for x in (scales, factors))
            ours = _int8_weight(row, ours, scales, factors)
        if bad:
            nonfinite.append((row.name, bad))
        _put(params, row.path, ours)
    if nonfinite:
        names = ", ".join(name for name, _ in nonfinite[:3]) + (", …" if len(nonfinite) > 3 else "")
        said = counted(sum(count for _, count in nonfinite), "weights", ("is", "are"))
        warnings.warn(f"{said} NaN or infinite, in {names}", NonFiniteWeights, stacklevel=3)
    return params, tuple(nonfinite)


def _transposed(table: list[Row]) -> tuple[str, ...]:
    return tuple(row.name for row in table if row.order != tuple(range(len(row.order))))


def from_params(params: Mapping[str, Any], config: GPT2Config) -> dict[str, np.ndarray]:
    """Our parameters → contiguous NumPy arrays under Hugging Face's names, the vocabulary's pad gone; int8 ones under ours.

    The inverse of `to_params` and `to_ranker_params`, bit for bit. The head is written where it is separate, the scoring
    row where there is one.

    Raises:
      MappingError: parameters that are not this config's.
    """
    table = ranker_rows(config) if "score" in params else _rows_of(config, is_int8(params))
    leaves = {".".join(path): leaf for path, leaf in _flatten(params)}
    weights = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Int8Weight)}
    ours = {name: np.asarray(weights[name].values if name in weights else leaf) for name, leaf in leaves.items()}
    shapes = {".".join(row.path): row.our_shape(config.padded_vocab_size) for row in table}
    expected = {".".join(row.path): _wanted(row, shapes[".".join(row.path)], bool(weights)) for row in table}
    _compare(expected, {name: _described(array, name in weights) for name, array in ours.items()}, config)
    out: dict[str, np.ndarray] = {}
    for row in table:
        name = ".".join(row.path)
        theirs = row.to_theirs(ours[name])
        if name in weights:
            scales, factors = np.asarray(weights[name].scales), np.asarray(weights[name].factors)
            _check_scaling(name, scales, factors, shapes[name])
            scales = scales[: row.shape[0]] if row.vocabulary else scales
            out |= put_together(row.name, theirs, Scaling(scales, factors))
        else:
            out[row.name] = theirs
    return out


def _rows_of(config: GPT2Config, int8: bool) -> list[Row]:
    """The table of a model; an int8 one has a head of its own always."""
    return rows(dataclasses.replace(config, tie_word_embeddings=False) if int8 else config)


def _int8_weight(row: Row, values: np.ndarray, scales: np.ndarray, factors: np.ndarray) -> Int8Weight:
    _check_scaling(row.name, scales, factors, row.our_shape(row.shape[0]))
    if (scales < 0).any() or (factors <= 0).any() or values[: len(scales)][scales == 0].any():
        raise MappingError(
            f"{row.name} has int8_scales under 0, or of 0 where its int8_values are not, or int8_factors of 0 or less; "
            "the file is damaged: copy it again, or make it anew of the float model"
        )
    if row.vocabulary:
        scales = np.pad(scales, (0, values.shape[0] - len(scales)))
    return Int8Weight(values, scales, factors)


def _check_scaling(name: str, scales: np.ndarray, factors: np.ndarray, shape: tuple[int, ...]) -> None:
    if (*scales.shape, *factors.shape) != shape:
        raise MappingError(
            f"{name} has int8_scales of shape {scales.shape} and int8_factors {factors.shape}; one behind the other "
            f"they must be {shape}"
        )


def _wanted(row: Row, shape: tuple[int, ...], int8: bool) -> str:
    """What `_described` says of a tensor that is right: in an int8 model all kernels have 8 bits, and nothing else."""
    return f"{shape}{_IN_8_BITS if int8 and row.path[-1] == 'kernel' else ''}"


def _described(array: np.ndarray, int8: bool) -> str:
    """The shape, whether it has a scaling, and the dtype where it is not what is expected of it."""
    floating = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    kind = _IN_8_BITS if int8 else "" if floating else f" {array.dtype.name}"
    return f"{array.shape}{kind}"


def _compare(expected: Mapping[str, str], found: Mapping[str, str], config: GPT2Config) -> None:
    if expected == found:
        return
    lines, wrong = [], 0
    for name in (*expected, *(name for name in found if name not in expected)):
        want, have = expected.get(name), found.get(name)
        if want != have:
            wrong += 1
            lines += [] if want is None else [f"- {name} {want}"]
            lines += [] if have is None else [f"+ {name} {have}"]
    summary = (
        f"{counted(wrong, 'tensors', ('differs', 'differ'))} from the config (n_layer {config.n_layer}, n_embd "
        f"{config.n_embd}, n_head {config.n_head}, vocab_size {config.vocab_size}, n_positions {config.n_positions}); "
        "- expected, + found:"
    )
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], f"… and {counted(len(lines) - MOST_LINES, 'lines')} more"]
    raise MappingError("\n".join([summary, *(escape_controls(line, keep="") for line in lines)]))


def _put(tree: dict[str, Any], path: tuple[str, ...], leaf: np.ndarray) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = leaf


def _flatten(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any]]:
    for name, child in tree.items():
        if isinstance(child, Mapping):
            yield from _flatten(child, (*path, name))
        else:
            yield (*path, name), child
