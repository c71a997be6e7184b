"""What is this file? A weight file or model directory in; what it is, judged by its contents, out.

Names lie: Microsoft's DSTC `medium_ft.pkl` holds the small model, and `small_reverse.pkl` the 345M one. So the variant
is read from the shapes, and a name that says something else is a warning. Which way a model reads a dialogue (forward,
or reverse for MMI) cannot be told from the shapes: that takes scoring dialogues both ways.
"""

import collections
import dataclasses
import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.convert.infer import GPT2_HEAD_DIM, RELEASED, infer_config
from dialogpt_jax.convert.int8_names import take_apart
from dialogpt_jax.convert.mapping import SCORE, to_params, to_ranker_params
from dialogpt_jax.convert.names import (
    EMBEDDING,
    HEAD,
    MappingError,
    Tensors,
    WeightsWarning,
    by_kind,
    count_differences,
    normalise,
    same_bits,
)
from dialogpt_jax.convert.read import read
from dialogpt_jax.errors import counted, escape_controls

# Variant → its size in a name, and the words by which file names mean it.
VARIANTS = {
    "small": ("117M", r"small|117m|124m"),
    "medium": ("345M", r"medium|345m|355m"),
    "large": ("762M", r"large|762m|774m"),
    "GPT-2 XL": ("1542M", r"(?<![a-z])xl(?![a-z])|1542m|1558m|1\.5b"),
}
# Bytes of all tensors: 2·P + 2·L·1024² + 2·V·D for Microsoft's files, 4·P + 4·D + 4·L·1024² for DialogRPT's.
PUBLISHED_BYTES = {
    351_240_192: "Microsoft's half-precision small",
    862_904_320: "Microsoft's half-precision medium",
    1_752_215_552: "Microsoft's half-precision large",
    1_519_960_064: "DialogRPT's .pth",
}
MISLABELLED = {  # (in the file's name, variant by its shapes) → what is known about it
    ("medium_ft", "small"): "Microsoft's DSTC medium_ft.pkl is known to hold the small model",
    ("small_reverse", "medium"): "Microsoft's 345M reverse model is known to be published as small_reverse.pkl",
    ("large", "GPT-2 XL"): "one of Microsoft's configs for large had the sizes of the 1542M model",
}


@dataclasses.dataclass(frozen=True)
class File:
    """A file on disk: name, bytes, SHA-256 in hex."""

    name: str
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a weight file is; `None` where it is no GPT-2.

    Attributes:
      path: what was looked at.
      kind: "GPT-2 language model", "DialogRPT ranker" or "not a GPT-2".
      format: of the file, as the reader names it.
      files: the weight files.
      tensors, tensor_bytes: their number and the sum of their sizes.
      dtypes: tensors of each dtype.
      variant: "small", "medium", "large", "GPT-2 XL" or "other", from the shapes.
      parameters: a tied head counted once, buffers not at all.
      layers, width, heads, mlp, positions, vocabulary: the sizes.
      heads_known: `heads` is from a config.json; otherwise a head is taken to have GPT-2's 64 dimensions, and `heads`
        is `None` where 64 does not divide the width.
      head: "tied", "separate" or "separate, equal to the token embedding"; of a ranker, "a scoring row".
      zero_rows: zero rows at the end of the token embedding: a padded vocabulary.
      changes: renames and drops on the way to Hugging Face's names, alike ones together.
      nonfinite: number of NaN and infinite weights.
      warnings: what a user should know before using it.
    """

    path: str
    kind: str
    format: str
    files: tuple[File, ...]
    tensors: int
    tensor_bytes: int
    dtypes: Mapping[str, int]
    variant: str | None = None
    parameters: int | None = None
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    mlp: int | None = None
    positions: int | None = None
    vocabulary: int | None = None
    heads_known: bool = False
    head: str | None = None
    zero_rows: int = 0
    changes: tuple[str, ...] = ()
    nonfinite: int = 0
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def inspect(path: str | PathLike[str], *, config: GPT2Config | None = None, name: str | None = None) -> Findings:
    """Looks into a weight file.

    Args:
      path: a weight file in any format that `read` reads, or the index of a sharded one.
      config: of the directory that it stands in, where there is one: the tensors are held against it.
      name: by which the user knows it, if that is not the path: a directory, a name on the Hub.

    Raises:
      ReadError: it cannot be read.
    """
    path = Path(path)
    found = read(path)
    files = tuple(_hash_file(file) for file in _list_files(path))
    plain = Findings(
        path=str(path) if name is None else name,
        kind="not a GPT-2",
        format=found.format,
        files=files,
        tensors=len(found.tensors),
        tensor_bytes=sum(array.nbytes for array in found.tensors.values()),
        dtypes=dict(collections.Counter(array.dtype.name for array in found.tensors.values())),
    )
    return _judge(plain, found.tensors, config)


def _judge(plain: Findings, tensors: Tensors, config: GPT2Config | None) -> Findings:
    try:
        weights, scaling = take_apart(tensors)
        found, renamed, dropped = normalise(weights)
        if scaling and config is not None and config.tie_word_embeddings:
            found.pop(HEAD, None)  # of an int8 model, which has one always
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", WeightsWarning)  # the findings say the same
            guess = infer_config(found, n_head=_heads(found, config))
    except (MappingError, ValueError) as error:  # a config that no GPT-2 has is a ValueError
        return dataclasses.replace(plain, warnings=(str(error),))
    variant = RELEASED.get((guess.n_layer, guess.n_embd), "other")
    nonfinite, misfits = _hold_to_config(tensors if scaling else found, guess if config is None else config)
    embedding, ranker = found[EMBEDDING], SCORE in found
    findings = dataclasses.replace(
        plain,
        kind="DialogRPT ranker" if ranker else "GPT-2 language model",
        variant=variant,
        parameters=guess.num_parameters + (guess.n_embd if ranker else 0),
        layers=guess.n_layer,
        width=guess.n_embd,
        heads=None if config is None and guess.n_embd % GPT2_HEAD_DIM else guess.n_head,
        mlp=guess.mlp_dim,
        positions=guess.n_positions,
        vocabulary=guess.vocab_size,
        heads_known=config is not None,
        head="a scoring row" if ranker else _head(found),
        zero_rows=_zero_rows(embedding),
        changes=tuple(
            by_kind([f"renamed  {a} -> {b}" for a, b in renamed] + [f"dropped  {a} ({why})" for a, why in dropped])
        ),
        nonfinite=nonfinite,
    )
    untied = _untied(found) if config is not None and config.tie_word_embeddings else None
    return dataclasses.replace(findings, warnings=tuple(_warnings(findings, misfits, untied)))


def _heads(found: Tensors, config: GPT2Config | None) -> int | None:
    """What `infer_config` is told: the config's number, none where it can tell, and 1 where nobody can."""
    width = found[EMBEDDING].shape[-1] if EMBEDDING in found and found[EMBEDDING].ndim else 0
    if config is not None and width % config.n_head == 0:
        return config.n_head
    return 1 if width % GPT2_HEAD_DIM else None


def _hold_to_config(found: Tensors, config: GPT2Config) -> tuple[int, str | None]:
    """The number of weights that are not finite, and how the tensors differ from the config."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeightsWarning)  # the findings have them
        try:
            _, report = (to_ranker_params if SCORE in found else to_params)(found, config)
        except MappingError as error:
            return sum(_count_nonfinite(array) for array in found.values()), str(error)
    return sum(count for _, count in report.nonfinite), None


def _count_nonfinite(array: np.ndarray) -> int:
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        return 0
    return array.size - int(np.count_nonzero(np.isfinite(array)))


def _head(found: Tensors) -> str:
    if HEAD not in found:
        return "tied"
    equal = same_bits(found[HEAD], found[EMBEDDING])
    return "separate, equal to the token embedding" if equal else "separate"


def _untied(found: Tensors) -> str | None:
    """How the head differs from the token embedding, where a config says that they are one."""
    if HEAD not in found or found[HEAD].shape != found[EMBEDDING].shape or same_bits(found[HEAD], found[EMBEDDING]):
        return None
    count = count_differences(found[HEAD], found[EMBEDDING])
    return f"in {count} of {found[HEAD].size} values, though config.json says that they are one"


def _zero_rows(embedding: np.ndarray) -> int:
    used = np.flatnonzero(np.any(embedding != 0, axis=1))
    return embedding.shape[0] - (int(used[-1]) + 1 if used.size else 0)


def _warnings(findings: Findings, misfits: str | None, untied: str | None) -> list[str]:
    out = []
    named = _named_variant(findings.path)
    if named and findings.layers is not None and findings.variant != named:
        other = findings.variant == "other"
        name = Path(findings.path).name
        known = next(
            (why for (word, v), why in MISLABELLED.items() if word in name.lower() and v == findings.variant), ""
        )
        out.append(
            f"the name says {named}; the shapes are {'no released model' if other else findings.variant}'s "
            f"({counted(findings.layers, 'layers')}, width {findings.width})" + (f": {known}" if known else "")
        )
    if findings.nonfinite:
        out.append(f"{counted(findings.nonfinite, 'weights', ('is', 'are'))} NaN or infinite")
    if misfits:
        out.append(misfits)
    if findings.kind == "DialogRPT ranker":
        out.append("it scores replies and writes none: it has a scoring row and is no chat model")
    if findings.head == "separate" and findings.kind == "GPT-2 language model":
        how = f" {untied}" if untied else ""
        out.append(f"the head differs from the token embedding{how}; it is kept as a separate one")
    if not findings.heads_known and findings.heads and findings.variant == "other":
        out.append(
            f"the number of heads is a guess: {findings.heads}, of {GPT2_HEAD_DIM} dimensions as in GPT-2; `dialogpt "
            "convert` takes another one by --heads"
        )
    return out


def _named_variant(path: str) -> str | None:
    """The variant that a path's last two parts speak of, the file's own name first."""
    for part in reversed(Path(path).parts[-2:]):
        names = [variant for variant, (_, words) in VARIANTS.items() if re.search(words, part.lower())]
        if len(names) == 1:
            return names[0]
    return None


def _list_files(path: Path) -> list[Path]:
    """The file, or the shards that an index names; `read` has already checked that index."""
    if not path.name.endswith(".json"):
        return [path]
    shards = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    return [path.parent / shard for shard in sorted(shards)]


def _hash_file(file: Path) -> File:
    with file.open("rb") as stream:
        return File(file.name, file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


def describe_findings(findings: Findings) -> str:
    """The findings as text, a fact a line."""
    lines = [("what", findings.kind), ("format", findings.format)]
    for file in findings.files:
        lines.append(("file", f"{file.name}, {file.bytes:,} bytes"))
        lines.append(("SHA-256", file.sha256))
    dtypes = ", ".join(f"{name} × {count}" for name, count in findings.dtypes.items())
    lines.append(("tensors", f"{findings.tensors}, {findings.tensor_bytes:,} bytes ({dtypes})"))
    if findings.tensor_bytes in PUBLISHED_BYTES:
        lines.append(("size", f"exactly that of {PUBLISHED_BYTES[findings.tensor_bytes]}"))
    if findings.variant is not None:
        million = VARIANTS.get(findings.variant, ("", ""))[0]
        lines.append(("variant", f"{findings.variant}{f' ({million})' if million else ''}, from the shapes"))
        assumed = "" if findings.heads_known else f" (of {GPT2_HEAD_DIM} dimensions, as in GPT-2)"
        heads = f"{findings.heads} heads{assumed}" if findings.heads else "number of heads not in the shapes"
        lines.append(("sizes", f"{findings.layers} layers, width {findings.width}, MLP {findings.mlp}, {heads}"))
        lines.append(("text", f"{findings.positions} positions, {findings.vocabulary:,} token ids"))
        lines.append(("parameters", f"{findings.parameters:,}"))
        lines.append(("head", str(findings.head)))
        if findings.kind == "GPT-2 language model":
            lines.append(("direction", "not told by the file: a model and its backward (MMI) one have the same shapes"))
    if findings.zero_rows:
        lines.append(("padding", f"{findings.zero_rows} zero rows at the end of the token embedding"))
    lines += [("name", escape_controls(change, keep="")) for change in findings.changes]
    lines += [("warning", warning) for warning in findings.warnings]
    return "\n".join(f"{label:<12}{text}" for label, text in lines)
