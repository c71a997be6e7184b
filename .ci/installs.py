"""Each way to have the package must import and type-check, `dialogpt_jax.convert` included: an editable install, a wheel, a
wheel made from the sdist, a checkout on the path, and a Python that works inside a checkout. A program like a user's is run
in each and read by mypy and pyright, which must refuse its wrong lines and no other.

python installs.py EMPTY_FOLDER    # a Python that has the package's dependencies, mypy, pyright and build

What is tried is the commit at hand. Each way has an environment of its own, which finds the dependencies in this Python's.
"""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

PROGRAM = """
import dialogpt_jax as dg
from dialogpt_jax.convert.doctor import inspect
from dialogpt_jax.convert.read import read


def talk(bot: dg.Bot) -> list[str]:
    first: str = bot.reply("Hi!")
    return [first, *bot.replies([["Hi!"], ["Hi!", "Hello.", "How are you?"], [{"role": "user", "content": "Hi!"}]])]


def wrong(bot: dg.Bot) -> None:
    bot.replies(["Hi!"])  # wrong: a dialogue is a list
    bot.reply("Hi!", seed="one")  # wrong
    dg.load().config.n_layers  # wrong: the field is n_layer
    read("weights.bin").tensor  # wrong: the field is tensors


if __name__ == "__main__":
    print(dg.__version__, dg.__file__, inspect.__module__, read.__module__)
"""
WRONG = [number for number, line in enumerate(PROGRAM.splitlines(), start=1) if "# wrong" in line]


def call(*command: object, cwd: Path, path: Path | None = None, may_fail: bool = False) -> str:
    """The output of a command, both streams."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"PYTHONPATH": str(path)} if path else {}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert may_fail or done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def source(folder: Path) -> Path:
    """A copy of the commit at hand, as a clone has it."""
    folder.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "-C", Path(__file__).parents[1], "archive", "--format=tar", "HEAD"], check=True, stdout=subprocess.PIPE
    )
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


def environment(folder: Path) -> Path:
    """The Python of a new environment that finds the dependencies of this one, but not what is installed editable in it."""
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    here = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    (Path(here) / "dependencies.pth").write_text(
        sysconfig.get_path("purelib") + "\n"
    )  # its own .pth files are not read
    return python


def refuse_warnings(said: str) -> None:
    """Nothing that a user builds or installs may warn; pip's words about an index on disk are about the machine."""
    warnings = [line for line in said.splitlines() if "warn" in line.lower() and "is ignored: it is" not in line]
    assert not warnings, warnings


def install(what: Path, python: Path, *flags: str) -> None:
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--ignore-installed", *flags)
    refuse_warnings(call(*pip, what, cwd=python.parent))


def build(folder: Path, what: Path, *flags: str) -> list[Path]:
    """The files that `python -m build` makes, in a new folder."""
    folder.mkdir()
    refuse_warnings(call(sys.executable, "-m", "build", *flags, "--outdir", folder, what, cwd=folder))
    return sorted(folder.iterdir())


def contents(wheel: Path) -> list[tuple[str, int]]:
    return sorted((info.filename, info.CRC) for info in zipfile.ZipFile(wheel).infolist())


def check(
    name: str, python: Path, cwd: Path, *, cache: Path, path: Path | None = None, found_in: Path, strict: bool = True
) -> None:
    """Runs the program, and holds what the type checkers say against the lines that are marked as wrong."""
    program = cwd / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    said = call(python, program, cwd=cwd, path=path)
    assert str(found_in.resolve()) in said, f"{name}: {said}, not in {found_in}"
    mypy = [sys.executable, "-m", "mypy", "--python-executable", python, "--cache-dir", cache]
    mypy += ["--strict"] if strict else []
    said_by_mypy = call(*mypy, program.name, cwd=cwd, path=path, may_fail=True).splitlines()
    lines = [line for line in said_by_mypy if ": error: " in line]  # and not its notes
    wrong = sorted({int(line.split(":")[1]) for line in lines if line.startswith(f"{program.name}:")})
    assert wrong == WRONG, f"{name}, mypy:\n" + "\n".join(lines)
    assert len(lines) == len(wrong), f"{name}, mypy:\n" + "\n".join(lines)
    pyright = (sys.executable, "-m", "pyright", "--pythonpath", python, "--outputjson", program.name)
    found = json.loads(call(*pyright, cwd=cwd, path=path, may_fail=True))["generalDiagnostics"]
    errors = [one for one in found if one["severity"] == "error"]
    wrong = sorted({one["range"]["start"]["line"] + 1 for one in errors})
    assert wrong == WRONG, f"{name}, pyright: {json.dumps(errors, indent=1)}"
    print(f"{name}: {said.strip()}; mypy and pyright refuse lines {WRONG} alone", flush=True)


def main(work: Path) -> None:
    checkout, cache = source(work / "checkout"), work / "mypy"
    wheel, sdist = sorted(build(work / "dist", checkout, "--sdist", "--wheel"), key=lambda file: file.suffix == ".gz")
    (again,) = build(work / "again", sdist, "--wheel")
    assert contents(again) == contents(wheel), set(contents(again)) ^ set(contents(wheel))

    without_links = source(work / "without-links")  # as a system or an archive without links leaves it
    (without_links / "dialogpt_jax" / "convert").unlink()
    (without_links / "dialogpt_jax" / "convert").write_text("../convert")
    (other,) = build(work / "other", without_links, "--wheel")
    assert contents(other) == contents(wheel), set(contents(other)) ^ set(contents(wheel))
    said = call(sys.executable, "-c", "import dialogpt_jax", cwd=without_links, may_fail=True)
    assert "convert is not the link to ../convert that it should be" in said.splitlines()[-1], said

    for name, what in (("a wheel", wheel), ("a wheel from the sdist", again), ("an editable install", checkout)):
        folder = work / name.replace(" ", "-")
        (folder / "user").mkdir(parents=True)
        python = environment(folder / "venv")
        install(what, python, *(["--editable"] if what == checkout else []))
        check(name, python, folder / "user", cache=cache, found_in=checkout if what == checkout else folder)
    (work / "bare" / "user").mkdir(parents=True)
    bare = environment(work / "bare" / "venv")
    check("a checkout on the path", bare, work / "bare" / "user", cache=cache, path=checkout, found_in=checkout)
    # Here the package's own files are read too, by its own settings: not as strictly.
    check("inside a checkout", bare, checkout, cache=cache, found_in=checkout, strict=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
