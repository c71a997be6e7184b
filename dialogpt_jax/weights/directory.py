"""A model directory in and out: Hugging Face's layout, so that transformers and CTranslate2 read what this writes.

    config.json, a weight file ─load_params→ params, config
    params, config, tokenizer ─write_directory→ config.json, model.safetensors, tokenizer files

A directory is written beside its place and moved there when it is whole: nobody sees half of one. Of several processes
that write one directory each waits until the one before has moved its own there; the last one stays.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from dialogpt_jax.arguments import as_path, as_whole_number, shown
from dialogpt_jax.config import CONFIG_FILE, ConfigError, GPT2Config
from dialogpt_jax.convert.int8_names import QUANTIZATION, take_apart
from dialogpt_jax.convert.mapping import (
    SCORE,
    MappingError,
    MappingReport,
    from_params,
    is_ranker,
    to_params,
    to_ranker_params,
)
from dialogpt_jax.convert.read import read
from dialogpt_jax.errors import escape_controls
from dialogpt_jax.int8 import is_int8
from dialogpt_jax.text.lines import read_small_file
from dialogpt_jax.text.tokenizer import MERGES_FILE, VOCAB_FILE, Tokenizer
from dialogpt_jax.weights import hub
from dialogpt_jax.weights.dtypes import in_dtype, parse_dtype
from dialogpt_jax.weights.other_programs import tokenizer_config, warn_of_ignored
from dialogpt_jax.whole_writes import folder_beside, put_in_place

GENERATION_FILE, TOKENIZER_CONFIG_FILE = "generation_config.json", "tokenizer_config.json"
SAFETENSORS_FILE = "model.safetensors"
# The order in which weights are looked for: the safest and fastest to read first.
WEIGHT_FILES = tuple(file for file, _ in hub.WEIGHT_FORMS)
OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.pkl", "*.pt", "*.pth", "*.msgpack")
NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.bin", "scheduler.pt")
# What one write replaces in a directory that is already a model's; anything else in it is the user's and stays.
REPLACED_FILES: tuple[str, ...] = (
    CONFIG_FILE,
    GENERATION_FILE,
    "tokenizer*",
    VOCAB_FILE,
    MERGES_FILE,
    "special_tokens_map.json",
)
REPLACED_FILES += (
    "added_tokens.json",
    "chat_template.jinja",
    "model*.safetensors*",
    "pytorch_model*.bin*",
    "flax_model*.msgpack*",
    "tf_model.h5",
)
ONE_CLASS = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
MAX_SHARD_BYTES = 5_000_000_000  # transformers' own limit for a long time; larger files trouble some stores


class ModelDirectoryError(ValueError):
    """A directory that is not a model's, or a broken file in one; the message names it."""


def load_params(
    path: str | os.PathLike[str], dtype: Any = None, revision: str | None = None
) -> tuple[dict[str, Any], GPT2Config]:
    """Reads a model directory, or a model on the Hub: (params as jax arrays, config).

    Args:
      path: a directory with `config.json` and weights, or a name such as `microsoft/DialoGPT-small`.
      dtype: "float32", "bfloat16", "float16", "int8" or a numpy or jax dtype. `None` is float32, whatever the file holds,
        unless that is int8: the model computes in its parameters' dtype, and Microsoft's own files are half precision,
        meant to be trained in float32. In "int8" weights have 8 bits (for decoding, not for training).
      revision: a branch, tag or commit on the Hub.

    Warns:
      NonFiniteWeights: NaN or infinity among the weights.
      UntiedHead: the config says that the head is the token embedding, and the file has another one.

    Raises:
      ValueError: an unknown dtype; a broken or missing file (`ModelDirectoryError`, `ReadError`); a config that no
        GPT-2 has (`ConfigError`); tensors that do not fit it (`MappingError`); a name the Hub cannot give (`HubError`).

    Example:
      >>> bot.save("my_model")
      >>> params, config = dg.load_params("my_model", dtype="bfloat16")
      >>> config == bot.config
      True
    """
    wanted = None if dtype is None else parse_dtype(dtype)
    as_path("path", path)
    params, report = read_directory(hub.resolve(path, revision=revision))
    if wanted is None:
        wanted = np.dtype("int8" if is_int8(params) else "float32")
    return in_dtype(params, report.config, wanted), report.config


def load_ranker_params(
    path: str | os.PathLike[str], dtype: Any = None, revision: str | None = None
) -> tuple[dict[str, Any], GPT2Config]:
    """`load_params` of a ranker: the parameters of a GPT-2, and beside them its scoring row, `params["score"]`.

    Raises:
      ValueError: as `load_params`; a directory of a language model, which has no scoring row; int8.
    """
    wanted = parse_dtype("float32" if dtype is None else dtype)
    if wanted == np.int8:
        raise ValueError("dtype is int8, which a ranker has none of; take float32 or bfloat16")
    as_path("path", path)
    folder = hub.resolve(path, revision=revision)
    config, weights, tensors = _read(folder)
    if not is_ranker(tensors):
        raise ModelDirectoryError(
            f"{folder}: a language model and no ranker, for it has no {SCORE}; `dialogpt train --pairs FILE --init "
            f"{folder}` trains a ranker from it"
        )
    try:
        params, report = to_ranker_params(tensors, config)
    except MappingError as error:
        raise MappingError(f"{weights}: {error}") from None
    return in_dtype(params, report.config, wanted), report.config


def is_ranker_directory(folder: str | os.PathLike[str]) -> bool:
    """Whether a model directory is a ranker's, by its weights.

    Raises:
      ValueError: it is none; see `load_params`.
    """
    return is_ranker(_read(Path(folder))[2])


def read_directory(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], MappingReport]:
    """The NumPy parameters of a model directory in the file's dtypes, and the converter's report with the config.

    Raises:
      ValueError: see `load_params`.
    """
    config, weights, tensors = _read(Path(folder))
    if is_ranker(tensors):
        raise ModelDirectoryError(
            f"{folder}: a ranker, for it has {SCORE}: it scores replies and writes none; load it by `load_ranker`"
        )
    try:
        return to_params(tensors, config)
    except MappingError as error:
        raise MappingError(f"{weights}: {error}") from None


def _read(folder: Path) -> tuple[GPT2Config, Path, Mapping[str, np.ndarray]]:
    """The config of a model directory, its weight file, and what is in it."""
    if folder.is_file():
        raise ModelDirectoryError(
            f"{folder}: a file, where a model directory is wanted; `dialogpt convert {folder} DIR` makes one"
        )
    if not folder.is_dir():
        raise ModelDirectoryError(f"{folder}: no such directory")
    config, weights = read_config(folder), find_weights(folder)
    return config, weights, read(weights).tensors


def read_config(folder: str | os.PathLike[str]) -> GPT2Config:
    """The config in a model directory.

    Raises:
      ModelDirectoryError: no `config.json`, or not JSON.
      ConfigError: a field that no GPT-2 has.
    """
    return read_config_file(Path(folder) / CONFIG_FILE)


def read_config_file(file: str | os.PathLike[str]) -> GPT2Config:
    """`read_config` of a file under any name."""
    try:
        fields = json.loads(read_small_file(file))
    except FileNotFoundError:
        raise ModelDirectoryError(f"{file}: not found; a model directory has one") from None
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise ModelDirectoryError(f"{file}: not JSON ({error})") from None
    try:
        return GPT2Config.from_hf(fields)
    except (ConfigError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{file}: {error}") from None


def find_weights(folder: str | os.PathLike[str]) -> Path:
    """The weight file of a model directory: the first of `WEIGHT_FILES`, or the only other one.

    Raises:
      ModelDirectoryError: there is none, or several of unknown names.
    """
    folder = Path(folder)
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(file for pattern in OTHER_WEIGHTS for file in folder.glob(pattern) if file.name not in NOT_WEIGHTS)
    if len(others) == 1:
        return others[0]
    if others:
        names = escape_controls(", ".join(file.name for file in others), keep="")
        raise ModelDirectoryError(f"{folder}: which of these is the model? {names}; `dialogpt convert` takes one file")
    raise ModelDirectoryError(f"{folder}: no weights here; expected one of {', '.join(WEIGHT_FILES)}")


def write_directory(
    path: str | os.PathLike[str],
    params: Mapping[str, Any],
    config: GPT2Config,
    tokenizer: Tokenizer,
    *,
    dtype: Any = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Writes a model directory, whole or not at all, and returns its path.

    Files: `config.json`, `generation_config.json`, `model.safetensors` (or shards of at most `max_shard_bytes` and
    their index), `tokenizer.json`, `vocab.json`, `merges.txt`, `tokenizer_config.json`.

    Args:
      path: a directory that does not exist, is empty, or is a model directory: then its model is replaced and other
        files in it stay. While another process moves one there, this one waits; the last one stays.
      params: the model's parameters.
      config: its sizes.
      tokenizer: its tokenizer.
      dtype: of the weights in the file, as for `load_params`; `None` keeps the parameters' own.
      max_shard_bytes: the size over which weights are split into several files.

    Warns:
      ExportWarning: CTranslate2 would compute another model from it.

    Raises:
      ModelDirectoryError: `path` holds something else.
      MappingError: the parameters are not the config's.
      OSError: it cannot be written. What was there before is still there.

    Example:
      >>> folder = dg.write_directory("my_model", bot.params, bot.config, bot.tokenizer, dtype="float16")
      >>> (folder / "model.safetensors").is_file()
      True
    """
    target = as_path("path", path).expanduser().resolve()
    if not isinstance(params, Mapping):
        raise TypeError(f"params is {shown(params)}; give the parameters, such as `bot.params`")
    if not isinstance(config, GPT2Config):
        raise TypeError(f"config is {shown(config)}; give the GPT2Config of the parameters")
    if not isinstance(tokenizer, Tokenizer):
        raise TypeError(f"tokenizer is {shown(tokenizer)}; give the model's Tokenizer")
    max_shard_bytes = as_whole_number("max_shard_bytes", max_shard_bytes, least=1)
    check_target(target)
    warn_of_ignored(config)
    if dtype is not None:
        params = in_dtype(params, config, parse_dtype(dtype), to=np.asarray)
    tensors = from_params(params, config)
    try:
        with folder_beside(target, stays=_is_the_users) as aside:
            _write_files(aside, tensors, config, tokenizer, max_shard_bytes)
            put_in_place(aside, target, stays=_is_the_users)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    return target


def check_target(path: str | os.PathLike[str], *, replace: bool = True, advice: str = "--force replaces it") -> None:
    """Passes if `write_directory` may write there.

    Args:
      path: the directory to be.
      replace: whether a model that is there may be replaced.
      advice: what to do where it may not.

    Raises:
      ModelDirectoryError: a file; a directory that holds something and is no model directory; a model, if it may not be
        replaced.
    """
    target = Path(path).expanduser()
    if target.exists() and not target.is_dir():
        raise ModelDirectoryError(f"{path}: a file is in the way")
    if target.is_dir() and any(target.iterdir()):
        if not (target / CONFIG_FILE).is_file():
            raise ModelDirectoryError(f"{path}: holds other files and is no model directory; choose a new or empty one")
        if not replace:
            raise ModelDirectoryError(f"{path}: a model is there already; {advice}")


def check_new_file(path: str | os.PathLike[str], *, replace: bool = False) -> None:
    """Passes if a file may be written there.

    Args:
      path: the file to be.
      replace: whether a file that is there may be replaced.

    Raises:
      ModelDirectoryError: a directory; a file, if it may not be replaced; no directory to put it in.
    """
    target = Path(path)
    if target.is_dir():
        raise ModelDirectoryError(f"{path}: a directory is in the way; name a file")
    if target.exists() and not replace:
        raise ModelDirectoryError(f"{path}: a file is there already; --force replaces it")
    if not target.parent.is_dir():
        raise ModelDirectoryError(f"{path}: {target.parent} is no directory")


def _write_files(
    folder: Path, tensors: Mapping[str, np.ndarray], config: GPT2Config, tokenizer: Tokenizer, max_shard_bytes: int
) -> None:
    dtype = tensors["transformer.wte.weight"].dtype.name
    # transformers 5 reads `dtype`, earlier ones `torch_dtype`.
    fields = config.to_hf() | {"dtype": dtype, "torch_dtype": dtype}
    if SCORE in tensors:
        # One class: where nothing is said, transformers takes two. It has no `pad_token_id`: by one that is EOS older
        # transformers look for a row's end, and find that of its first turn.
        fields |= {"architectures": ["GPT2ForSequenceClassification"], **ONE_CLASS}
    if take_apart(tensors)[1]:
        fields["quantization_config"] = QUANTIZATION  # which no other program knows: it refuses the directory
    _write_json(folder / CONFIG_FILE, fields)
    ends = {"bos_token_id": config.eos_token_id, "eos_token_id": config.eos_token_id}
    _write_json(folder / GENERATION_FILE, ends)
    tokenizer.save(folder)
    _write_json(folder / TOKENIZER_CONFIG_FILE, tokenizer_config(config, tokenizer))
    _write_weights(folder, tensors, max_shard_bytes)


def _write_weights(folder: Path, tensors: Mapping[str, np.ndarray], max_shard_bytes: int) -> None:
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, array in tensors.items():
        if shards[-1] and size + array.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += array.nbytes
    if len(shards) == 1:
        _save(folder / SAFETENSORS_FILE, shards[0])
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _save(folder / name, shard)
        places |= dict.fromkeys(shard, name)
    total = sum(array.nbytes for array in tensors.values())
    _write_json(folder / f"{SAFETENSORS_FILE}.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def _save(file: Path, tensors: dict[str, np.ndarray]) -> None:
    try:
        save_file(tensors, file, metadata={"format": "pt"})  # transformers refuses a file without the format
        file.chmod(file.with_name(CONFIG_FILE).stat().st_mode)  # as it is made, its owner alone may read it
    except SafetensorError as error:
        raise OSError(None, str(error), str(file)) from None


def _write_json(file: Path, fields: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _is_the_users(file: Path) -> bool:
    """Whether a file in a directory that is replaced is not of the model."""
    return not any(file.match(pattern) for pattern in REPLACED_FILES)
