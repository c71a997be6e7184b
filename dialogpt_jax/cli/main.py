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

from dialogpt_jax.cli import streams
from dialogpt_jax.cli.program_cache import heal
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
    words = list(sys.argv[1:] if argv is None else argv)
    streams.prepare()
    try:
        status = _run(words)
        sys.stdout.flush()  # here, where what goes wrong is told
        return status
    except BrokenPipeError:  # the reader of our output has left, as `| head -1` does
        streams.drop_output()
        return 141
    except (ValueError, OSError) as error:
        if os.environ.get("DIALOGPT_TRACEBACK"):
            raise
        lost = streams.drop_output()  # what could not be written has no name of its own
        said = (
            f"standard output: {one_line(lost)}" if lost and not getattr(error, "filename", None) else one_line(error)
        )
        asked = next((word for word in words if word in COMMANDS), None)
        streams.tell(f"dialogpt {asked}: {said}" if asked else f"dialogpt: {said}")
        return 1
    except KeyboardInterrupt:
        streams.drop_output()
        return 130


def _run(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="dialogpt", description="DialoGPT in JAX and Flax.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        chosen = commands.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == asked:
            module = importlib.import_module(f"dialogpt_jax.cli.{name}")
            chosen.description = module.__doc__
            module.add_arguments(chosen)
            chosen.set_defaults(run=module.run)
    try:
        args = parser.parse_args(words)
    except SystemExit as left:  # after help, or what is wrong with the words
        return int(left.code or 0)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _warn(args.command, str(message))
        return args.run(args)


def _warn(command: str, message: str) -> None:
    left = heal(message)
    if left is not None:
        streams.tell(f"dialogpt {command}: {left}")


if __name__ == "__main__":
    sys.exit(main())
