"""The Hub, against a local server that speaks its protocol: what is fetched, cached, resumed, and how it fails."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from weights.hub_server import Hub, serve

import dialogpt_jax as dg
from dialogpt_jax.cli.main import main
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.convert.mapping import rows
from dialogpt_jax.convert.read import read
from dialogpt_jax.convert.write_torch import write_torch
from dialogpt_jax.text.tokenizer import Tokenizer
from dialogpt_jax.weights import hub as hub_module
from dialogpt_jax.weights.directory import load_params
from dialogpt_jax.weights.hub import HubError, choose_files, fetch, fetch_tokenizer, resolve, resolve_tokenizer

SMALL = {"config.json": b"{}", "vocab.json": b'{"a": 0}', "merges.txt": b"#version: 0.2\n"}
OTHER = {"README.md": b"hello", "tf_model.h5": b"t" * 5000, "rust_model.ot": b"o" * 5000}
BIN = {"pytorch_model.bin": b"p" * 3000, "flax_model.msgpack": b"f" * 3000}
SAFE = {"model.safetensors": b"s" * 3000}
SHARDS = {
    "model.safetensors.index.json": b'{"weight_map": {"a": "model-00001-of-00002.safetensors",'
    b' "b": "model-00002-of-00002.safetensors"}}',
    "model-00001-of-00002.safetensors": b"1" * 2000,
    "model-00002-of-00002.safetensors": b"2" * 2000,
}
MICROSOFT = "microsoft/DialoGPT-small"  # .bin, msgpack and h5, as the real one


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A Hub, asked online by this process, with a cache of its own."""
    from huggingface_hub import constants, file_download

    hub = Hub(
        {
            MICROSOFT: {"main": {**SMALL, **OTHER, **BIN}, "old": {**SMALL, "model.safetensors": b"older"}},
            "some/safe": {"main": {**SMALL, **OTHER, **BIN, **SAFE}},
            "some/sharded": {"main": {**SMALL, **SHARDS, **BIN}},
            "some/flax": {"main": {**SMALL, "flax_model.msgpack": b"f"}},
            "some/tensorflow": {"main": {**SMALL, **OTHER}},
            "some/notes": {"main": {"README.md": b"hello"}},
            "gpt2": {"main": {**SMALL, **SAFE}},
        }
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)  # what is kept of an answer that breaks off
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    with serve(hub):
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "files"),
    [
        (MICROSOFT, {**SMALL, "pytorch_model.bin": BIN["pytorch_model.bin"]}),
        ("some/safe", {**SMALL, **SAFE}),
        ("some/sharded", {**SMALL, **SHARDS}),
        ("some/flax", {**SMALL, "flax_model.msgpack": b"f"}),
        ("gpt2", {**SMALL, **SAFE}),
    ],
)
def test_one_form_of_the_weights_is_fetched_and_nothing_else(server, name, files):
    assert contents(fetch(name)) == files
    assert sorted(server.downloads()) == sorted(files)


def test_a_revision_is_fetched_by_branch_and_by_commit(server):
    assert contents(fetch(MICROSOFT, "old"))["model.safetensors"] == b"older"
    assert contents(fetch(MICROSOFT, server.commit(MICROSOFT, "old")))["model.safetensors"] == b"older"
    assert contents(fetch(MICROSOFT))["pytorch_model.bin"] == BIN["pytorch_model.bin"]


def test_a_second_fetch_downloads_nothing(server):
    folder = fetch(MICROSOFT)
    server.log.clear()
    assert fetch(MICROSOFT) == folder
    assert server.downloads() == []


@pytest.mark.parametrize("name", [MICROSOFT, "some/sharded"])
def test_offline_the_cache_answers_and_nobody_is_asked(server, name):
    folder = fetch(name)
    server.log.clear()
    assert fetch(name, offline=True) == folder
    assert server.log == []


@pytest.mark.parametrize("down", ["failing", "gone"])
def test_without_a_network_the_cache_answers(server, monkeypatch, down):
    folder = fetch(MICROSOFT)
    if down == "failing":
        server.failing = True
    else:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch(MICROSOFT) == folder
    with pytest.raises(
        HubError, match=r"^some/safe: no such file or directory here, and http.* cannot be reached"
    ) as caught:
        fetch("some/safe")
    assert_one_line(caught.value)


def test_an_interrupted_download_goes_on_where_it_stopped(server):
    server.cuts["pytorch_model.bin"] = [1000]
    assert contents(fetch(MICROSOFT))["pytorch_model.bin"] == BIN["pytorch_model.bin"]
    ranges = [asked for _, path, asked in server.log if path.endswith("pytorch_model.bin") and asked]
    assert ranges == ["bytes=1000-"]


def test_a_broken_off_download_keeps_whole_files_and_is_no_model(server):
    server.cuts["model-00002-of-00002.safetensors"] = [0] * 20
    with pytest.raises(HubError, match="try again") as caught:
        fetch("some/sharded")
    assert_one_line(caught.value)
    with pytest.raises(HubError, match="not in the cache"):
        fetch("some/sharded", offline=True)
    server.cuts.clear()
    server.log.clear()
    assert contents(fetch("some/sharded")) == {**SMALL, **SHARDS}
    assert "model-00001-of-00002.safetensors" not in server.downloads()


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("some/absent", None, "^some/absent: no such file or directory here, and no such model on .*: check the name"),
        (MICROSOFT, "absent", "no revision absent"),
        ("some/gated", None, "gated; accept its conditions at .*hf auth login"),
        ("some/tensorflow", None, "has none of model.safetensors, .*its files: .*tf_model.h5"),
        ("some/notes", None, "no config.json"),
        ("a--b/..c", None, "not a name on the Hub"),
    ],
)
def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(server, name, revision, message):
    server.repos["some/gated"] = {"main": SMALL}
    server.gated.add("some/gated")
    with pytest.raises(HubError, match=message) as caught:
        fetch(name, revision)
    assert_one_line(caught.value)


@pytest.mark.parametrize(
    "load",
    [dg.load, dg.load_params, dg.load_ranker, lambda name: dg.load(reverse=name)],
    ids=["load", "params", "ranker", "reverse"],
)
def test_a_name_is_asked_of_the_hub_whoever_loads_it(load):
    with pytest.raises(HubError, match=r"^some/absent: no such file or directory here, and not in the cache; offline"):
        load("some/absent")


def test_offline_and_not_cached_is_one_line(server):
    with pytest.raises(HubError, match="no such file or directory here, and not in the cache; offline") as caught:
        fetch(MICROSOFT, offline=True)
    assert_one_line(caught.value)
    assert server.log == []


def test_a_listed_file_that_is_not_there_is_no_broken_network(server):
    server.missing.add("pytorch_model.bin")
    with pytest.raises(HubError, match=r"lists a file and does not have it .*pytorch_model.bin") as caught:
        fetch(MICROSOFT)
    assert_one_line(caught.value)
    assert "reached" not in str(caught.value)


def test_a_file_that_arrived_damaged_is_removed_and_the_next_call_fetches_it(server):
    server.damaged.add("pytorch_model.bin")
    with pytest.raises(HubError, match=r"pytorch_model.bin arrived damaged .* was removed; try again") as caught:
        fetch(MICROSOFT)
    assert_one_line(caught.value)
    with pytest.raises(HubError, match="not in the cache"):
        fetch(MICROSOFT, offline=True)
    server.damaged.clear()
    assert contents(fetch(MICROSOFT))["pytorch_model.bin"] == BIN["pytorch_model.bin"]


def test_a_finished_file_is_hashed_once(server, monkeypatch):
    hashed = []
    check = hub_module._check_content
    monkeypatch.setattr(hub_module, "_check_content", lambda file, name: hashed.append(file.name) or check(file, name))
    folder = fetch(MICROSOFT)
    assert sorted(hashed) == sorted({**SMALL, "pytorch_model.bin": b""})
    hashed.clear()
    assert fetch(MICROSOFT) == folder == fetch(MICROSOFT, offline=True)
    assert hashed == []


def test_a_full_disk_is_not_called_a_network_problem(server, monkeypatch):
    import huggingface_hub

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(OSError, match="No space left"):
        fetch(MICROSOFT)


def test_a_tokenizer_is_fetched_without_the_weights(server):
    folder = fetch_tokenizer(MICROSOFT)
    assert contents(folder) == SMALL
    assert sorted(server.downloads()) == sorted(SMALL)
    assert fetch_tokenizer(MICROSOFT, offline=True) == folder == resolve_tokenizer(MICROSOFT)
    with pytest.raises(HubError, match="not in the cache"):
        fetch(MICROSOFT, offline=True)
    server.repos["some/wordless"] = {"main": {"config.json": b"{}", "vocab.json": b"{}", **SAFE}}
    with pytest.raises(HubError, match="has no tokenizer that this package reads"):
        fetch_tokenizer("some/wordless")


def test_load_params_and_the_converter_take_a_name(server, tmp_path, capsys):
    """A repository as Microsoft's: `.bin` in half precision, vocab.json and merges.txt."""
    config = GPT2Config(vocab_size=257, n_positions=8, n_embd=64, n_layer=1, n_head=1, eos_token_id=256)
    rng = np.random.default_rng(0)
    tensors = {row.name: rng.normal(size=row.shape).astype(np.float16) for row in rows(config)}
    write_torch(tmp_path / "pytorch_model.bin", tensors)
    Tokenizer.train(["bytes"], 257).save(tmp_path)
    files = {name: (tmp_path / name).read_bytes() for name in ("pytorch_model.bin", "vocab.json", "merges.txt")}
    server.repos["some/small"] = {"main": {**files, "config.json": json.dumps(config.to_hf()).encode()}}
    params, found = load_params("some/small")
    assert found == config
    np.testing.assert_array_equal(params["ln_f"]["bias"], tensors["transformer.ln_f.bias"].astype(np.float32))
    assert main(["convert", "some/small", str(tmp_path / "a")]) == 0
    assert main(["convert", str(tmp_path / "pytorch_model.bin"), str(tmp_path / "b"), "--tokenizer", "some/small"]) == 0
    assert read(tmp_path / "a" / "model.safetensors").tensors.keys() == tensors.keys()
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["inspect", "some/small", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == [
        "the name says small; the shapes are no released model's (1 layer, width 64)"
    ]
    assert main(["convert", "some/absent", str(tmp_path / "c")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_an_existing_directory_wins_over_a_name(server, tmp_path, monkeypatch):
    (tmp_path / MICROSOFT).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert contents(resolve(MICROSOFT)) == {}
    assert server.log == []
    assert resolve("gpt2") == fetch("gpt2")


@pytest.mark.parametrize(
    "path", ["./absent", "~/absent", "/absent/model", "a/b/c", "../absent", "", "a b", "a.pkl", "my/w.BIN"]
)
def test_what_can_only_be_a_path_is_not_asked_for(server, path):
    with pytest.raises(FileNotFoundError, match="no such file or directory"):
        resolve(path)
    assert server.log == []


def test_choose_files_does_not_depend_on_the_listing_s_order():
    files = ["pytorch_model.bin", *SHARDS, *SMALL, *OTHER]
    assert choose_files(files, "x") == choose_files(reversed(files), "x")


def test_names_of_files_in_an_error_are_escaped():
    with pytest.raises(HubError, match=r"its files: \\x1b\[2J\\n\.txt, config.json$"):
        choose_files(["config.json", "\x1b[2J\n.txt"], "x")


@pytest.mark.parametrize("offline", ["0", "1"])
def test_the_environment_of_a_fresh_process_is_honoured(server, tmp_path, offline):
    env = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": offline}
    env.pop("HF_HUB_CACHE", None)
    code = "import sys; from dialogpt_jax.weights.hub import fetch; print(fetch(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, MICROSOFT], env=env, capture_output=True, text=True)
    if offline == "1":
        assert done.returncode != 0
        assert "not in the cache" in done.stderr
        assert server.log == []
    else:
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(str(tmp_path / "home"))


def test_importing_the_module_does_not_import_the_library():
    code = f"import sys, {hub_module.__name__}; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def assert_one_line(error):
    assert "\n" not in str(error)
    assert len(str(error)) < 500
