"""A model's name in, a local directory out: the Hub through `huggingface_hub`, which caches and works offline.

Only the files of one model are fetched: config, tokenizer, and one form of the weights: safetensors where there are
any, `.bin` otherwise (what microsoft/DialoGPT-* have beside Flax's and TensorFlow's), else Flax's msgpack. A large file
that has just arrived is held once against its SHA-256, by which the cache names it.
`huggingface_hub` is imported when a name is asked for, and reads its environment then: `HF_HOME` (where the cache is),
`HF_ENDPOINT` (another server), `HF_HUB_OFFLINE=1` (the cache only), `HF_TOKEN`.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from dialogpt_jax.arguments import shown
from dialogpt_jax.config import CONFIG_FILE
from dialogpt_jax.errors import escape_controls
from dialogpt_jax.text.tokenizer import JSON_FILE, MERGES_FILE, VOCAB_FILE

TOKENIZER_FILES = (JSON_FILE, "tokenizer_config.json", VOCAB_FILE, MERGES_FILE, "special_tokens_map.json")
FILES_BESIDE_WEIGHTS = (CONFIG_FILE, "generation_config.json", "added_tokens.json", *TOKENIZER_FILES)
# What to look for, in order: (the file, and a pattern of the shards that it lists).
WEIGHT_FORMS = (
    ("model.safetensors", None),
    ("model.safetensors.index.json", r"model-\d+-of-\d+\.safetensors"),
    ("pytorch_model.bin", None),
    ("pytorch_model.bin.index.json", r"pytorch_model-\d+-of-\d+\.bin"),
    ("flax_model.msgpack", None),
)
ABSENT = "no such file or directory here"
# A name that ends so is a file's and no model's; it is not told to a server.
_FILE_SUFFIXES: tuple[str, ...] = (
    ".bin",
    ".pkl",
    ".pt",
    ".pth",
    ".safetensors",
    ".msgpack",
    ".gguf",
    ".h5",
    ".zip",
    ".json",
    ".jsonl",
)
_FILE_SUFFIXES += (".txt", ".tsv", ".csv")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Not the network's fault: the disk's. These go to the caller as they are.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)


class HubError(ValueError):
    """The Hub, or the cache of it, cannot give this model; the message says what to do next."""


def resolve(path: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """What exists at `path` as it is; otherwise the model of that name on the Hub, fetched.

    Args:
      path: a file or directory, or a name: `microsoft/DialoGPT-small`, `gpt2`.
      revision: a branch, tag or commit on the Hub.

    Raises:
      FileNotFoundError: it can only be a path, and nothing is there.
      ValueError: a revision of what is no model on the Hub.
      HubError: the Hub cannot give it.
    """
    if revision is not None and not isinstance(revision, str):
        raise TypeError(f"revision is {shown(revision)}; give the name of a branch or tag, or a commit")
    local = _local(path)
    if local is not None and revision is not None:
        raise ValueError(f"revision is {shown(revision)}, and {local} is here: only a model on the Hub has revisions")
    return local or fetch(_as_name(path), revision)


def resolve_tokenizer(path: str | os.PathLike[str]) -> Path:
    """`resolve`, but of a model on the Hub only the tokenizer is fetched."""
    return _local(path) or fetch_tokenizer(_as_name(path))


def _local(path: str | os.PathLike[str]) -> Path | None:
    local = Path(path).expanduser()
    return local if os.fspath(path) and local.exists() else None  # "" would be the current directory


def _as_name(path: str | os.PathLike[str]) -> str:
    if not isinstance(path, str) or not _NAME.fullmatch(path) or path.lower().endswith(_FILE_SUFFIXES):
        raise FileNotFoundError(errno.ENOENT, ABSENT, os.fspath(path))
    return path


def fetch(name: str, revision: str | None = None, offline: bool | None = None) -> Path:
    """The local directory of a model on the Hub, downloaded where it is not yet.

    A download that breaks off is resumed while the call lasts. After that whole files are kept, and the next call fetches
    the others anew. Without a network the cache answers.

    Args:
      name: `organisation/model`, or one of the old single names.
      revision: a branch, tag or commit; the main branch by default.
      offline: true asks the cache only; `None` does what `HF_HUB_OFFLINE` says.

    Raises:
      HubError: unknown name or revision, no access, no network, a damaged file, no weights in a form that is read here;
        one line.
      OSError: the disk is full or not writable.
    """
    return _fetch(name, revision, offline, choose_files)


def fetch_tokenizer(name: str, revision: str | None = None, offline: bool | None = None) -> Path:
    """`fetch` of the tokenizer's files alone.

    Args:
      name: as for `fetch`.
      revision: as for `fetch`.
      offline: as for `fetch`.

    Raises:
      HubError, OSError: as for `fetch`.
    """
    return _fetch(name, revision, offline, choose_tokenizer_files)


Chooser = Callable[[Iterable[str], str], list[str]]


def _fetch(name: str, revision: str | None, offline: bool | None, choose: Chooser) -> Path:
    from huggingface_hub import HfApi, constants, errors, snapshot_download, try_to_load_from_cache

    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    label = name if revision is None else f"{name} at revision {revision}"
    if constants.HF_HUB_OFFLINE if offline is None else offline:
        advice = f"{label}: {ABSENT}, and not in the cache; offline: unset HF_HUB_OFFLINE to ask {endpoint}"
        return _from_cache(name, revision, choose, advice)
    try:
        info = HfApi(endpoint=endpoint).model_info(name, revision=revision)
        files = choose((file.rfilename for file in info.siblings or ()), name)
        new = [file for file in files if not isinstance(try_to_load_from_cache(name, file, revision=info.sha), str)]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=files, endpoint=endpoint))
        for file in new:
            _check_content(folder / file, name)
        return folder
    except errors.HFValidationError:
        raise HubError(f"{name}: {ABSENT}, and not a name on the Hub") from None
    except errors.GatedRepoError:
        raise HubError(
            f"{name}: gated; accept its conditions at {endpoint}/{name}, then log in with `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise HubError(
            f"{name}: {ABSENT}, and no such model on {endpoint}, or it is private: check the name, or "
            "log in with `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise HubError(f"{name}: no revision {revision}; {endpoint}/{name}/commits/main lists them") from None
    # Without a network: an OSError where the library stands on requests, an HTTPError where on httpx.
    except (OSError, errors.HTTPError) as error:  # pyright: ignore[reportPrivateImportUsage]
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        problem = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            raise HubError(
                f"{label}: {endpoint} lists a file and does not have it ({problem}); try again, or another revision"
            ) from None
        advice = (
            f"{label}: {ABSENT}, and {endpoint} cannot be reached or broke off ({problem}); "
            "check the path, or try again with a network"
        )
        return _from_cache(name, revision, choose, advice)


def _check_content(file: Path, name: str) -> None:
    """Passes if a file in the cache is what its name there says; one that is not is removed, to be fetched again.

    Large files are named by their SHA-256, small ones by git's hash of them, which not every server follows.

    Raises:
      HubError: it is not.
    """
    stored = file.resolve()
    if not re.fullmatch(r"[0-9a-f]{64}", stored.name):
        return
    with stored.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != stored.name:
        stored.unlink()
        raise HubError(
            f"{name}: {file.name} arrived damaged (its SHA-256 is not {stored.name[:12]}…), and was removed; try again"
        )


def choose_files(files: Iterable[str], name: str) -> list[str]:
    """The files of a repository that make one model.

    Args:
      files: all its files.
      name: the repository, for the error.

    Raises:
      HubError: no `config.json`, or no weights that this package reads.
    """
    files = sorted(files)
    if CONFIG_FILE not in files:
        raise HubError(f"{name}: has no {CONFIG_FILE}, so it is not a transformers model; convert its file by hand")
    small = [file for file in files if file in FILES_BESIDE_WEIGHTS]
    for weights, shards in WEIGHT_FORMS:
        if weights in files:
            return [*small, weights, *(file for file in files if shards and re.fullmatch(shards, file))]
    known = ", ".join(weights for weights, _ in WEIGHT_FORMS)
    raise HubError(f"{name}: has none of {known}; its files: {escape_controls(', '.join(files), keep='')}")


def choose_tokenizer_files(files: Iterable[str], name: str) -> list[str]:
    """The files of a repository that make its tokenizer; arguments and error as for `choose_files`."""
    chosen = [file for file in sorted(files) if file in (CONFIG_FILE, *TOKENIZER_FILES)]
    if CONFIG_FILE in chosen and (JSON_FILE in chosen or {VOCAB_FILE, MERGES_FILE} <= set(chosen)):
        return chosen
    raise HubError(f"{name}: has no tokenizer that this package reads: tokenizer.json, or vocab.json and merges.txt")


def _from_cache(name: str, revision: str | None, choose: Chooser, advice: str) -> Path:
    """The directory in the cache if all that is wanted is there; else `advice` is the error."""
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        config = try_to_load_from_cache(name, CONFIG_FILE, revision=revision)
    except errors.HFValidationError:
        raise HubError(f"{name}: {ABSENT}, and not a name on the Hub") from None
    if isinstance(config, str) and _is_whole(Path(config).parent, name, choose):
        return Path(config).parent
    raise HubError(advice) from None


def _is_whole(folder: Path, name: str, choose: Chooser) -> bool:
    """Whether what is chosen is there, with all the shards that an index names."""
    try:
        chosen = choose((file.name for file in folder.iterdir() if file.is_file()), name)
        indexes = [file for file in chosen if file.endswith(".index.json")]
        wanted = [json.loads((folder / file).read_text(encoding="utf-8"))["weight_map"].values() for file in indexes]
    except (ValueError, KeyError, TypeError, AttributeError):  # HubError too: it is a ValueError
        return False
    return all((folder / str(shard)).is_file() for shards in wanted for shard in shards)
