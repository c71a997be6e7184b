"""`dialogpt convert` and `dialogpt inspect`: from every format and back, bit for bit; what goes wrong is one line."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
from fakes import ODD
from flax import serialization
from safetensors.numpy import save_file

from dialogpt_jax.cli.main import main
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.convert.mapping import UntiedHead, rows
from dialogpt_jax.convert.names import same_bits, to_microsoft
from dialogpt_jax.convert.read import read
from dialogpt_jax.convert.write_torch import write_torch
from dialogpt_jax.text.tokenizer import Tokenizer
from dialogpt_jax.weights.directory import load_params

# 64 divides the width, so that a bare file says all; as many ids as the tokenizer of bytes.
PLAIN = GPT2Config(vocab_size=257, n_positions=16, n_embd=64, n_layer=2, n_head=1, eos_token_id=256)


def draw(config, dtype=np.float32):
    rng = np.random.default_rng(5)
    return {row.name: rng.normal(size=row.shape).astype(dtype) for row in rows(config)}


def nest(flat):
    tree = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[name] = leaf
    return tree


def write_flax(path, tensors):
    leaves = {}
    for name, array in tensors.items():
        stem, leaf = name.rsplit(".", 1)
        if leaf == "weight":
            leaf = "embedding" if stem.endswith(("wte", "wpe")) else "scale" if ".ln_" in stem else "kernel"
        leaves[f"{stem}.{leaf}".replace(".", "/")] = np.ascontiguousarray(array.T) if leaf == "kernel" else array
    path.write_bytes(serialization.msgpack_serialize(nest(leaves)))


WRITERS = {
    "model.safetensors": lambda path, tensors: save_file(dict(tensors), path),
    "pytorch_model.bin": write_torch,
    "medium_ft.pkl": lambda path, tensors: write_torch(path, to_microsoft(tensors, PLAIN)),
    "flax_model.msgpack": write_flax,
}


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(["bytes"], 257).save(folder)
    return folder


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "source" / "weights.pkl"
    file.parent.mkdir()
    write_torch(file, to_microsoft(draw(PLAIN, np.float16), PLAIN))
    return file


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(same_bits(np.asarray(found[name]), expected[name]) for name in expected)


def fails(capsys, *words):
    """The one line of a command that fails."""
    assert main([str(word) for word in words]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_becomes_the_same_directory(tmp_path, tokenizer_dir, capsys, name, dtype):
    tensors = draw(PLAIN, dtype)
    (tmp_path / "source").mkdir()
    WRITERS[name](tmp_path / "source" / name, tensors)
    target = tmp_path / "out"
    assert main(["convert", str(tmp_path / "source" / name), str(target), "--tokenizer", str(tokenizer_dir)]) == 0
    assert_same(read(target / "model.safetensors").tensors, tensors)
    _, config = load_params(target)
    assert config == PLAIN
    assert Tokenizer.load(target).encode("hi") == Tokenizer.load(tokenizer_dir).encode("hi")
    out = capsys.readouterr().out
    assert "config from the shapes" in out
    assert "transposed  transformer.h.*.attn.c_proj.weight  × 2" in out
    if name.endswith(".pkl"):
        assert "dropped  transformer.h.*.attn.bias (causal mask, computed)  × 2" in out
        assert "dropped  lm_head.decoder.weight (tied: equal to the token embedding)" in out


def test_microsoft_s_file_there_and_back_is_bit_for_bit(tmp_path, source, tokenizer_dir):
    middle, back = tmp_path / "middle", tmp_path / "back.pkl"
    assert main(["convert", str(source), str(middle), "--tokenizer", str(tokenizer_dir)]) == 0
    assert main(["convert", str(middle), str(back), "--to", "pkl"]) == 0
    assert_same(read(back).tensors, read(source).tensors)
    assert back.read_bytes() == source.read_bytes()


def test_an_untied_odd_model_there_and_back_is_bit_for_bit(tmp_path, tokenizer_dir):
    config = dataclasses.replace(ODD, vocab_size=301)
    save_file(draw(config), tmp_path / "model.safetensors")
    (tmp_path / "other.json").write_text(json.dumps(config.to_hf()))
    words = ["--tokenizer", str(tokenizer_dir), "--config", str(tmp_path / "other.json")]
    assert main(["convert", str(tmp_path / "model.safetensors"), str(tmp_path / "out"), *words]) == 0
    assert load_params(tmp_path / "out")[1] == config
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "x.pkl"), "--to", "pkl", "--dtype", "keep"]) == 0
    found = dict(read(tmp_path / "x.pkl").tensors)
    assert found.pop("lm_head.decoder.weight").tobytes() == draw(config)["lm_head.weight"].tobytes()
    assert {name for name in found if name.endswith(".attn.bias")} == {f"transformer.h.{i}.attn.bias" for i in range(2)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "keep"])
def test_the_dtype_of_the_file_is_the_one_asked_for(tmp_path, source, tokenizer_dir, dtype):
    words = ["--tokenizer", str(tokenizer_dir), "--dtype", dtype]
    assert main(["convert", str(source), str(tmp_path / "out"), *words]) == 0
    expected = "float16" if dtype == "keep" else dtype
    assert {array.dtype.name for array in read(tmp_path / "out" / "model.safetensors").tensors.values()} == {expected}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == expected


def test_a_pkl_is_half_precision_unless_told_otherwise(tmp_path, tokenizer_dir):
    save_file(draw(PLAIN), tmp_path / "model.safetensors")
    assert main(["convert", str(tmp_path / "model.safetensors"), str(tmp_path / "a.pkl"), "--to", "pkl"]) == 0
    assert {array.dtype.name for array in read(tmp_path / "a.pkl").tensors.values()} == {"float16"}


def test_a_bare_file_without_a_tokenizer_says_how_to_give_one(tmp_path, source, capsys):
    error = fails(capsys, "convert", source, tmp_path / "out")
    assert "--tokenizer microsoft/DialoGPT-small" in error
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path, source, capsys):
    big = tmp_path / "big"
    big.mkdir()
    Tokenizer.train(["some more words, some more words, some more"], 262).save(big)
    error = fails(capsys, "convert", source, tmp_path / "out", "--tokenizer", big)
    assert "262 ids and the model 257" in error


def test_a_bare_file_s_end_of_text_is_the_tokenizer_s(tmp_path, tokenizer_dir):
    config = dataclasses.replace(PLAIN, vocab_size=300, eos_token_id=299)
    save_file(draw(config), tmp_path / "model.safetensors")
    words = ["--tokenizer", str(tokenizer_dir)]
    assert main(["convert", str(tmp_path / "model.safetensors"), str(tmp_path / "out"), *words]) == 0
    assert load_params(tmp_path / "out")[1] == dataclasses.replace(config, eos_token_id=256)


def test_what_is_there_is_not_overwritten_unless_forced(tmp_path, source, tokenizer_dir, capsys):
    words = ["convert", source, tmp_path / "out", "--tokenizer", tokenizer_dir]
    assert main([str(word) for word in words]) == 0
    assert "--force replaces it" in fails(capsys, *words)
    assert main([str(word) for word in (*words, "--force", "--dtype", "float32")]) == 0
    assert load_params(tmp_path / "out")[1] == PLAIN
    assert "a file is there already" in fails(capsys, "convert", tmp_path / "out", source, "--to", "pkl")
    assert "a directory is in the way" in fails(capsys, "convert", source, tmp_path / "out", "--to", "pkl")
    assert "no model directory" in fails(capsys, "convert", source, tmp_path, "--tokenizer", tokenizer_dir, "--force")
    assert main(["convert", str(tmp_path / "out"), str(source), "--to", "pkl", "--force"]) == 0


@pytest.mark.parametrize("form", ["pkl", "gguf"])
def test_a_directory_is_not_called_like_a_file(tmp_path, source, tokenizer_dir, capsys, form):
    target = tmp_path / f"back.{form}"
    words = ["convert", source, target, "--tokenizer", tokenizer_dir]
    assert f"give --to {form}, else name a directory" in fails(capsys, *words)
    assert not target.exists()


def test_weights_that_are_not_finite_are_one_line_and_not_an_error(tmp_path, tokenizer_dir, capsys):
    tensors = draw(PLAIN)
    tensors["transformer.ln_f.bias"][:2] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    words = ["convert", tmp_path / "model.safetensors", tmp_path / "out", "--tokenizer", tokenizer_dir, "--heads", 1]
    assert main([str(word) for word in words]) == 0
    assert capsys.readouterr().err == "warning: 2 weights are NaN or infinite, in transformer.ln_f.bias\n"


def test_a_source_that_cannot_be_read_writes_nothing(tmp_path, source, tokenizer_dir, capsys):
    os.truncate(source, source.stat().st_size // 2)
    assert str(source) in fails(capsys, "convert", source, tmp_path / "out", "--tokenizer", tokenizer_dir)
    assert "no such" in fails(capsys, "convert", tmp_path / "absent.pkl", tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["source"]


def test_a_target_that_cannot_be_written_is_one_line(tmp_path, source, tokenizer_dir, capsys):
    error = fails(capsys, "convert", source, source / "below", "--tokenizer", tokenizer_dir)
    assert "below: Not a directory" in error
    assert "no directory" in fails(capsys, "convert", source, tmp_path / "absent" / "x.pkl", "--to", "pkl")


def test_inspect_speaks_of_files_and_directories(tmp_path, source, tokenizer_dir, capsys):
    assert main(["inspect", str(source), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["layers"], found["width"], found["heads"], found["head"]) == (
        2,
        64,
        1,
        "separate, equal to the token embedding",
    )
    main(["convert", str(source), str(tmp_path / "out"), "--tokenizer", str(tokenizer_dir)])
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "head        tied" in out
    assert "model.safetensors" in out
    os.truncate(source, 100)
    assert str(source) in fails(capsys, "inspect", source)
    assert "no such file or directory" in fails(capsys, "inspect", tmp_path / "absent")
    assert len(jax.tree.leaves(load_params(tmp_path / "out")[0])) == found["tensors"] - 3  # two masks and the head


WIDE = dataclasses.replace(PLAIN, n_embd=128, n_head=8, activation_function="relu")


def converted(capsys, *words):
    """The config of what is written, and what is said on stderr."""
    assert main(["convert", *map(str, words), "--force"]) == 0
    return load_params(words[1])[1], capsys.readouterr().err


def test_heads_that_no_shape_tells_are_guessed_aloud_or_given(tmp_path, tokenizer_dir, capsys):
    save_file(draw(WIDE), tmp_path / "model.safetensors")
    words = [tmp_path / "model.safetensors", tmp_path / "out", "--tokenizer", tokenizer_dir]
    guessed = dataclasses.replace(WIDE, n_head=2, activation_function="gelu_new")
    config, said = converted(capsys, *words)
    assert config == guessed
    assert said.startswith("warning: the number of heads is not in the shapes; taken as 2")
    assert said.count("\n") == 1
    assert converted(capsys, *words, "--heads", 8) == (dataclasses.replace(guessed, n_head=8), "")
    assert "n_head is 7, which does not divide" in fails(capsys, "convert", *words, "--heads", 7, "--force")
    (tmp_path / "config.json").write_text(json.dumps(WIDE.to_hf()))
    assert converted(capsys, *words) == (WIDE, "")
    assert converted(capsys, *words, "--heads", 8) == (WIDE, "")
    assert "says 8 heads, and --heads says 4" in fails(capsys, "convert", *words, "--heads", 4, "--force")


def test_the_config_beside_the_tokenizer_counts_as_far_as_it_fits(tmp_path, tokenizer_dir, capsys):
    save_file(draw(WIDE), tmp_path / "model.safetensors")
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    Tokenizer.load(tokenizer_dir).save(folder)
    words = [tmp_path / "model.safetensors", tmp_path / "out", "--tokenizer", folder]
    guessed = dataclasses.replace(WIDE, n_head=2, activation_function="gelu_new")

    def beside(config):
        (folder / "config.json").write_text(json.dumps(config if isinstance(config, dict) else config.to_hf()))
        return converted(capsys, *words)

    assert beside(WIDE) == (WIDE, "")
    assert beside(dataclasses.replace(WIDE, tie_word_embeddings=False)) == (WIDE, "")  # the file has no head
    assert beside(dataclasses.replace(WIDE, n_positions=8)) == (dataclasses.replace(guessed, n_head=8), "")
    for other in (dataclasses.replace(WIDE, n_layer=3), dataclasses.replace(WIDE, n_embd=64), {"model_type": "llama"}):
        config, said = beside(other)
        assert config == guessed
        assert "taken as 2" in said
    beside(WIDE)
    config, _ = converted(capsys, *words, "--heads", 4)
    assert config == dataclasses.replace(WIDE, n_head=4)


def test_a_head_that_a_config_calls_tied_is_a_warning_wherever_it_is_loaded(tmp_path, tokenizer_dir, capsys):
    tensors = draw(PLAIN)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
    tensors["lm_head.weight"][-1, 0] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(PLAIN.to_hf()))
    with pytest.warns(UntiedHead, match="in 1 of 16448 values"):
        _, config = load_params(tmp_path)
    assert not config.tie_word_embeddings
    words = [tmp_path, tmp_path / "out", "--tokenizer", tokenizer_dir]
    config, said = converted(capsys, *words)
    assert not config.tie_word_embeddings
    assert said.startswith("warning: lm_head.weight differs from the token embedding in 1 of 16448 values")
