"""What a conversion starts from: a file, a directory or a name in; parameters, config, tokenizer and a report out.

A directory or a model on the Hub brings all three. A bare weight file brings its tensors; the config then comes from a
given file, from a `config.json` beside it, or from the shapes, and the tokenizer from where the user says.
"""

import dataclasses
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.convert.mapping import GPT2_HEAD_DIM, MappingError, MappingReport, infer_config, to_params
from dialogpt_jax.convert.read import read
from dialogpt_jax.text.tokenizer import Tokenizer, TokenizerError
from dialogpt_jax.weights import hub
from dialogpt_jax.weights.directory import CONFIG_FILE, find_weights, read_config_file


class ConvertError(ValueError):
    """A conversion that lacks something; the message says how to give it."""


class Source(NamedTuple):
    """A model as it was found.

    Attributes:
      params: NumPy arrays in our layout, in the file's dtypes.
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
    path: str | PathLike[str],
    *,
    config: str | PathLike[str] | None = None,
    tokenizer: str | PathLike[str] | None = None,
    revision: str | None = None,
) -> Source:
    """Reads what is to be converted.

    Args:
      path: a weight file, a model directory, or a name on the Hub.
      config: a `config.json`; it goes before the one that stands beside the weights.
      tokenizer: a directory with tokenizer files, or a name on the Hub; it goes before the source's own.
      revision: a branch, tag or commit, where `path` is a name.

    Raises:
      ValueError: unreadable files (`ReadError`, `ConfigError`, `TokenizerError`), tensors that do not fit
        (`MappingError`), a tokenizer with more ids than the model has (`ConvertError`), no such name (`HubError`).
      OSError: no such path.
    """
    place = hub.resolve(path, revision=revision)
    weights = find_weights(place) if place.is_dir() else place
    found = read(weights)
    beside = weights.parent / CONFIG_FILE
    given = config if config is not None else beside if place.is_dir() or beside.is_file() else None
    try:
        guess = infer_config(found.tensors) if given is None else read_config_file(given)
        params, report = to_params(found.tensors, guess)
    except MappingError as error:
        raise MappingError(f"{weights}: {error}") from None
    model, text = report.config, _find_tokenizer(weights.parent, tokenizer)
    if found is not None and found.vocab_size > model.vocab_size:
        raise ConvertError(
            f"the tokenizer has {found.vocab_size} ids and the model {model.vocab_size}: it is another model's"
        )
    if given is not None:
        told = f"config from {given}"
    else:
        told = f"config from the shapes; {model.n_head} heads, of {GPT2_HEAD_DIM} dimensions as in GPT-2"
        if found is not None and found.end_of_text_id is not None:
            model = dataclasses.replace(model, eos_token_id=found.end_of_text_id)
    return Source(params, model, found, report, (f"{weights} ({found.format})", told))


def need_tokenizer(source: Source, path: str | PathLike[str]) -> Tokenizer:
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


def _find_tokenizer(beside: Path, given: str | PathLike[str] | None) -> Tokenizer | None:
    if given is not None:
        return Tokenizer.load(hub.resolve_tokenizer(given))
    try:
        return Tokenizer.load(beside)
    except TokenizerError:
        if any((beside / name).exists() for name in hub.TOKENIZER_FILES[:3]):
            raise  # it is there and broken
        return None
