"""What a conversion starts from: a file, a directory or a name in; parameters, config, tokenizer and a report out.

A directory or a model on the Hub brings all three. A bare weight file brings its tensors; the config then comes from a
given file, from a `config.json` beside it, or from the shapes, and the tokenizer from where the user says. The number of
heads is not in the shapes: it is given, or read in the `config.json` beside the tokenizer, or GPT-2's. What such a source
is, without converting it, is told here too.
"""

import dataclasses
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from dialogpt_jax.config import CONFIG_FILE, GPT2Config
from dialogpt_jax.convert.doctor import Findings, inspect
from dialogpt_jax.convert.infer import GPT2_HEAD_DIM, infer_config
from dialogpt_jax.convert.int8_names import take_apart
from dialogpt_jax.convert.mapping import MappingReport, is_ranker, to_params, to_ranker_params
from dialogpt_jax.convert.names import MappingError, Tensors
from dialogpt_jax.convert.read import read
from dialogpt_jax.text.tokenizer import JSON_FILE, MERGES_FILE, VOCAB_FILE, Tokenizer, TokenizerError
from dialogpt_jax.weights import hub
from dialogpt_jax.weights.directory import find_weights, read_config_file

AnyPath = str | PathLike[str]


class ConvertError(ValueError):
    """A conversion that lacks something; the message says how to give it."""


class Source(NamedTuple):
    """A model as it was found.

    Attributes:
      params: NumPy arrays in our layout, in the file's dtypes; with a scoring row, `score`, where it is a ranker.
      config: the one that fits the tensors.
      tokenizer: `None` where there is none and none was given.
      report: what the mapping did.
      origin: the file, its format, and where the config is from, a line each.
    """

    params: dict[str, Any]
    config: GPT2Config
    tokenizer: Tokenizer | None
    report: MappingReport
    origin: tuple[str, ...]


def open_source(
    path: AnyPath,
    *,
    config: AnyPath | None = None,
    heads: int | None = None,
    tokenizer: AnyPath | None = None,
    revision: str | None = None,
) -> Source:
    """Reads what is to be converted.

    Args:
      path: a weight file, a model directory, or a name on the Hub.
      config: a `config.json`; it goes before the one that stands beside the weights.
      heads: the number of attention heads of a file without a config.
      tokenizer: a directory with tokenizer files, or a name on the Hub; it goes before the source's own. Where the
        weights have no config, the one in this directory counts as far as it fits the shapes.
      revision: a branch, tag or commit, where `path` is a name.

    Warns:
      WeightsWarning: guessed heads, an untied head, NaN or infinity.

    Raises:
      ValueError: unreadable files (`ReadError`, `ConfigError`, `TokenizerError`), tensors that do not fit
        (`MappingError`), a tokenizer with more ids than the model has, or heads that a config contradicts
        (`ConvertError`), no such name (`HubError`).
      OSError: no such path.
    """
    place = hub.resolve(path, revision=revision)
    weights = find_weights(place) if place.is_dir() else place
    beside = weights.parent / CONFIG_FILE
    given = config if config is not None else beside if place.is_dir() or beside.is_file() else None
    text_folder = None if tokenizer is None else hub.resolve_tokenizer(tokenizer)
    text = _find_tokenizer(weights.parent) if text_folder is None else Tokenizer.load(text_folder)
    found = read(weights)
    try:
        if given is not None:
            chosen, told = _read_config(given, heads), f"config from {given}"
        else:
            chosen, told = _fit_config(found.tensors, heads, text, text_folder)
        to_ours = to_ranker_params if is_ranker(found.tensors) else to_params
        params, report = to_ours(found.tensors, chosen)
    except MappingError as error:
        raise MappingError(f"{weights}: {error}") from None
    if text is not None and text.vocab_size > report.config.vocab_size:
        raise ConvertError(
            f"the tokenizer has {text.vocab_size} ids and the model {report.config.vocab_size}: it is another model's"
        )
    return Source(params, report.config, text, report, (f"{weights} ({found.format})", told))


def _read_config(file: AnyPath, heads: int | None) -> GPT2Config:
    config = read_config_file(file)
    if heads is not None and heads != config.n_head:
        raise ConvertError(
            f"{file} says {config.n_head} heads, and --heads says {heads}; correct the one that is wrong"
        )
    return config


def _fit_config(
    tensors: Tensors, heads: int | None, text: Tokenizer | None, text_folder: Path | None
) -> tuple[GPT2Config, str]:
    """The config of a bare file, and a line that says where it is from."""
    there, weights = None if text_folder is None else _config_in(text_folder), take_apart(tensors)[0]
    if there is not None:
        seen = infer_config(weights, n_head=1)  # a head that divides any width: only the shapes are asked
        if (there.n_layer, there.n_embd) == (seen.n_layer, seen.n_embd):
            seen = dataclasses.replace(seen, n_head=there.n_head if heads is None else heads)
            if _shapes(there) != _shapes(seen):
                return _with_end(seen, text), f"config from the shapes; {seen.n_head} heads, as in {text_folder}"
            tied = there.tie_word_embeddings or seen.tie_word_embeddings
            whole = dataclasses.replace(there, n_head=seen.n_head, tie_word_embeddings=tied)
            return whole, f"config from {text_folder}; {seen.n_head} heads"
    inferred = infer_config(weights, n_head=heads)
    said = "as given" if heads is not None else f"of {GPT2_HEAD_DIM} dimensions as in GPT-2"
    return _with_end(inferred, text), f"config from the shapes; {inferred.n_head} heads, {said}"


def _config_in(folder: Path) -> GPT2Config | None:
    """The config beside a tokenizer, where there is one and it is a GPT-2's."""
    try:
        return read_config_file(folder / CONFIG_FILE)
    except ValueError:
        return None


def _shapes(config: GPT2Config) -> tuple[int, ...]:
    return config.n_layer, config.n_embd, config.mlp_dim, config.n_positions, config.vocab_size


def _with_end(config: GPT2Config, text: Tokenizer | None) -> GPT2Config:
    """The tokenizer's end of text as the model's, where it has it: the shapes do not tell."""
    end = None if text is None else text.end_of_text_id
    return config if end is None or end >= config.vocab_size else dataclasses.replace(config, eos_token_id=end)


def need_tokenizer(source: Source, path: AnyPath) -> Tokenizer:
    """The source's tokenizer.

    Raises:
      ConvertError: it has none; the message says how to give one.
    """
    if source.tokenizer is None:
        raise ConvertError(
            f"{path} has no tokenizer: add --tokenizer with a directory that holds tokenizer.json, or vocab.json and "
            "merges.txt, or with a name on the Hub, such as --tokenizer microsoft/DialoGPT-small"
        )
    return source.tokenizer


def inspect_source(path: AnyPath, *, revision: str | None = None) -> Findings:
    """What a weight file, a model directory or a model on the Hub is, held against its config where it has one.

    Raises:
      ValueError: it cannot be read (`ReadError`, `ConfigError`), or there is no such name (`HubError`).
      OSError: no such path.
    """
    place = hub.resolve(path, revision=revision)
    if place.is_dir():
        return inspect(find_weights(place), config=read_config_file(place / CONFIG_FILE), name=str(path))
    beside = place.parent / CONFIG_FILE
    return inspect(place, config=read_config_file(beside) if beside.is_file() else None)


def _find_tokenizer(folder: Path) -> Tokenizer | None:
    try:
        return Tokenizer.load(folder)
    except TokenizerError:
        if any((folder / name).exists() for name in (JSON_FILE, VOCAB_FILE, MERGES_FILE)):
            raise  # it is there and broken
        return None
