"""An int8 model in a directory: read back bit for bit, made of a float one and into one again, or refused in one line."""

import json
import re

import jax
import numpy as np
import pytest
from fakes import ODD, TINY, draw_params
from safetensors.numpy import load_file, save_file

import dialogpt_jax as dg
from dialogpt_jax.cli.main import main
from dialogpt_jax.convert.mapping import MappingError, rows
from dialogpt_jax.text.tokenizer import Tokenizer

BYTES = Tokenizer.train(["a tokenizer of nothing but bytes, and its end"], 257)
PARTS = ("values", "scales", "factors")
WITH_BYTES = dg.GPT2Config(vocab_size=257, n_positions=16, n_embd=64, n_layer=2, n_head=2, eos_token_id=256)


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture
def small(tmp_path):
    """A directory of an int8 model, and its parameters."""
    params = dg.quantize(with_zero_pads(draw_params(WITH_BYTES), WITH_BYTES))
    return dg.write_directory(tmp_path / "int8", params, WITH_BYTES, BYTES), params


def with_zero_pads(params, config):
    """As a file's are: what stands beyond the vocabulary is no part of it."""

    def cut(kernel_VD):
        return kernel_VD.at[config.vocab_size :].set(0)

    params = params | {"wte": {"embedding": cut(params["wte"]["embedding"])}}
    return params if config.tie_word_embeddings else params | {"lm_head": {"kernel": cut(params["lm_head"]["kernel"])}}


@pytest.mark.parametrize("config", [TINY, ODD], ids=["tiny", "odd"])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_it_is_read_back_bit_for_bit(tmp_path, config, max_shard_bytes):
    params = dg.quantize(with_zero_pads(draw_params(config), config))
    folder = dg.write_directory(tmp_path / "m", params, config, BYTES, max_shard_bytes=max_shard_bytes)
    for dtype in (None, "int8"):
        found, found_config = dg.load_params(folder, dtype=dtype)
        assert found_config == config
        assert_same_bits(found, params)
    floats, _ = dg.load_params(folder, dtype="float32")
    assert_same_bits(floats, dg.dequantize(params, config))


def test_a_float_directory_is_loaded_as_int8(tmp_path):
    params = with_zero_pads(draw_params(TINY), TINY)
    folder = dg.write_directory(tmp_path / "m", params, TINY, BYTES)
    found, _ = dg.load_params(folder, dtype="int8")
    assert_same_bits(found, dg.quantize(params))
    assert dg.write_directory(tmp_path / "n", params, TINY, BYTES, dtype="int8")
    assert_same_bits(dg.load_params(tmp_path / "n")[0], found)


def test_no_name_or_config_is_one_that_another_program_knows(small):
    tensors = load_file(small[0] / "model.safetensors")
    whole = {name for name, array in tensors.items() if array.dtype == np.int8}
    assert len(whole) == 4 * WITH_BYTES.n_layer + 1
    assert not whole & {row.name for row in rows(WITH_BYTES)}
    fields = json.loads((small[0] / "config.json").read_text())
    assert "quant_method" not in fields["quantization_config"]  # which makes transformers refuse it
    assert fields["tie_word_embeddings"] is True


def test_what_is_missing_or_does_not_fit_is_one_error(small, capsys):
    file = small[0] / "model.safetensors"
    tensors = load_file(file)
    stem = "transformer.h.1.mlp.c_fc"
    for changed, told in (
        ({f"{stem}.int8_scales": None}, r"c_fc has int8_values of dtype int8, int8_scales none"),
        ({f"{stem}.int8_values": tensors[f"{stem}.int8_values"].astype(np.float32)}, "int8_values of dtype float32"),
        ({f"{stem}.weight": np.ones((64, 256), np.float32)}, "no weight beside them"),
        ({f"{stem}.int8_scales": np.ones(255, np.float32)}, r"scales of shape \(255,\) .* must be \(256, 64\)"),
        ({"lm_head.int8_scales": np.ones(255, np.float32)}, r"scales of shape \(255,\) .* must be \(257, 64\)"),
        ({f"{stem}.int8_scales": -tensors[f"{stem}.int8_scales"]}, "int8_scales under 0.* is damaged: copy it again"),
        ({f"{stem}.int8_scales": np.zeros(256, np.float32)}, "or of 0 where its int8_values are not"),
        ({f"{stem}.int8_factors": np.zeros(64, np.float32)}, "int8_factors of 0 or less"),
        ({f"{stem}.int8_values": np.ones((64, 255), np.int8)}, r"\+ transformer.h.1.mlp.c_fc.weight \(64, 255\)"),
        ({"transformer.ln_f.bias": np.ones(64, np.int8)}, r"\+ transformer.ln_f.bias \(64,\) int8"),
        (
            {name: None for name in tensors if name.startswith("lm_head")},
            r"- lm_head.weight \(257, 64\) as int8_values",
        ),
        (
            {name: None for name in tensors if name.startswith(stem + ".int8")}
            | {f"{stem}.weight": np.ones((64, 256), np.float32)},  # the others have 8 bits
            r"- transformer.h.1.mlp.c_fc.weight \(64, 256\) as int8_values, .*\n\+ \S+ \(64, 256\)$",
        ),
        (
            {"transformer.wte.weight": None}
            | {f"transformer.wte.int8_{part}": tensors[f"lm_head.int8_{part}"] for part in PARTS},
            r"\+ transformer.wte.weight \(257, 64\) as int8_values",
        ),
    ):
        save_file(
            {name: x for name, x in (tensors | changed).items() if x is not None}, file, metadata={"format": "pt"}
        )
        with pytest.raises(MappingError, match=told):
            dg.load_params(small[0])
        assert main(["inspect", str(small[0])]) == 0
        assert re.search(f"warning .*{told}", capsys.readouterr().out, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("part", ["scales", "factors"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_one_warning(small, tmp_path, capsys, part, value):
    file, name = small[0] / "model.safetensors", f"transformer.h.1.mlp.c_fc.int8_{part}"
    tensors = load_file(file)
    tensors[name][5] = value
    save_file(tensors, file, metadata={"format": "pt"})
    assert main(["convert", str(small[0]), str(tmp_path / "floats"), "--dtype", "float32"]) == 0
    assert capsys.readouterr().err == "warning: 1 weight is NaN or infinite, in transformer.h.1.mlp.c_fc.weight\n"


def test_a_lone_file_has_its_sizes_in_its_shapes(small, tmp_path, capsys):
    folder, params = small
    (folder / "model.safetensors").rename(tmp_path / "lone.safetensors")
    words = [str(tmp_path / "lone.safetensors"), str(tmp_path / "m")]
    assert main(["convert", *words, "--tokenizer", str(folder), "--heads", "2"]) == 0
    assert_same_bits(dg.load_params(tmp_path / "m")[0], params)
    (folder / "config.json").unlink()
    assert main(["convert", *words, "--tokenizer", str(folder), "--heads", "2", "--force"]) == 0
    found, config = dg.load_params(tmp_path / "m")
    assert_same_bits(found, params)
    assert not config.tie_word_embeddings  # which no shape tells: the head of an int8 model is always its own


@pytest.mark.parametrize("part", PARTS)
def test_what_cannot_be_read_back_is_not_written(small, tmp_path, part):
    _, params = small
    kernel = params["lm_head"]["kernel"]
    broken = [params | {"lm_head": {"kernel": kernel._replace(**{part: getattr(kernel, part)[:-1]})}}]
    broken += [params | {"h_1": draw_params(WITH_BYTES)["h_1"]}] if part == "values" else []
    for one in broken:
        with pytest.raises(MappingError):
            dg.write_directory(tmp_path / "m", one, WITH_BYTES, BYTES)
    assert not (tmp_path / "m").exists()


def test_convert_makes_int8_and_floats_again(small, tmp_path, capsys):
    folder, params = small
    floats, again = tmp_path / "floats", tmp_path / "again"
    assert main(["convert", str(folder), str(floats), "--dtype", "float32"]) == 0
    assert_same_bits(dg.load_params(floats)[0], dg.dequantize(params, WITH_BYTES))
    assert main(["convert", str(floats), str(again), "--dtype", "int8"]) == 0
    assert "parameters, int8" in capsys.readouterr().out
    assert_same_bits(dg.load_params(again)[0], dg.quantize(dg.load_params(floats)[0]))
    assert main(["convert", str(folder), str(tmp_path / "kept")]) == 0
    assert_same_bits(dg.load_params(tmp_path / "kept")[0], params)


@pytest.mark.parametrize("form", ["pkl", "gguf"])
def test_other_forms_want_floats(small, tmp_path, capsys, form):
    for flags in ([], ["--dtype", "keep"], ["--dtype", "int8"]):
        assert main(["convert", str(small[0]), str(tmp_path / f"m.{form}"), "--to", form, *flags]) == 1
        told = capsys.readouterr().err
        assert "int8 weights go into a model directory alone" in told
        assert told.count("\n") == 1
    assert not (tmp_path / f"m.{form}").exists()
    if form == "pkl":
        assert main(["convert", str(small[0]), str(tmp_path / "m.pkl"), "--to", "pkl", "--dtype", "float16"]) == 0


def test_inspect_knows_it(small, capsys):
    assert main(["inspect", str(small[0])]) == 0
    told = capsys.readouterr().out
    assert "GPT-2 language model" in told
    assert f"{WITH_BYTES.num_parameters:,}" in told
    assert "int8 × 9" in told
    assert "warning" not in told


def test_training_does_not_begin_from_it(small, tmp_path, capsys):
    data = tmp_path / "talk.jsonl"
    data.write_text('{"turns": ["Hi!", "Hello."]}\n' * 2)
    words = ["--data", str(data), "--init", str(small[0]), "--out", str(tmp_path / "run"), "--steps", "1"]
    assert main(["train", *words]) == 1
    assert "the parameters are int8" in capsys.readouterr().err
