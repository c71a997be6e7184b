"""The package as a whole: what importing does and does not do, the public names, the rules that can be checked."""

import ast
import builtins
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dialogpt_jax as dg
from dialogpt_jax import convert

PACKAGE = Path(dg.__file__).parent
CONVERT = Path(next(iter(convert.__path__)))
SOURCES = sorted([*PACKAGE.rglob("*.py"), *CONVERT.glob("*.py")])
MOST_LINES = 330  # with something in them: a file is read in one sitting

IMPORT = """
import json, socket, sys

def refuse(*args, **named):
    raise AssertionError("the network was touched")

socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
import jax
values = lambda: {name: repr(value) for name, value in sorted(jax.config.values.items())}
before = values()
import flax, flax.linen, optax, tokenizers  # what these bring is theirs: flax imports rich, for one
theirs = set(sys.modules)
import dialogpt_jax
from jax._src import xla_bridge
print(json.dumps({
    "devices": list(xla_bridge._backends),
    "flags": [name for name, value in values().items() if before.get(name) != value],
    "modules": sorted({name.partition(".")[0] for name in set(sys.modules) - theirs}),
}))
"""


def test_importing_starts_no_device_touches_no_network_and_sets_no_flag():
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["devices"] == []
    assert found["flags"] == []
    heavy = {"torch", "transformers", "orbax", "grain", "tensorboardX", "huggingface_hub", "rich", "requests"}
    heavy |= {"httpx", "pandas"}
    assert heavy & set(found["modules"]) == set()
    assert "dialogpt_jax" in found["modules"]


def imports(file: Path) -> set[str]:
    """The modules that a file names in an import, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_only_the_model_is_written_in_linen():
    users = [file.name for file in SOURCES if any(name.startswith("flax") for name in imports(file))]
    assert users == ["modules.py"]


@pytest.mark.parametrize("library", ["torch", "transformers", "tensorflow"])
def test_nothing_needs_another_framework(library):
    users = [file.name for file in SOURCES if library in {name.partition(".")[0] for name in imports(file)}]
    # `dialogpt bench` measures it, in a process of its own.
    assert users == (["with_transformers.py"] if library in ("torch", "transformers") else [])


def test_nobody_imports_the_converter_by_its_other_name():
    assert [file.name for file in SOURCES if any(n.partition(".")[0] == "convert" for n in imports(file))] == []


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_a_file_says_what_it_is_and_is_read_in_one_sitting(file):
    text = file.read_text(encoding="utf-8")
    assert sum(bool(line.strip()) for line in text.splitlines()) <= MOST_LINES
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), "a file opens with a paragraph"


def test_dir_is_the_table_of_contents_alone():
    assert set(dir(dg)) == set(dg.__all__)
    assert len(set(dg.__all__)) == len(dg.__all__)
    assert {"load", "Bot", "Sampling", "fit", "DialogueError"} < set(dir(dg))
    modules = [name for name in dir(dg) if inspect.ismodule(getattr(dg, name))]
    assert modules == []


def test_the_version_has_one_source():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "dialogpt_jax/__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", dg.__version__)


def public_things() -> list[tuple[str, object]]:
    """The functions and classes of the table of contents, and the public methods of the classes."""
    found: list[tuple[str, object]] = []
    for name in dg.__all__:
        thing = getattr(dg, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            found.append((name, thing))
        if inspect.isclass(thing) and not issubclass(thing, BaseException):
            found += [
                (f"{name}.{attribute}", getattr(thing, attribute))
                for attribute, value in vars(thing).items()
                if not attribute.startswith("_") and (inspect.isfunction(value) or isinstance(value, classmethod))
            ]
    return found


@pytest.mark.parametrize(("name", "thing"), public_things(), ids=[name for name, _ in public_things()])
def test_what_is_public_explains_itself(name, thing):
    text = inspect.getdoc(thing)
    assert text
    assert not text.startswith(f"{name}("), "a dataclass's own line is no explanation"


def test_every_error_that_a_docstring_names_is_public_and_a_mistake_in_what_is_given():
    named = {
        word
        for _, thing in public_things()
        for word in re.findall(
            r"\b[A-Z]\w*(?:Error|Warning|Mismatch|Weights|Checkpoint)\b", inspect.getdoc(thing) or ""
        )
        if not hasattr(builtins, word)
    }
    assert len(named) > 5
    assert named - set(dg.__all__) == set()
    for name in dg.__all__:
        thing = getattr(dg, name)
        if inspect.isclass(thing) and issubclass(thing, BaseException):
            assert issubclass(thing, (ValueError, TypeError, UserWarning)) or thing is dg.CheckpointError


def test_a_checkout_without_links_says_so_in_one_line(tmp_path):
    copy = tmp_path / "dialogpt_jax"
    copy.mkdir()
    (copy / "__init__.py").write_text((PACKAGE / "__init__.py").read_text(encoding="utf-8"), encoding="utf-8")
    (copy / "convert").write_text("../convert")
    done = subprocess.run([sys.executable, "-c", "import dialogpt_jax"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {copy}/convert is not the link to ../convert")


def test_methods_that_other_programs_use_exist_and_explain_themselves():
    for kind, names in (
        (dg.Bot, "reply replies candidates stream chat save"),
        (dg.Chat, "say stream undo retry reset save load turns"),
        (dg.Tokenizer, "load from_files train encode decode save"),
        (dg.GPT2Config, "small medium large from_hf to_hf"),
    ):
        for name in names.split():
            assert inspect.getdoc(getattr(kind, name)), f"{kind.__name__}.{name}"
    assert {"text", "tokens", "logprobs", "logprob", "finished"} <= set(dg.Candidate.__dataclass_fields__)
    assert {"tokens", "lengths", "finished", "logprobs"} <= set(dg.Generated.__dataclass_fields__)
    assert {"params", "config", "tokenizer"} <= set(dg.Bot.__dataclass_fields__)


def test_the_default_sampling_and_seed_stand_in_the_docstring():
    from dialogpt_jax.replies.settings import DEFAULT_MAX_NEW_TOKENS, DEFAULT_SAMPLING

    text = " ".join(inspect.getdoc(dg.Bot).split())
    on = DEFAULT_SAMPLING
    numbers = {name: getattr(on, name) for name in ("temperature", "top_k", "top_p", "no_repeat_ngram")}
    assert on == dg.Sampling(**numbers)
    assert f"Sampling({', '.join(f'{name}={value}' for name, value in numbers.items())})" in text
    assert f"default {DEFAULT_MAX_NEW_TOKENS}" in text
    assert inspect.signature(dg.Bot.reply).parameters["seed"].default == 0
    assert "default 0: a call repeats" in text
    assert dg.Sampling(top_k=10) == dg.PAPER
    assert dg.GREEDY.temperature is None


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_no_public_name_is_that_of_a_file():
    """Once the file is imported, the package's attribute of that name is the module."""
    assert [name for name in dg.__all__ if importlib.util.find_spec(f"dialogpt_jax.{name}") is not None] == []
