"""Runs the code that people read: the examples in the docstrings of what is public, or the Python blocks of Markdown files.

python examples.py                   # the docstrings; in an empty folder, since some examples write files
python examples.py FILE.md           # the file's blocks, one after the other, as one program
python examples.py --torch FILE.md   # those that are marked `python torch` too

A process of its own, since the examples are for one device and without the strict settings of the tests.
"""

import doctest
import functools
import inspect
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dialogpt_jax as dg


class AnyText(doctest.OutputChecker):
    """`'...'` stands for any text, which Python shows in double quotes where it holds an apostrophe."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return super().check_output(want, re.sub('"[^"]*"', "'…'", got) if "..." in want else got, optionflags)


def run_docstrings() -> int:
    """The number of examples that failed; each is printed."""
    from dialogpt_jax.data.example_options import make_example_options
    from dialogpt_jax.data.prepare import prepare

    bot = dg.load()
    bot.save("tokenizer")
    Path("talk.jsonl").write_text('{"turns": ["Hi!", "Hello."]}\n{"turns": ["Bye!", "Goodbye."]}\n', encoding="utf-8")
    prepare(["talk.jsonl"], "prepared", "tokenizer", make_example_options("tokenizer"), workers=1)
    names = {"dg": dg, "bot": bot, "functools": functools, "jax": jax, "jnp": jnp, "np": np, "optax": optax}
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner(AnyText(), optionflags=doctest.ELLIPSIS)
    for name in ["", *dg.__all__]:
        thing = getattr(dg, name) if name else dg
        if inspect.isclass(thing) or inspect.isroutine(thing) or callable(thing) or not name:
            for test in finder.find(inspect.unwrap(thing), name or "dialogpt_jax", module=False):
                test.globs = names  # one for all: an example goes on from those before it
                runner.run(test, clear_globs=False)
    failed, tried = runner.summarize()
    print(f"{tried} lines of examples, {failed} failed")
    return failed


def run_markdown(file: Path, marks: str) -> None:
    """Runs the blocks of a file whose mark is among `marks`, with the file's lines in a traceback."""
    text = file.read_text(encoding="utf-8")
    names: dict[str, object] = {"__name__": "__main__"}
    for block in re.finditer(rf"^```(?:{marks})\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        before = text[: block.start(1)].count("\n")
        exec(compile("\n" * before + block.group(1), str(file), "exec"), names)


if __name__ == "__main__":
    words = sys.argv[1:]
    if not words:
        sys.exit(bool(run_docstrings()))
    run_markdown(Path(words[-1]), "python|python torch" if "--torch" in words else "python")
