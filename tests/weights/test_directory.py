"""A model directory: what is written is read back exactly, whole or not at all; what is broken is one clear line."""

import dataclasses
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from fakes import ODD, TINY, tiny_tokenizer

from dialogpt_jax.config import ConfigError, GPT2Config
from dialogpt_jax.convert.mapping import MappingError, NonFiniteWeights, from_params
from dialogpt_jax.convert.weight_file import ReadError
from dialogpt_jax.model import init_params
from dialogpt_jax.text import lines
from dialogpt_jax.text.tokenizer import Tokenizer
from dialogpt_jax.weights import directory
from dialogpt_jax.weights.directory import ModelDirectoryError, load_params, write_directory
from dialogpt_jax.weights.dtypes import cast, parse_dtype
from dialogpt_jax.weights.other_programs import CHAT_TEMPLATE, ExportWarning

HALF = 2.0**-8  # relative rounding of bfloat16, the coarsest dtype here


def draw(config, dtype=np.float32, seed=0):
    """Parameters in our layout, every number drawn, the vocabulary's pad zero."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), shapes)
    params["wte"]["embedding"][config.vocab_size :] = 0
    if "lm_head" in params:
        params["lm_head"]["kernel"][config.vocab_size :] = 0
    return params


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["a tokenizer of nothing but bytes, and its end"], 257)


@pytest.fixture
def model(tmp_path, tokenizer):
    """A model directory with TINY, whose tokenizer does not matter."""
    return write_directory(tmp_path / "model", draw(TINY), TINY, tokenizer)


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def snapshot(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000, 1])
@pytest.mark.parametrize("config", [TINY, ODD], ids=["tiny", "odd"])
def test_what_is_written_is_read_back_exactly(tmp_path, tokenizer, config, max_shard_bytes):
    params = draw(config)
    folder = write_directory(tmp_path / "m", params, config, tokenizer, max_shard_bytes=max_shard_bytes)
    found, found_config = load_params(folder)
    assert found_config == config
    assert_equal(found, params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))
    assert Tokenizer.load(folder).encode("end") == tokenizer.encode("end")
    assert os.listdir(tmp_path) == ["m"]


def test_shards_are_within_the_limit_and_the_index_names_each_tensor_once(tmp_path, tokenizer):
    params, limit = draw(ODD), 20_000
    folder = write_directory(tmp_path / "m", params, ODD, tokenizer, max_shard_bytes=limit)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = from_params(params, ODD)
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert {shard.name for shard in shards} == set(index["weight_map"].values())
    for shard in shards:
        inside = [tensors[name].nbytes for name, file in index["weight_map"].items() if file == shard.name]
        assert sum(inside) <= limit or len(inside) == 1


def test_the_file_says_its_format_and_config_its_dtype(tmp_path, tokenizer):
    folder = write_directory(tmp_path / "m", draw(ODD), ODD, tokenizer, dtype="bfloat16")
    header = (folder / "model.safetensors").read_bytes()[:200]
    assert b'"__metadata__":{"format":"pt"}' in header
    fields = json.loads((folder / "config.json").read_text())
    assert fields["dtype"] == fields["torch_dtype"] == "bfloat16"
    assert fields["architectures"] == ["GPT2LMHeadModel"]
    assert fields["tie_word_embeddings"] is False


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16", jnp.float32, np.dtype(np.float16)])
def test_the_dtype_is_the_one_asked_for_and_float32_by_default(tmp_path, tokenizer, stored, dtype):
    params = draw(TINY, stored)
    found, _ = load_params(write_directory(tmp_path / "m", params, TINY, tokenizer), dtype)
    expected = jnp.dtype("float32" if dtype is None else dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {expected}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), HALF), found, params
    )


@pytest.mark.parametrize("dtype", ["uint8", "float64", "fp16", "", 3, jnp.int32, object()])
def test_another_dtype_is_one_line(model, dtype):
    with pytest.raises(ValueError, match="known: float32, bfloat16, float16") as caught:
        load_params(model, dtype)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="known"):
        parse_dtype(None)


def test_weights_in_another_dtype_are_laid_out_once_as_jax_lays_them():
    stored_ID, laid = np.ones((3, 5), np.float16).T, []  # as a weight comes from its file
    cast({"kernel": stored_ID}, np.dtype("float32"), to=lambda array: laid.append(array.flags.c_contiguous))
    assert laid == [True]


def test_a_loaded_model_does_not_hang_on_its_file(model):
    found, _ = load_params(model)
    weights = model / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        file.write(b"\xff" * 1000)
    assert_equal(found, draw(TINY))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_what_float16_cannot_hold_is_a_warning(tmp_path, tokenizer, dtype):
    params = draw(TINY, dtype)
    params["ln_f"]["scale"][:3] = 1e5
    folder = write_directory(tmp_path / "m", params, TINY, tokenizer)
    with pytest.warns(NonFiniteWeights, match="3 weights are out of float16's range"):
        load_params(folder, "float16")
    load_params(folder, "bfloat16")


def test_weights_that_are_not_finite_load_with_a_warning(tmp_path, tokenizer):
    params = draw(TINY)
    params["ln_f"]["scale"][0] = np.nan
    folder = write_directory(tmp_path / "m", params, TINY, tokenizer)
    with pytest.warns(NonFiniteWeights, match="1 weight is NaN"):
        load_params(folder)


def test_weights_are_looked_for_in_order(model):
    (model / "pytorch_model.bin").write_bytes(b"not looked at")
    (model / "flax_model.msgpack").write_bytes(b"not looked at")
    load_params(model)
    (model / "pytorch_model.bin").unlink()
    (model / "flax_model.msgpack").unlink()
    (model / "model.safetensors").rename(model / "GP2-pretrain-step-10000.pkl")
    (model / "training_args.bin").write_bytes(b"not weights")
    load_params(model)
    (model / "other.pkl").write_bytes(b"")
    with pytest.raises(ModelDirectoryError, match=r"which of these is the model\? GP2-pretrain-step-10000.pkl, other"):
        load_params(model)


BROKEN = {
    "no config": (lambda m: (m / "config.json").unlink(), ModelDirectoryError, "config.json: not found"),
    "not JSON": (lambda m: (m / "config.json").write_text("{"), ModelDirectoryError, "config.json: not JSON"),
    "not UTF-8": (lambda m: (m / "config.json").write_bytes(b"\xff\xfe"), ModelDirectoryError, "config.json: not JSON"),
    "a list": (lambda m: (m / "config.json").write_text("[]"), ConfigError, "config.json: .*expected a JSON object"),
    "deep": (lambda m: (m / "config.json").write_text("[" * 10**5), ModelDirectoryError, "config.json: not JSON"),
    "a string": (lambda m: edit(m, n_layer="12"), ConfigError, "config.json: .*n_layer is '12'"),
    "a null": (lambda m: edit(m, vocab_size=None), ConfigError, "config.json: "),
    "a bert": (lambda m: edit(m, model_type="bert"), ConfigError, "model_type is 'bert'"),
    "other sizes": (
        lambda m: edit(m, n_layer=2),
        MappingError,
        r"(?s)12 tensors differ.*\+ transformer.h.2.ln_1",
    ),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), ModelDirectoryError, "no weights here"),
    "cut": (lambda m: os.truncate(m / "model.safetensors", 5000), ReadError, "model.safetensors: "),
    "empty": (lambda m: os.truncate(m / "model.safetensors", 0), ReadError, "model.safetensors: "),
}


def edit(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_directory_is_one_clear_error(model, case):
    harm, kind, message = BROKEN[case]
    harm(model)
    with pytest.raises(kind, match=message) as caught:
        load_params(model)
    assert str(model) in str(caught.value)
    assert kind is MappingError or "\n" not in str(caught.value)


def test_what_is_no_directory_says_what_to_do(model, tmp_path):
    with pytest.raises(ModelDirectoryError, match="`dialogpt convert"):
        load_params(model / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="no such file or directory"):
        load_params(tmp_path / "absent")


def test_a_model_is_replaced_and_other_files_stay(model, tokenizer):
    (model / "README.md").write_text("mine")
    (model / "notes").mkdir()
    (model / "notes" / "a.txt").write_text("mine too")
    (model / "pytorch_model.bin").write_bytes(b"the old weights in another form")
    os.chmod(model, 0o750)
    params = draw(ODD, seed=1)
    write_directory(model, params, ODD, tokenizer, max_shard_bytes=50_000)
    write_directory(model, params, ODD, tokenizer)
    found, config = load_params(model)
    assert config == ODD
    assert_equal(found, params)
    names = {file.name for file in model.iterdir()}
    assert {"README.md", "notes"} <= names
    assert not {name for name in names if name.startswith(("pytorch", "model-")) or name.endswith("index.json")}
    assert os.listdir(model.parent) == [model.name]


REPLACING = """
import sys
from pathlib import Path
from dialogpt_jax.text.tokenizer import Tokenizer
from dialogpt_jax.weights.directory import load_params, write_directory

source, target, pauses = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "pauses"
rename = Path.rename

def told(self, to):
    rename(self, to)
    if pauses and self == target:
        print("moved", flush=True)
        sys.stdin.readline()

Path.rename = told
params, config = load_params(source)
print("read", flush=True)
write_directory(target, params, config, Tokenizer.load(source))
"""


def test_two_processes_that_replace_one_model_take_turns(model, tmp_path, tokenizer):
    """The second comes when the first has moved the old model away, and has not yet put its own there."""
    (model / "README.md").write_text("mine")
    sources = [write_directory(tmp_path / f"s{seed}", draw(TINY, seed=seed), TINY, tokenizer) for seed in (1, 2)]
    processes = []
    for source, word, says in zip(sources, ("pauses", "goes"), (["read", "moved"], ["read"]), strict=True):
        words = [sys.executable, "-c", REPLACING, str(source), str(model), word]
        processes.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert [processes[-1].stdout.readline().strip() for _ in says] == says
    with pytest.raises(subprocess.TimeoutExpired):
        processes[1].wait(1)  # second; one that does not wait is done in a tenth of it
    for process in processes:
        process.communicate("\n", timeout=60)  # seconds; a process that hangs has failed
    assert [process.returncode for process in processes] == [0, 0]
    assert_equal(load_params(model), load_params(sources[1]))
    assert (model / "README.md").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["model", "s1", "s2"]


def test_a_new_directory_has_the_usual_permissions(model, tmp_path):
    usual = tmp_path / "usual"
    usual.mkdir()
    assert stat.S_IMODE(model.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


def test_other_people_s_directories_and_files_are_not_touched(tmp_path, tokenizer):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"a photo")
    (tmp_path / "file").write_bytes(b"a file")
    before = snapshot(tmp_path)
    for name in ("photos", "file", "file/below"):
        with pytest.raises((ModelDirectoryError, OSError)):
            write_directory(tmp_path / name, draw(TINY), TINY, tokenizer)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("step", ["_write_weights", "_write_json", "tokenizer", "rename"])
def test_a_failed_write_leaves_what_was_there(tmp_path, tokenizer, monkeypatch, exists, step):
    target = tmp_path / "model"
    if exists:
        write_directory(target, draw(TINY), TINY, tokenizer)
    before = snapshot(tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    if step == "tokenizer":
        monkeypatch.setattr(Tokenizer, "save", full)
    elif step == "rename":
        rename = Path.rename
        to_target = lambda self, to: full() if to == target and ".old" not in self.name else rename(self, to)  # noqa: E731
        monkeypatch.setattr(Path, "rename", to_target)
    else:
        monkeypatch.setattr(directory, step, full)
    with pytest.raises(OSError, match=r"No space left.*model'$"):
        write_directory(target, draw(TINY, seed=3), TINY, tokenizer)
    assert snapshot(tmp_path) == before
    assert os.listdir(tmp_path) == (["model"] if exists else [])


def test_params_that_are_not_the_config_s_write_nothing(tmp_path, tokenizer):
    with pytest.raises(MappingError):
        write_directory(tmp_path / "m", draw(TINY), dataclasses.replace(TINY, n_layer=2), tokenizer)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"scale_attn_weights": False}, "scale_attn_weights False"),
        (
            {"layer_norm_epsilon": 1e-6, "scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_.* True, layer_.* 1e-06",
        ),
    ],
)
def test_what_ctranslate2_ignores_is_named_when_it_is_written(tmp_path, changes, named):
    config = dataclasses.replace(TINY, **changes, vocab_size=320, eos_token_id=319)
    params = draw(config)
    with pytest.warns(ExportWarning, match=f"CTranslate2 ignores {named} of this model"):
        write_directory(tmp_path / "m", params, config, tiny_tokenizer())
    assert json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())["chat_template"] == CHAT_TEMPLATE


def test_names_of_files_in_an_error_are_escaped(tmp_path):
    for name in ("\x1b[2J.bin", "b\n.bin"):
        (tmp_path / name).write_bytes(b"?")
    with pytest.raises(ModelDirectoryError, match=r"which of these is the model\? \\x1b\[2J\.bin, b\\n\.bin;"):
        directory.find_weights(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "vocab.json"])
def test_a_pipe_or_a_file_without_end_in_a_directory_is_refused(model, monkeypatch, name):
    """Neither is waited for nor read: a pipe that nobody writes to, and a file that is as large as the disk."""
    monkeypatch.setattr(lines, "MOST_BYTES", 10_000)
    read = load_params if name == "config.json" else Tokenizer.load
    if name == "vocab.json":
        (model / "tokenizer.json").unlink()
    os.truncate(model / name, 10_001)
    with pytest.raises(ValueError, match=rf"{name}.*10001 bytes, and at most 10000 make sense there"):
        read(model)
    (model / name).unlink()
    os.mkfifo(model / name)
    if name != "tokenizer.json":  # in place of that, vocab.json is read
        with pytest.raises(ValueError, match="no regular file; copy" if name == "config.json" else "no tokenizer here"):
            read(model)


def test_values_of_a_config_are_cut_in_an_error():
    for field, value in (
        ("activation_function", "x" * 10**6),
        ("model_type", {"y" * 10**6: 1}),
        ("n_layer", [0] * 10**6),
    ):
        with pytest.raises(ConfigError, match=field) as caught:
            GPT2Config.from_hf({field: value})
        assert len(str(caught.value)) < 300
