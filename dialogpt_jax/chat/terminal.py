"""The chat on a terminal or through a pipe: lines in, replies out as they are drawn. All side effects of `dialogpt chat`.

On a terminal there are a prompt, colours and line editing. Through a pipe each line gets its reply on a line of stdout,
and nothing else; what goes wrong is a line on stderr, and the chat goes on.
"""

import contextlib
import dataclasses
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from dialogpt_jax.chat.bot import Bot
from dialogpt_jax.chat.session import Chat
from dialogpt_jax.chat.settings import checked_length, seed_or_drawn
from dialogpt_jax.decoding.logits import Sampling, describe_sampling
from dialogpt_jax.errors import escape_controls, one_line
from dialogpt_jax.text.dialogue import TruncationWarning
from dialogpt_jax.text.lines import written_lines

HELP = """\
/undo              take the last turn and its reply back
/retry             another reply to the last turn
/reset             begin anew
/save FILE         write the chat; /load FILE goes on with it
/settings          show them; /settings temperature 0.5 sets one, /settings top_k none turns one off
/help, /quit       this list; leave (also Ctrl-D). Ctrl-C stops a reply."""

_ONE_LINE = str.maketrans("\r\n", "  ")

SETTINGS = {field.name: field.type for field in dataclasses.fields(Sampling)}


class Terminal:
    """One conversation with a person or a program.

    Attributes:
      chat: the conversation; `/load` replaces it.
    """

    def __init__(self, bot: Bot, chat: Chat, *, name: str):
        self.chat, self._bot, self._name = chat, bot, name
        self._person = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
        self._out, self._err = Console(highlight=False), Console(stderr=True, highlight=False)

    def run(self) -> int:
        """Until the end of the input, or `/quit`."""
        if self._person:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  gives input() editing and history
            self._say(
                f"{self._name}: {self._bot.config.num_parameters:,} parameters. {describe_sampling(self.chat.sampling)}."
            )
            self._say("/help lists the commands, Ctrl-D leaves.")
        with warnings.catch_warnings():
            warnings.simplefilter("always", TruncationWarning)  # each time, not the first time only
            others = warnings.showwarning

            def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
                if issubclass(category, TruncationWarning):
                    self._complain(str(message))
                else:
                    others(message, category, *rest, **named)

            warnings.showwarning = show
            for line in self._lines():
                if line.strip() in ("/quit", "/exit"):
                    break
                try:
                    self._answer(line)
                except ValueError as error:
                    self._complain(one_line(error))
        return 0

    def _lines(self) -> Iterator[str]:
        if not self._person:
            # A program may be started with its input closed: then there is nothing to read.
            yield from written_lines(sys.stdin or ())
            return
        while True:
            try:
                # The marks 1 and 2 tell readline which characters take no room.
                line = input("\001\033[1;36m\002you:\001\033[0m\002 ")
            except KeyboardInterrupt:
                print()
                continue
            except EOFError:
                print()
                return
            if line.strip():
                yield line

    def _answer(self, line: str) -> None:
        if not line.startswith("/"):
            return self._show(self.chat.stream(line))
        command, _, rest = line[1:].strip().partition(" ")
        rest = rest.strip()
        match command:
            case "help":
                self._say(HELP)
            case "undo":
                self._say(f"took back: {self.chat.undo()}")
            case "retry":
                self._show(self.chat.retry_stream())
            case "reset":
                self.chat.reset()
                self._say("begun anew")
            case "save" | "load" if not rest:
                raise ValueError(f"/{command} wants a file: /{command} chat.json")
            case "save":
                with _files():
                    self.chat.save(rest)
                self._say(f"wrote {rest}")
            case "load":
                with _files():
                    self.chat = Chat.load(rest, self._bot)
                self._say(f"{len(self.chat.turns)} turns of {rest}")
            case "settings":
                self._set(rest.split())
                shown = f"{describe_sampling(self.chat.sampling)}, max_new_tokens {self.chat.max_new_tokens}"
                self._say(f"{shown}, seed {self.chat.seed}; {self.chat.context_tokens} tokens of context last")
            case _:
                raise ValueError(f"/{command} is no command; /help lists them")

    def _set(self, words: list[str]) -> None:
        if not words:
            return
        if len(words) != 2 or words[0] not in (*SETTINGS, "max_new_tokens", "seed"):
            names = ", ".join((*SETTINGS, "max_new_tokens", "seed"))
            raise ValueError(f"/settings NAME VALUE, with one of {names}")
        name, text = words
        value: Any
        try:
            value = (None if text == "none" else float(text)) if name in SETTINGS else int(text)
        except ValueError:
            raise ValueError(f"{name}: {text!r} is not a {'number' if name in SETTINGS else 'whole number'}") from None
        if name in SETTINGS:
            if name == "penalize_context":
                value = bool(value)
            self.chat.sampling = dataclasses.replace(self.chat.sampling, **{name: value})
        elif name == "seed":
            self.chat.seed = seed_or_drawn(value)
        else:
            self.chat.max_new_tokens = checked_length(value)

    def _show(self, pieces: Iterator[str]) -> None:
        """Prints a reply as it comes; Ctrl-C ends it between two steps, and what was said stays said."""
        if self._person:
            self._out.print("[bold green]bot:[/] ", end="")
        with _interrupts() as stopped:
            for piece in pieces:
                # Through a pipe a reply is one line, whatever the model says.
                shown = piece if self._person else piece.translate(_ONE_LINE)
                self._out.file.write(escape_controls(shown, keep="\n\t"))
                self._out.file.flush()
                if stopped:
                    pieces.close()  # type: ignore[attr-defined]
                    break
        self._out.file.write("\n")
        self._out.file.flush()
        if self._person and not self.chat.finished:
            self._say("(cut; /settings max_new_tokens 80 lets replies run longer)" if not stopped else "(stopped)")

    def _say(self, text: str) -> None:
        """What is not part of the conversation: grey on a terminal, on stderr through a pipe."""
        if self._person:
            self._print(self._out, text, "dim")
        else:
            self._print(self._err, text)

    def _complain(self, text: str) -> None:
        self._print(self._err, text, "red" if self._person else None)

    @staticmethod
    def _print(console: Console, text: str, style: str | None = None) -> None:
        console.print(escape_controls(text), style=style, markup=False, emoji=False, soft_wrap=True)


@contextlib.contextmanager
def _files() -> Iterator[None]:
    """A file that cannot be read or written is told like any mistake; an output that is gone ends the chat."""
    try:
        yield
    except OSError as error:
        raise ValueError(one_line(error)) from error


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """While it lasts, Ctrl-C is noted in the list instead of raised: a step in progress ends in peace."""
    noted: list[int] = []
    try:
        before = signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    except ValueError:  # not the main thread
        yield noted
        return
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
