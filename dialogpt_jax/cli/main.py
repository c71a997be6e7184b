"""The `dialogpt` command: arguments in, an exit status out. Each command is one thin file of this room.

A command's module has `add_arguments(parser)` and `run(args) -> int`; it is imported only when it is called, so that
`dialogpt --help` starts no jax. What a user can put right ends in one line on stderr and status 1 (2 for arguments).
"""

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence

from dialogpt_jax.errors import one_line

COMMANDS = {
    "chat": "talk with a model",
    "reply": "one reply to a dialogue, for scripts",
    "inspect": "say what a weight file or model directory is",
    "convert": "turn a checkpoint into a model directory, or back into Microsoft's layout",
    "data": "look at dialogues for training, and prepare them",
    "train": "train a model, from nothing or from another",
    "eval": "the paper's measures, from files or from a model",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: the words after `dialogpt`; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="dialogpt", description="DialoGPT in JAX and Flax.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    words = list(sys.argv[1:] if argv is None else argv)
    asked = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        chosen = commands.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == asked:
            module = importlib.import_module(f"dialogpt_jax.cli.{name}")
            chosen.description = module.__doc__
            module.add_arguments(chosen)
            chosen.set_defaults(run=module.run)
    args = parser.parse_args(words)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"dialogpt {args.command}: {message}", file=sys.stderr)
            status = args.run(args)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where what goes wrong is told
        return status
    except BrokenPipeError:  # the reader of our output has left, as `| head -1` does
        _drop_output()
        return 141
    except (ValueError, OSError) as error:
        if os.environ.get("DIALOGPT_TRACEBACK"):
            raise
        print(f"dialogpt {args.command}: {one_line(error)}", file=sys.stderr)
        _drop_output()
        return 1
    except KeyboardInterrupt:
        return 130


def _drop_output() -> None:
    """What stdout still holds and cannot write must not fail once more when Python exits."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
