"""The `dialogpt` command: words in, an exit status out. Each command is one thin file of this room.

A command's module has `app`; it is imported only when it is called, so that `dialogpt --help` imports no jax. What a user
can put right ends in one line on stderr and status 1, or 2 with the usage where the words are wrong; Ctrl-C is 130, a
reader that leaves 141, `kill` 143. All of these take away what is half written.
"""

import contextlib
import difflib
import gc
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

from dialogpt_jax.cli import streams
from dialogpt_jax.cli.compiling import is_compiling_ahead
from dialogpt_jax.cli.program_cache import heal
from dialogpt_jax.errors import one_line

COMMANDS = {
    "chat": "Talk with a model.",
    "reply": "Reply to a dialogue, for scripts.",
    "selfchat": "Let two bots talk to each other, and see what becomes of it.",
    "score": "Say how probable given replies are to a model.",
    "inspect": "Say what a weight file or model directory is.",
    "convert": "Turn weights of any form into a model directory, Microsoft's own file or GGUF.",
    "data": "Look at dialogues for training, and prepare them.",
    "train": "Train a model, from nothing or from another.",
    "eval": "Measure replies as the paper does, from files or from a model.",
    "rules": "Measure the rules by which a reply is chosen, side by side.",
    "bench": "Measure how fast it is here, beside other engines.",
}
OBJECTS_OF_A_START = 300_000  # a reply makes about 270,000
INTERRUPTED = 130  # the status of a process that Ctrl-C ends
AFTER_A_CALLBACK = 0.05  # seconds: a moment, so that what Python does after a callback is done
EXAMPLES = """\
Examples:
  dialogpt chat                                 with the model in the package
  dialogpt reply "Does money buy happiness?"
  dialogpt COMMAND --help                       what a command takes
  dialogpt --install-completion                 Tab completes in the next shell
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: the words after `dialogpt`; those of the process by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    streams.prepare()
    asked = words[0] if words and words[0] in COMMANDS else None
    prefix = f"dialogpt {asked}" if asked else "dialogpt"
    try:
        with _ending_by_signals():
            status = _run(words, prefix)
        streams.flush()  # here, where what goes wrong is told
        return status
    except BrokenPipeError:  # the reader of our output has left, as `| head -1` does
        streams.drop_output()
        return 141
    except (ValueError, OSError) as error:
        if os.environ.get("DIALOGPT_TRACEBACK"):
            raise
        lost = streams.drop_output()  # what could not be written has no name of its own
        told = (
            f"{streams.OUTPUT}: {one_line(lost)}" if lost and not getattr(error, "filename", None) else one_line(error)
        )
        streams.tell(f"{prefix}: {told}")
        return 1
    except KeyboardInterrupt:
        streams.drop_output()
        return INTERRUPTED


def run_process() -> NoReturn:
    """`dialogpt` as a process of its own."""
    _collect_after(OBJECTS_OF_A_START)
    status: Any
    try:
        status = main()
    except SystemExit as ended:  # by a signal
        status = ended.code
    if status == INTERRUPTED or is_compiling_ahead():
        os._exit(status)  # XLA may be compiling still, and Python that tears itself down under it is a segfault
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # all is said: Ctrl-C need not be told any more
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.freeze()  # else Python would look for garbage among all that jax has made, to end all the same
    sys.exit(status)


def _collect_after(objects: int) -> None:
    """Lets Python look for garbage when so many objects are there, and from then on as often as ever.

    What imports and jax's traces make stays; to go through it again and again is a tenth of a reply's time.
    """
    usual = gc.get_threshold()

    def as_usual(phase: str, info: dict[str, int]) -> None:
        if phase == "stop":
            gc.callbacks.remove(as_usual)
            gc.set_threshold(*usual)

    gc.callbacks.append(as_usual)
    gc.set_threshold(objects)


@contextlib.contextmanager
def _ending_by_signals() -> Iterator[None]:
    """While it lasts, `kill` and a terminal that closes raise SystemExit, so that every `finally` runs; once more kills.

    What is ignored already, as by nohup, stays ignored; training puts its own answer to SIGTERM in the place of this.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def ask_again(number: int) -> None:
        if number in taken:
            signal.signal(number, end)

    for number in taken:
        signal.signal(number, end)
    try:
        with _hearing_signals_in_callbacks(ask_again):
            yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _hearing_signals_in_callbacks(ask_again: Callable[[int], None]) -> Iterator[None]:
    """While it lasts, a signal whose exception Python would only print comes once more, when the callback is over.

    That is what becomes of an exception in a finalizer, or in a callback of the garbage collector, of which jax has one.
    """
    shown, waiting = sys.unraisablehook, False

    def send(number: int) -> None:
        nonlocal waiting
        waiting = False
        if hasattr(signal, "pthread_kill"):  # wakes the main thread, should it wait for something
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        else:
            signal.raise_signal(number)

    def hear(unraisable: Any) -> None:
        nonlocal waiting
        error = unraisable.exc_value
        if isinstance(error, KeyboardInterrupt):
            number = int(signal.SIGINT)
        elif isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
            number = error.code - 128
        else:
            shown(unraisable)
            return
        ask_again(number)
        if not waiting:
            waiting = True
            later = threading.Timer(AFTER_A_CALLBACK, send, [number])
            later.daemon = True
            later.start()

    sys.unraisablehook = hear
    try:
        yield
    finally:
        sys.unraisablehook = shown


def make_dialogpt():
    """The command with all its commands, none of which is imported yet."""
    from dialogpt_jax import __version__
    from dialogpt_jax.cli.flags import make_app

    app = make_app(
        "dialogpt",
        "dialogpt COMMAND",
        help="DialoGPT in JAX and Flax: talk with, convert, evaluate and train GPT-2 dialogue models.",
        help_epilogue=EXAMPLES,
        version=__version__,
    )
    for name, summary in COMMANDS.items():
        app.command(f"dialogpt_jax.cli.{name}:app", name=name, help=summary)
    app.register_install_completion_command(help="Let Tab complete commands and flags in your shell.")
    return app


def _run(words: Sequence[str], prefix: str) -> int:
    from cyclopts import CycloptsError, UnknownCommandError

    from dialogpt_jax.cli.flags import HYPHEN, UsageError

    app = make_dialogpt()
    if words[:1] in (["reply"], ["score"]):  # no other command takes a hyphen
        words = [HYPHEN if word == "-" else word for word in words]
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _warn(prefix, str(message))
        try:
            status = app(words, exit_on_error=False, print_error=False, verbose=False, result_action="return_value")
        except (CycloptsError, UsageError) as error:
            # cyclopts would import every command to name those that are near.
            unknown = isinstance(error, UnknownCommandError) and prefix == "dialogpt"
            streams.tell(_usage(app, words))
            told = _unknown(words[0]) if unknown else str(error)
            if prefix == "dialogpt train" and "--dry-run" in told:
                told += " A dry run is --compile-only: it compiles for a TPU and says what the run costs there."
            streams.tell(f"{prefix}: {told}".replace(HYPHEN, "-"))
            return 2
    if status is None and not any(word.startswith("-") for word in words):  # no command was named: this was the help
        return 2
    return status or 0


def _usage(app, words: Sequence[str]) -> str:
    """The usage of the command that the words name, and where to read more."""
    chain, apps, _ = app.parse_commands(words)
    return f"{apps[-1].usage}\nTry `{' '.join(['dialogpt', *chain])} --help`."


def _unknown(word: str) -> str:
    near = difflib.get_close_matches(word, COMMANDS, n=1)
    return f"no command is called {word!r}; " + (
        f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
    )


def _warn(prefix: str, message: str) -> None:
    left = heal(message)
    if left is not None:
        streams.tell(f"{prefix}: {left}")


if __name__ == "__main__":
    run_process()
