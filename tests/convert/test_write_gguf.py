"""GGUF: what is written is read back by the container's own library, and what llama.cpp cannot compute is refused."""

import dataclasses
import json
import sys

import fakes
import ml_dtypes
import numpy as np
import pytest
from drawn_weights import draw_tensors

from dialogpt_jax.cli.main import main
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.convert.write_gguf import ExportError, write_gguf
from dialogpt_jax.convert.write_torch import write_torch
from dialogpt_jax.text.tokenizer import Tokenizer
from dialogpt_jax.weights.other_programs import CHAT_TEMPLATE

gguf = pytest.importorskip("gguf", reason="writes GGUF by the package of the extra `gguf`")
pytestmark = pytest.mark.parity

CONFIG = GPT2Config(vocab_size=323, n_positions=24, n_embd=32, n_layer=2, n_head=4, n_inner=48, eos_token_id=319)
UNTIED = dataclasses.replace(CONFIG, tie_word_embeddings=False, layer_norm_epsilon=1e-6)


@pytest.fixture(scope="module")
def tokenizer():
    return fakes.tiny_tokenizer()


def written(path, tensors, config, tokenizer):
    write_gguf(path, tensors, config, tokenizer, chat_template=CHAT_TEMPLATE)
    return gguf.GGUFReader(path)


def numbers(tensor):
    """A tensor of the file as it was written; the reader gives bfloat16 as bytes."""
    return tensor.data.view(ml_dtypes.bfloat16) if tensor.tensor_type.name == "BF16" else tensor.data


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
def test_every_tensor_comes_back(tmp_path, tokenizer, config, dtype):
    tensors = {name: array.astype(dtype) for name, array in draw_tensors(config).items()}
    found = {tensor.name: tensor for tensor in written(tmp_path / "m.gguf", tensors, config, tokenizer).tensors}
    names = {"transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm"}
    names |= {"lm_head": "output"}
    blocks = {"ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output"}
    blocks |= {"ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
    for i in range(2):
        names |= {f"transformer.h.{i}.{theirs}": f"blk.{i}.{gguf_name}" for theirs, gguf_name in blocks.items()}
    assert len(found) == len(tensors)
    for name, array in tensors.items():
        stem, leaf = name.rsplit(".", 1)
        tensor = found[f"{names[stem]}.{leaf}"]
        expected = array.T if ".c_" in name and array.ndim == 2 else array
        np.testing.assert_array_equal(numbers(tensor), expected, strict=False)
        wide = array.ndim == 1 or "wpe" in name
        assert numbers(tensor).dtype == (np.float32 if wide else dtype)


def test_sizes_and_tokens_come_back(tmp_path, tokenizer):
    reader = written(tmp_path / "m.gguf", draw_tensors(UNTIED), UNTIED, tokenizer)
    value = lambda name: reader.get_field(name).contents()  # noqa: E731
    assert value("general.architecture") == "gpt2"
    sizes = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count")
    assert [value(f"gpt2.{name}") for name in sizes] == [2, 24, 32, 48, 4]
    assert value("gpt2.attention.layer_norm_epsilon") == pytest.approx(1e-6)
    tokens = value("tokenizer.ggml.tokens")
    vocab = json.loads(tokenizer._backend.to_str())["model"]["vocab"]
    assert {tokens[number]: number for number in range(319)} == vocab
    assert tokens[319:] == ["<|endoftext|>", "[PAD320]", "[PAD321]", "[PAD322]"]
    types = [gguf.TokenType(kind).name for kind in value("tokenizer.ggml.token_type")]
    assert types == ["NORMAL"] * 319 + ["CONTROL"] + ["UNUSED"] * 3
    assert value("tokenizer.ggml.eos_token_id") == value("tokenizer.ggml.bos_token_id") == 319
    assert value("tokenizer.ggml.add_bos_token") is False
    assert value("tokenizer.ggml.merges")[0].count(" ") == 1
    assert value("tokenizer.chat_template") == CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation_function": "relu"}, "activation_function 'relu'"),
        ({"scale_attn_weights": False}, "scale_attn_weights false"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx true"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path, tokenizer, changes, words):
    config = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(ExportError, match=f"lacks {words}"):
        written(tmp_path / "m.gguf", draw_tensors(config), config, tokenizer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("field", "value"), [("add_prefix_space", True), ("use_regex", False), ("type", "Whitespace")])
def test_a_tokenizer_that_it_would_read_as_another_is_refused(tmp_path, tokenizer, field, value):
    fields = json.loads(tokenizer._backend.to_str())
    fields["pre_tokenizer"] = {"type": value} if field == "type" else {**fields["pre_tokenizer"], field: value}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(ExportError, match="does not split text as GPT-2's"):
        written(tmp_path / "m.gguf", draw_tensors(CONFIG), CONFIG, Tokenizer.load(tmp_path))


def test_the_command_writes_one(tmp_path, tokenizer, capsys, monkeypatch):
    write_torch(tmp_path / "pytorch_model.bin", draw_tensors(CONFIG))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    words = ["convert", str(tmp_path), str(tmp_path / "m.gguf"), "--to", "gguf", "--dtype", "float16"]
    assert main(words) == 1
    assert "has no tokenizer: add --tokenizer" in capsys.readouterr().err
    tokenizer.save(tmp_path)
    assert main(words) == 0
    assert "wrote" in capsys.readouterr().out
    assert gguf.GGUFReader(tmp_path / "m.gguf").get_field("general.file_type").contents() == 1
    before = (tmp_path / "m.gguf").read_bytes()
    assert main(words) == 1
    assert "a file is there already" in capsys.readouterr().err
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full_disk)
    assert main([*words, "--force"]) == 1
    assert "m.gguf: No space left" in capsys.readouterr().err
    assert (tmp_path / "m.gguf").read_bytes() == before
    assert not [file for file in tmp_path.iterdir() if "partial" in file.name]
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert main([*words, "--force"]) == 1
    assert "pip install 'dialogpt-jax[gguf]'" in capsys.readouterr().err


def full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")
