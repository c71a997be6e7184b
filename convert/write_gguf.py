"""Writes a GGUF file, which llama.cpp and what is built on it read: one file that holds weights, sizes and tokenizer.

What flows in: Hugging Face's tensors, the config, the tokenizer. What flows out: a file, complete or not there at all. The
`gguf` package (the extra of that name) writes the container; this file knows what llama.cpp's GPT-2 wants in it. Source:
llama.cpp's `convert_hf_to_gguf.py` (GPT2Model) and `src/models/gpt2.cpp`.
"""

import contextlib
import os
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.text.tokenizer import Tokenizer

# Hugging Face's names → GGUF's. {i} stands for each layer.
_NAMES = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.h.{i}.ln_1": "blk.{i}.attn_norm",
    "transformer.h.{i}.attn.c_attn": "blk.{i}.attn_qkv",
    "transformer.h.{i}.attn.c_proj": "blk.{i}.attn_output",
    "transformer.h.{i}.ln_2": "blk.{i}.ffn_norm",
    "transformer.h.{i}.mlp.c_fc": "blk.{i}.ffn_up",
    "transformer.h.{i}.mlp.c_proj": "blk.{i}.ffn_down",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",  # absent where it is the token embedding, as there
}
_ALWAYS_FLOAT32 = "position_embd.weight"  # and every vector
_GPT2_SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


class ExportError(ValueError):
    """A model that another program's format cannot hold; the message names what is in the way."""


def name_in_gguf(name: str) -> str:
    """`transformer.h.3.ln_1.bias` → `blk.3.attn_norm.bias`."""
    stem, _, leaf = name.rpartition(".")
    layer = re.search(r"\.h\.(\d+)\.", stem)
    general = stem if layer is None else stem.replace(layer[0], ".h.{i}.", 1)
    return f"{_NAMES[general].format(i=layer and layer[1])}.{leaf}"


def check_for_llama_cpp(config: GPT2Config, tokenizer: Tokenizer) -> None:
    """Passes if llama.cpp computes this model as it is.

    Raises:
      ExportError: an option that its GPT-2 lacks, or a tokenizer that it would read as another.
    """
    lacking = []
    if config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
        lacking.append(f"activation_function {config.activation_function!r} (it has gelu_new)")
    if not config.scale_attn_weights:
        lacking.append("scale_attn_weights false")
    if config.scale_attn_by_inverse_layer_idx:
        lacking.append("scale_attn_by_inverse_layer_idx true")
    fields = tokenizer.to_json()
    split = fields.get("pre_tokenizer") or {}
    plain = all(split.get(name) == value for name, value in _GPT2_SPLIT.items()) and not fields.get("normalizer")
    if fields["model"].get("type") != "BPE" or fields["model"].get("ignore_merges") or not plain:
        lacking.append("a tokenizer that does not split text as GPT-2's does")
    if lacking:
        raise ExportError(f"llama.cpp's GPT-2 lacks {', '.join(lacking)} of this model; write a directory instead")


def write_gguf(
    path: str | PathLike[str],
    tensors: Mapping[str, np.ndarray],
    config: GPT2Config,
    tokenizer: Tokenizer,
    *,
    chat_template: str,
) -> None:
    """Writes the file beside its place and moves it there, so a failure leaves what was there before.

    Vectors and position embeddings are float32, as llama.cpp wants them; matrices keep their dtype.

    Args:
      path: the file; an existing one is replaced.
      tensors: Hugging Face's names → float32, float16 or bfloat16 arrays, as `from_params` gives them.
      config: the sizes.
      tokenizer: its tokens, merges and end of text go into the file.
      chat_template: Jinja, for programs that chat.

    Raises:
      ExportError: llama.cpp would compute another model, or the `gguf` package is not installed.
      OSError: it cannot be written.
    """
    check_for_llama_cpp(config, tokenizer)
    try:
        import gguf
    except ImportError:
        raise ExportError("writing GGUF needs the `gguf` package: pip install 'dialogpt-jax[gguf]'") from None
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    writer = gguf.GGUFWriter(str(partial), "gpt2")
    writer.add_name(target.stem)
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    kinds = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}
    writer.add_file_type(gguf.LlamaFileType[kinds[tensors["transformer.wte.weight"].dtype.name]])
    _add_tokenizer(writer, gguf, config, tokenizer)
    writer.add_chat_template(chat_template)
    for name, array in tensors.items():
        _add_tensor(writer, gguf, name_in_gguf(name), array)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(partial, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error
    finally:
        with contextlib.suppress(OSError):
            writer.close()
        partial.unlink(missing_ok=True)


def _add_tokenizer(writer: Any, gguf: Any, config: GPT2Config, tokenizer: Tokenizer) -> None:
    fields = tokenizer.to_json()
    added = {token["id"]: token for token in fields["added_tokens"]}
    tokens = {number: token for token, number in fields["model"]["vocab"].items()}
    tokens |= {number: token["content"] for number, token in added.items()}
    names, types = [], []
    for number in range(config.vocab_size):
        special = number in added and added[number]["special"]
        kind = "CONTROL" if special else "USER_DEFINED" if number in added else "NORMAL"
        names.append(tokens.get(number, f"[PAD{number}]"))  # ids that the tokenizer lacks
        types.append(gguf.TokenType[kind if number in tokens else "UNUSED"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(names)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in fields["model"]["merges"]])
    writer.add_bos_token_id(config.eos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_add_bos_token(False)  # a dialogue begins with its first turn


def _add_tensor(writer: Any, gguf: Any, name: str, array: np.ndarray) -> None:
    if name.endswith((".attn_qkv.weight", ".attn_output.weight", ".ffn_up.weight", ".ffn_down.weight")):
        array = array.T  # Conv1D's (in, out) → (out, in)
    if array.ndim < 2 or name == _ALWAYS_FLOAT32:
        array = array.astype(np.float32)
    array = np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":  # the package knows NumPy's own dtypes, and takes this one as bytes
        writer.add_tensor(name, array.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, array)
