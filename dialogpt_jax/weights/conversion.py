"""A conversion from end to end: what `open_source` finds in; a model directory, Microsoft's `.pkl` or a GGUF file out.

Whatever is wrong is found before anything is written, and a target is written whole or not at all.
"""

from pathlib import Path
from typing import Literal

import numpy as np

from dialogpt_jax.convert.mapping import from_params
from dialogpt_jax.convert.names import to_microsoft
from dialogpt_jax.convert.write_gguf import write_gguf
from dialogpt_jax.convert.write_torch import write_torch
from dialogpt_jax.int8 import dtype_name, is_int8
from dialogpt_jax.weights.directory import check_new_file, check_target, write_directory
from dialogpt_jax.weights.dtypes import DTypeName, in_dtype, parse_dtype
from dialogpt_jax.weights.other_programs import CHAT_TEMPLATE
from dialogpt_jax.weights.source import AnyPath, ConvertError, need_tokenizer, open_source

DTypeOrKeep = Literal[DTypeName, "keep"]
Form = Literal["directory", "pkl", "gguf"]


def convert(
    source: AnyPath,
    target: AnyPath,
    *,
    to: Form = "directory",
    dtype: DTypeOrKeep | None = None,
    config: AnyPath | None = None,
    heads: int | None = None,
    tokenizer: AnyPath | None = None,
    revision: str | None = None,
    force: bool = False,
) -> list[str]:
    """Reads a model in any form and writes it in another.

    Args:
      source: a weight file, a model directory, or a name on the Hub.
      target: the directory, or with another form the file, to write.
      to: "directory" is Hugging Face's layout, "pkl" Microsoft's own file, "gguf" the file that llama.cpp reads.
      dtype: "float32", "bfloat16", "float16" or "int8" of what is written, or "keep" for that of the source; by default
        "keep", and for a "pkl" "float16", as Microsoft's are. A model in int8 becomes a float one again by the first three.
      config, heads, tokenizer, revision: what the source lacks, as for `open_source`.
      force: replace the model, or the file, that is at `target`.

    Returns:
      What was read, renamed, dropped, transposed and written, for a person: a line each.

    Warns:
      WeightsWarning: guessed heads, an untied head, NaN or infinity, options that a program which reads the target ignores.

    Raises:
      ValueError: as for `open_source`; no tokenizer (`ConvertError`); something else is at `target`; a model that GGUF
        cannot hold (`ExportError`).
      OSError: it cannot be read or written. What was at `target` is still there.
    """
    suffix = Path(target).suffix
    if to == "directory" and suffix in (".pkl", ".gguf") and not Path(target).is_dir():
        raise ValueError(f"{target} is the name of a file; for one give --to {suffix[1:]}, else name a directory")
    check = check_target if to == "directory" else check_new_file
    check(target, replace=force)
    found = open_source(source, config=config, heads=heads, tokenizer=tokenizer, revision=revision)
    if to != "directory" and (dtype == "int8" or (dtype in (None, "keep") and is_int8(found.params))):
        raise ConvertError(
            f"int8 weights go into a model directory alone; for {to}, --dtype float16 or float32 makes float ones of them"
        )
    if "score" in found.params and (to != "directory" or dtype == "int8"):
        raise ConvertError(
            f"{source} is a ranker, which goes into a model directory in floating point; leave out --to and --dtype int8"
        )
    dtype = dtype or ("float16" if to == "pkl" else "keep")
    params = (
        found.params if dtype == "keep" else in_dtype(found.params, found.config, parse_dtype(dtype), to=np.asarray)
    )
    if to == "directory":
        write_directory(target, params, found.config, need_tokenizer(found, source))
    elif to == "gguf":
        text = need_tokenizer(found, source)
        write_gguf(target, from_params(params, found.config), found.config, text, chat_template=CHAT_TEMPLATE)
    else:
        write_torch(target, to_microsoft(from_params(params, found.config), found.config))
    what = ", a ranker" if "score" in params else ""
    wrote = f"wrote {target}: {found.config.num_parameters:,} parameters, {dtype_name(params)}{what}"
    return [*found.origin, *found.report.lines(), wrote]
