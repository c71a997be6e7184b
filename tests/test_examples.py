"""What people copy runs: the examples in the docstrings of everything public."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dialogpt_jax as dg

HERE = Path(__file__).parent
PLAIN = [name for name in dg.__all__ if not inspect.isclass(getattr(dg, name)) and not callable(getattr(dg, name))]
ERRORS = [n for n in dg.__all__ if inspect.isclass(getattr(dg, n)) and issubclass(getattr(dg, n), BaseException)]


def run_examples(folder: Path, *files: Path) -> str:
    env = dict(os.environ, XLA_FLAGS="--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
    command = [sys.executable, str(HERE / "examples.py"), *map(str, files)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", [name for name in dg.__all__ if name not in PLAIN + ERRORS])
def test_what_is_public_has_an_example(name):
    assert ">>> " in (inspect.getdoc(getattr(dg, name)) or "")


def test_the_examples_in_the_docstrings_run_and_give_what_they_say(tmp_path):
    said = run_examples(tmp_path)
    tried, failed = int(said.split()[-6]), int(said.split()[-2])
    assert tried > 50
    assert failed == 0
