"""What people copy runs: the examples in the docstrings of everything public, README.md and MIGRATION.md each as one
program, and the flags of every `dialogpt` command that a Markdown file shows."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dialogpt_jax as dg
from dialogpt_jax.cli.main import main

HERE = Path(__file__).parent
TOP = HERE.parent
PLAIN = [name for name in dg.__all__ if not inspect.isclass(getattr(dg, name)) and not callable(getattr(dg, name))]
ERRORS = [n for n in dg.__all__ if inspect.isclass(getattr(dg, n)) and issubclass(getattr(dg, n), BaseException)]


def run_examples(folder: Path, *words: str | Path) -> str:
    env = dict(os.environ, XLA_FLAGS="--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
    command = [sys.executable, str(HERE / "examples.py"), *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", [name for name in dg.__all__ if name not in PLAIN + ERRORS])
def test_what_is_public_has_an_example(name):
    assert ">>> " in (inspect.getdoc(getattr(dg, name)) or "")


@pytest.mark.slow  # a minute, of which most compiles the bundled model's programs
def test_the_examples_in_the_docstrings_run_and_give_what_they_say(tmp_path):
    said = run_examples(tmp_path)
    tried, failed = int(said.split()[-6]), int(said.split()[-2])
    assert tried > 50
    assert failed == 0


@pytest.mark.slow  # of the guide the next one runs the same lines, and more
@pytest.mark.parametrize("file", ["README.md", "MIGRATION.md"])
def test_the_python_of_a_guide_runs_as_one_program(tmp_path, file):
    run_examples(tmp_path, TOP / file)


@pytest.mark.parity
def test_the_migration_guide_agrees_with_torch(tmp_path):
    text = (TOP / "MIGRATION.md").read_text(encoding="utf-8")
    assert text.count("```python torch\n") == 2
    run_examples(tmp_path, "--torch", TOP / "MIGRATION.md")


def commands(file: str) -> set[tuple[str, ...]]:
    """The `dialogpt` commands of a file's blocks of code; a line that ends in a backslash goes on."""
    text = (TOP / file).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:sh|console)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [re.search(r"\bdialogpt ([^|#]*)", line) for line in lines]
    return {tuple(one.group(1).split()) for one in found if one}


@pytest.mark.parametrize("file", ["README.md", "MIGRATION.md"])
def test_every_flag_of_a_command_that_is_shown_exists(file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = commands(file)
    assert len(shown) > 3
    for words in shown:
        command = words[:2] if words[0] == "data" else words[:1]
        assert not main([*command, "--help"])
        explained = capsys.readouterr().out
        for flag in {word for word in words if word.startswith("--")}:
            assert re.search(rf"(?<![\w-]){flag}(?![\w-])", explained), f"dialogpt {' '.join(command)} has no {flag}"
