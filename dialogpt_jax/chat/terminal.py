"""The chat on a terminal or through a pipe: lines in, replies out as they are drawn. All side effects of `dialogpt chat`.

On a terminal there are a prompt, colours and line editing. Through a pipe each line gets its reply on a line of stdout,
and nothing else; what goes wrong is a line on stderr, and the chat goes on.
"""

import contextlib
import dataclasses
import glob
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

from dialogpt_jax.chat.bot import Bot
from dialogpt_jax.chat.saved_chat import read_chat
from dialogpt_jax.chat.session import Chat, ChatError
from dialogpt_jax.chat.setting_words import OF_BEAMS, OF_RANK, SETTABLE, SETTINGS, settings_of
from dialogpt_jax.chat.wrapping import WordWrap
from dialogpt_jax.decoding.beam_options import change_beams
from dialogpt_jax.errors import counted, escape_controls, one_line
from dialogpt_jax.ranking.rank_options import change_rank
from dialogpt_jax.ranking.table import PIPE, print_ranking
from dialogpt_jax.replies.settings import checked_length, sampling_for, seed_or_drawn
from dialogpt_jax.text.dialogue import TruncationWarning
from dialogpt_jax.text.lines import written_lines

COMMANDS = ("/undo", "/retry", "/reset", "/save", "/load", "/settings", "/why", "/help", "/quit")
HELP = """\
/undo              take the last turn and its reply back
/retry             another reply to the last turn
/reset             begin anew
/save FILE         write the chat
/load FILE         go on with a chat that /save wrote
/settings          show how replies are drawn
/settings top_k 5  set one of them (or top_k=5); `none`: off
/settings bad_words one "or another"  all of a list
/settings beams 4  the best of a search; it comes whole
/settings rank mmi the best of several; it comes whole
/why               what they were, and why it won
/help              this list
/quit              leave, as Ctrl-D does
Ctrl-C             stop a reply"""

_ONE_LINE = str.maketrans("\r\n", "  ")

SHOWN_TURNS = 4  # of a chat that is gone on with


class Terminal:
    """One conversation with a person or a program.

    Attributes:
      chat: the conversation; `/load` replaces it.
      person: whether input and output are a terminal.
      ready: returns when what a reply needs is there; it is called before each, and nothing by default.
    """

    def __init__(self, bot: Bot, chat: Chat, *, name: str, loaded: str | None = None):
        """
        Args:
          bot, chat: who replies, and what was said so far.
          name: of the model, for the first line.
          loaded: the file that the chat is from.
        """
        self.chat, self._bot, self._name, self._loaded = chat, bot, name, loaded
        self.person = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
        self.ready: Callable[[], None] = lambda: None
        self._out, self._err = Console(highlight=False), Console(stderr=True, highlight=False)

    def run(self) -> int:
        """Until the end of the input, or `/quit`."""
        if self.person:
            _edit_lines()
            self._say(f"{self._name}: {self._bot.config.num_parameters:,} parameters. {self.chat.described()}.")
            self._say("/help lists the commands, Ctrl-D leaves.")
            if self._loaded is not None:
                self._show_turns(self._loaded)
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
        if not self.person:
            # A program may be started with its input closed: then there is nothing to read.
            yield from written_lines(sys.stdin or ())
            return
        while True:
            try:
                # The marks 1 and 2 tell readline which characters have no width.
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
                    self._refuse_other_files(rest)
                    self.chat.save(rest)
                self._say(f"wrote {rest}")
            case "load":
                with _files():
                    self.chat = Chat.load(rest, self._bot)
                self._show_turns(rest)
            case "why":
                if (ranking := self.chat.ranking) is None:
                    if self.chat.rank is not None:
                        raise ValueError("there is no table of the last reply; say something, or /retry")
                    rule = "mmi" if self._bot.sense is None else "sense"
                    raise ValueError(f"the last reply was not chosen among others; /settings rank {rule}")
                pipe = Console(stderr=True, highlight=False, width=PIPE)
                print_ranking(ranking, self._out if self.person else pipe)
            case "settings":
                self._set(rest)
                shown = f"{self.chat.described()}, max_new_tokens {self.chat.max_new_tokens}"
                drafts = (
                    f"; {counted(self.chat.accepted, 'drafts')} accepted in {counted(self.chat.forwards, 'forwards')}"
                )
                self._say(
                    f"{shown}, seed {self.chat.seed}; the last context had {counted(self.chat.context_tokens, 'tokens')}"
                    + drafts * bool(self.chat.forwards)
                )
            case _:
                raise ValueError(f"/{command} is no command; /help lists them")

    def _refuse_other_files(self, path: str) -> None:
        """A chat is written over a chat, and over nothing else that somebody may need."""
        if os.path.isfile(path) and os.path.getsize(path):
            try:
                read_chat(path)  # this bot need not be able to go on with it
            except ChatError:
                raise ValueError(f"{path} is there, and is no chat; name another file") from None

    def _set(self, words: str) -> None:
        changes = settings_of(words)
        beams = change_beams(self.chat.beams, {name: changes[name] for name in OF_BEAMS if name in changes})
        rank = change_rank(self.chat.rank, {name: changes[name] for name in OF_RANK if name in changes})
        if rank is not None and beams is not None:
            raise ValueError("rank and beams are two ways to a reply; turn one off: /settings rank off, or beams none")
        sampling = self.chat.sampling
        if sampling == sampling_for(None, self.chat.beams, self.chat.rank):  # what nobody has said follows these
            sampling = sampling_for(None, beams, rank)
        drawn = {name: value for name, value in changes.items() if name in SETTINGS}
        changed = dataclasses.replace(sampling, **drawn)
        length = checked_length(changes.get("max_new_tokens", self.chat.max_new_tokens))
        seed = seed_or_drawn(changes.get("seed", self.chat.seed))  # all is sound before anything is set
        if rank is None:
            self.chat.rank = None
        self.chat.beams = beams  # unless they are too many for the vocabulary
        self.chat.rank = rank  # unless no model is there for it
        self.chat.sampling, self.chat.max_new_tokens, self.chat.seed = changed, length, seed

    def _show(self, pieces: Iterator[str]) -> None:
        """Prints a reply as it comes; Ctrl-C ends it between two steps, and what was said stays said."""
        wrap = WordWrap(len("bot: "))
        if self.person:
            self._out.print("[bold green]bot:[/] ", end="")
        with _interrupts(quiet=self.person) as stopped:
            self.ready()
            for piece in pieces:
                if self.person:
                    self._write(wrap.feed(escape_controls(piece, keep="\n\t"), self._out.width))
                else:  # through a pipe a reply is one line, whatever the model says
                    self._write(escape_controls(piece.translate(_ONE_LINE), keep="\t"))
                if stopped:
                    pieces.close()  # type: ignore[attr-defined]
                    break
        self._write(wrap.end(self._out.width) + "\n")
        if self.person and not self.chat.finished:
            self._say("(stopped)" if stopped else self._why_cut())

    def _why_cut(self) -> str:
        said, most = self.chat.max_new_tokens, self._bot.config.n_positions
        if said >= most:
            return f"(cut: the model has {most} positions, and no more)"
        longer = f"/settings max_new_tokens {min(2 * said, most)} lets replies run longer"
        return f"(cut after {counted(said, 'tokens')}; {longer})"

    def _show_turns(self, file: str) -> None:
        """How many turns a chat has, and to a person the last of them."""
        turns = self.chat.turns
        held = f"{counted(len(turns), 'turns')} of {file}"
        last = turns[-SHOWN_TURNS:]  # an even number, so the first is the user's
        if not self.person or not turns:
            return self._say(held)
        self._say(f"{held}; the last {len(last)}:" if len(last) < len(turns) else f"{held}:")
        for number, turn in enumerate(last):
            who, colour = ("bot: ", "bold green") if number % 2 else ("you: ", "bold cyan")
            self._out.print(who, style=colour, end="")
            wrap, width = WordWrap(len(who)), self._out.width
            self._write(wrap.feed(escape_controls(turn, keep="\n\t"), width) + wrap.end(width) + "\n")

    def _write(self, text: str) -> None:
        self._out.file.write(text)
        self._out.file.flush()

    def _say(self, text: str) -> None:
        """What is not part of the conversation: grey on a terminal, on stderr through a pipe."""
        if self.person:
            self._print(self._out, text, "dim")
        else:
            self._print(self._err, text)

    def _complain(self, text: str) -> None:
        self._print(self._err, text, "red" if self.person else None)

    def _print(self, console: Console, text: str, style: str | None = None) -> None:
        # A person's lines end between words; a program's where the message ends.
        console.print(escape_controls(text), style=style, markup=False, emoji=False, soft_wrap=not self.person)


def completions(line: str) -> list[str]:
    """What Tab offers for the last word of a line that is being typed: commands, names of settings, files."""
    command, space, rest = line.partition(" ")
    if not space:
        return [f"{name} " for name in COMMANDS if name.startswith(line)] if line.startswith("/") else []
    if command == "/settings":
        return [f"{name} " for name in SETTABLE if name.startswith(rest)]
    if command in ("/load", "/save"):
        found = sorted(glob.glob(glob.escape(rest) + "*"))
        return [f"{path}/" if os.path.isdir(path) else path for path in found]
    return []


def _edit_lines() -> None:
    """Gives `input` editing, a history, and Tab."""
    try:
        import readline
    except ImportError:  # not on this system
        return
    offered: list[str] = []

    def complete(_: str, number: int) -> str | None:
        nonlocal offered
        if number == 0:
            offered = completions(readline.get_line_buffer()[: readline.get_endidx()])
        return offered[number] if number < len(offered) else None

    readline.set_completer_delims(" ")
    readline.set_completer(complete)
    on_mac = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if on_mac else "tab: complete")


@contextlib.contextmanager
def _files() -> Iterator[None]:
    """A file that cannot be read or written is told like any mistake; an output that is gone ends the chat."""
    try:
        yield
    except OSError as error:
        raise ValueError(one_line(error)) from error


@contextlib.contextmanager
def _interrupts(*, quiet: bool) -> Iterator[list[int]]:
    """While it lasts, Ctrl-C is noted in the list instead of raised, so that a step in progress ends.

    Args:
      quiet: what is typed meanwhile, Ctrl-C too, does not show in the middle of the reply; the next prompt has it.
    """
    noted: list[int] = []
    try:
        before = signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    except ValueError:  # not the main thread
        yield noted
        return
    try:
        with _no_echo() if quiet else contextlib.nullcontext():
            yield noted
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _no_echo() -> Iterator[None]:
    """While it lasts, the terminal does not show what is typed."""
    try:
        import termios
    except ImportError:  # not on this system
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    changed = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSANOW, changed)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
