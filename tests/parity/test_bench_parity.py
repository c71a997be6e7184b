"""The engines of `dialogpt bench` compute one model: from the folder that ours writes all say the same, token for token."""

import dataclasses
import importlib

import numpy as np
import pytest

from dialogpt_jax.bench import ours
from dialogpt_jax.bench.cases import Case
from dialogpt_jax.bench.facts import prompts

pytestmark = pytest.mark.parity
CASE = Case("decode", 2, 24, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("bench"))
    pytest.importorskip("gguf")
    ours.write_model(path, size="bundled", model=None, gguf=True)
    return path


@pytest.fixture(scope="module")
def wanted(folder):
    model = ours.load(folder, "float32")
    return np.asarray(ours.generating(model, prompts(folder, CASE.rows, CASE.prompt), CASE.new)().tokens)


def said_by(name: str, folder: str, case: Case):
    engine = importlib.import_module(f"dialogpt_jax.bench.with_{name}")
    program = engine.make(folder, "float32", "", dataclasses.asdict(case), 1)
    program.run()
    program.before()
    return program.run()


def test_transformers_says_the_same(folder, wanted):
    pytest.importorskip("transformers")
    out = said_by("transformers", folder, CASE).numpy()
    np.testing.assert_array_equal(out[:, CASE.prompt :], wanted)


def test_ctranslate2_says_the_same(folder, wanted):
    pytest.importorskip("ctranslate2")
    out = said_by("ctranslate2", folder, CASE)
    np.testing.assert_array_equal([one.sequences_ids[0] for one in out], wanted)


@pytest.mark.llama_cpp
def test_llama_cpp_says_the_same_and_keeps_a_chat(folder, wanted):
    pytest.importorskip("llama_cpp")
    np.testing.assert_array_equal(said_by("llama_cpp", folder, CASE), wanted)
    chat = Case("chat", 1, 0, 8)
    reread = said_by("transformers", folder, chat).numpy()[:, -chat.new :]
    np.testing.assert_array_equal(said_by("llama_cpp", folder, chat), reread)
