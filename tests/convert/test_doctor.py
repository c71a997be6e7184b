"""What a file is, by its contents: every fact is of a file whose making is known."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from fakes import ODD, TINY
from safetensors.numpy import save_file

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.convert import doctor
from dialogpt_jax.convert.doctor import describe_findings, inspect
from dialogpt_jax.convert.mapping import rows
from dialogpt_jax.convert.names import to_microsoft
from dialogpt_jax.convert.weight_file import ReadError, WeightFile

XL = GPT2Config(n_embd=1600, n_layer=48, n_head=25)
SIZES = {"small": GPT2Config.small(), "medium": GPT2Config.medium(), "large": GPT2Config.large(), "GPT-2 XL": XL}


def draw(config, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return {row.name: rng.normal(size=row.shape).astype(dtype) for row in rows(config)}


def weightless(config, dtype=np.float16):
    """A weight file of full size in no memory: each tensor is one number, seen many times."""
    return {row.name: np.broadcast_to(dtype(0.02), row.shape) for row in rows(config)}


def few_ids(config):
    """The same blocks, which alone decide what variant it is."""
    return dataclasses.replace(config, vocab_size=9, n_positions=4, eos_token_id=8)


def microsoft(config):
    """The names and shapes of Microsoft's `.pkl`, in no memory."""
    n = config.n_positions
    tensors = weightless(config)
    tensors |= {
        f"transformer.h.{i}.attn.bias": np.broadcast_to(np.float16(1), (1, 1, n, n)) for i in range(config.n_layer)
    }
    return {**tensors, "lm_head.decoder.weight": tensors["transformer.wte.weight"]}


@pytest.fixture
def claimed(tmp_path, monkeypatch):
    """`inspect` of a file with a given name and given tensors."""

    def look(name, tensors):
        (tmp_path / name).write_bytes(b"stands for the tensors")
        monkeypatch.setattr(doctor, "read", lambda path: WeightFile(tensors, "pytorch legacy", {}))
        return inspect(tmp_path / name)

    return look


def test_the_facts_of_a_file(tmp_path):
    tensors = draw(ODD)
    tensors["transformer.wte.weight"][-3:] = 0
    file = tmp_path / "model.safetensors"
    save_file({f"module.{name}": array for name, array in tensors.items()}, file)
    found = inspect(file, config=ODD)
    assert found.kind == "GPT-2 language model"
    assert found.format == "safetensors"
    assert [dataclasses.astuple(f) for f in found.files] == [
        (file.name, file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())
    ]
    assert (found.layers, found.width, found.heads, found.mlp) == (2, 30, 3, 50)
    assert (found.positions, found.vocabulary, found.zero_rows) == (37, 131, 3)
    assert (found.variant, found.head, found.heads_known) == ("other", "separate", True)
    assert found.parameters == ODD.num_parameters
    assert found.dtypes == {"float32": len(tensors)}
    assert found.tensors == len(tensors)
    assert found.tensor_bytes == 4 * ODD.num_parameters
    assert any(line.startswith("renamed  module.transformer.h.*.ln_1.weight") for line in found.changes)
    assert "head differs" in found.warnings[0]
    assert "says that they are one" not in found.warnings[0]
    assert len(found.warnings) == 1
    assert hashlib.sha256(file.read_bytes()).hexdigest() in describe_findings(found)
    assert json.loads(json.dumps(found.to_json()))["files"][0]["name"] == file.name


@pytest.mark.parametrize("variant", SIZES)
def test_the_variant_is_read_from_the_shapes(claimed, variant):
    # Few ids and positions: the blocks alone decide.
    found = claimed("model.bin", weightless(few_ids(SIZES[variant])))
    assert found.variant == variant
    assert found.heads == SIZES[variant].n_head
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("variant", "parameters", "size"),
    [("small", 124_439_808, 351_240_192), ("medium", 354_823_168, 862_904_320), ("large", 774_030_080, 1_752_215_552)],
)
def test_microsoft_s_files_are_known_by_their_size(claimed, variant, parameters, size):
    found = claimed(f"{variant}_ft.pkl", microsoft(SIZES[variant]))
    assert (found.variant, found.parameters, found.tensor_bytes) == (variant, parameters, size)
    assert found.head == "separate, equal to the token embedding"
    assert found.warnings == ()
    assert f"exactly that of Microsoft's half-precision {variant}" in describe_findings(found)
    assert f"dropped  transformer.h.*.attn.bias (causal mask, computed)  × {found.layers}" in found.changes


def test_our_microsoft_layout_obeys_the_same_formula():
    for config in (TINY, ODD):
        tensors = to_microsoft(draw(config, np.float16), config)
        n, head = config.n_positions, config.vocab_size * config.n_embd
        trunk = config.num_parameters - (0 if config.tie_word_embeddings else head)
        assert sum(array.nbytes for array in tensors.values()) == 2 * (trunk + config.n_layer * n**2 + head)
        for i in range(config.n_layer):
            np.testing.assert_array_equal(
                tensors[f"transformer.h.{i}.attn.bias"], np.tri(n, dtype=np.float16)[None, None]
            )
        addresses = {array.ctypes.data for array in tensors.values()}
        assert len(addresses) == len(tensors)  # nothing shared: the sum is what is on the disk


@pytest.mark.parametrize(
    ("name", "variant", "known"),
    [
        ("medium_ft.pkl", "small", "DSTC medium_ft.pkl"),
        ("small_reverse.pkl", "medium", "published as small_reverse.pkl"),
        ("DialoGPT-large.bin", "GPT-2 XL", "1542M"),
        ("345M.pkl", "large", ""),
        ("gpt2-xl.bin", "small", ""),
    ],
)
def test_a_name_that_says_something_else_is_a_warning(claimed, name, variant, known):
    found = claimed(name, weightless(few_ids(SIZES[variant])))
    assert f"the shapes are {variant}'s" in found.warnings[0]
    assert known in found.warnings[0]


def test_a_ranker_is_told_from_a_chat_model(claimed):
    tensors = weightless(SIZES["medium"], np.float32)
    n = 1024
    tensors |= {f"transformer.h.{i}.attn.bias": np.broadcast_to(np.float32(1), (1, 1, n, n)) for i in range(24)}
    tensors = {f"transformer.{name}": array for name, array in tensors.items()}
    found = claimed("updown.pth", {**tensors, "score.weight": np.ones((1, 1024), np.float32)})
    assert found.kind == "DialogRPT ranker"
    assert found.tensor_bytes == 1_519_960_064
    assert "DialogRPT's .pth" in describe_findings(found)
    assert any("no chat model" in warning for warning in found.warnings)


def test_weights_that_are_not_finite_are_counted(claimed):
    tensors = draw(TINY)
    tensors["transformer.ln_f.bias"][:5] = np.inf
    found = claimed("model.bin", tensors)
    assert found.nonfinite == 5
    assert "5 weights are NaN or infinite" in found.warnings


def test_without_a_config_the_heads_may_be_unknown(claimed):
    found = claimed("model.bin", draw(TINY))
    assert (found.heads, found.heads_known, found.layers) == (None, False, 3)
    assert "number of heads not in the shapes" in describe_findings(found)


def test_a_config_that_does_not_fit_and_extra_tensors_are_warnings(tmp_path):
    save_file({**draw(TINY), "extra.weight": np.ones(3, np.float32)}, tmp_path / "model.bin")
    found = inspect(tmp_path / "model.bin", config=dataclasses.replace(TINY, n_layer=2, n_positions=47))
    assert found.layers == 3
    (warning,) = found.warnings
    assert "+ extra.weight (3,)" in warning
    assert "- transformer.wpe.weight (47, 32)" in warning


def test_what_is_no_gpt2_is_said_so(claimed):
    found = claimed("model.bin", {"encoder.weight": np.ones((3, 4), np.float32), "step": np.array(7)})
    assert found.kind == "not a GPT-2"
    assert "not a GPT-2: no matrix" in found.warnings[0]
    assert found.tensors == 2
    assert found.dtypes == {"float32": 1, "int64": 1}
    assert "not a GPT-2" in describe_findings(found)


def test_a_damaged_file_is_an_error(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"nothing that anyone wrote")
    with pytest.raises(ReadError):
        inspect(tmp_path / "model.bin")


def test_a_guessed_number_of_heads_and_a_head_that_a_config_calls_tied_are_warnings(tmp_path):
    config = dataclasses.replace(TINY, n_embd=128)
    tensors = draw(config)
    save_file(tensors, tmp_path / "model.safetensors")
    (warning,) = inspect(tmp_path / "model.safetensors").warnings
    assert warning.startswith("the number of heads is a guess: 2, of 64 dimensions")
    assert inspect(tmp_path / "model.safetensors", config=config).warnings == ()
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
    tensors["lm_head.weight"][7, 3] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    (warning,) = inspect(tmp_path / "model.safetensors", config=config).warnings
    assert "differs from the token embedding in 1 of 7808 values, though config.json says that they are one" in warning


def test_names_are_escaped_for_a_person_and_true_in_json(claimed):
    found = claimed("model.bin", {f"module.{name}": array for name, array in draw(TINY).items()})
    found = dataclasses.replace(found, changes=("renamed  \x1b[2J -> x",))
    assert r"renamed  \x1b[2J -> x" in describe_findings(found)
    assert found.to_json()["changes"] == ("renamed  \x1b[2J -> x",)
