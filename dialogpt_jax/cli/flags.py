"""Words of the command line to values: dataclasses of options in, the flags that cyclopts reads for them out.

The option classes own the defaults and say what each field is; a flag that was not said is `None`, and changes nothing.
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter, Token, validators

# A hyphen alone is a value ("from standard input"), which cyclopts would take for an option. No word can hold this.
HYPHEN = "\0-"
_ATTRIBUTES = re.compile(r"^  (\w+(?:, \w+)*): (.*(?:\n {3,}\S.*)*)", re.MULTILINE)


# The panels of the help, in this order.
OPTIONS, WHAT, HOW, WHERE = map(Group.create_ordered, ("Options", "What", "How", "Where and when"))
FILES, ASK, REPLY, SAMPLING, AGAIN, WORDING, BEAMS, RANK = map(
    Group.create_ordered,
    ("From files", "From a model", "Reply", "Sampling", "Saying it again", "What is said", "Beams", "Rank"),
)
MODEL, RESULTS, EXAMPLES_READ = map(Group.create_ordered, ("Model", "Results", "Examples"))


class UsageError(ValueError):
    """The words of a command do not go together; told behind the command's usage, with status 2."""


def make_app(name: str, usage: str, **named: Any) -> App:
    """A command whose flags have no opposite (`--no-json`); said twice, the last counts. Examples stand as written."""
    shown = Parameter(negative=(), allow_repeating=True, show_default=_shown)
    how: dict[str, Any] = {"group_parameters": OPTIONS, "default_parameter": shown} | named
    # Ctrl-C is for `main`: else cyclopts would exit at once.
    return App(name=name, usage=f"Usage: {usage}", help_format="plaintext", suppress_keyboard_interrupt=False, **how)


def _shown(default: Any) -> str | None:
    return None if default is None or default is False or default == "" else str(default)


def whole(_: Any, tokens: Sequence[Token]) -> int:
    """A whole number; cyclopts itself rounds 1.5."""
    word = tokens[0].value
    if not re.fullmatch(r"[+-]?\d+", word, re.ASCII):
        raise ValueError(f"{word.replace(HYPHEN, '-')!r} is no whole number")
    return int(word)


def wholes(_: Any, tokens: Sequence[Token]) -> list[int]:
    """Whole numbers, one for each time that the flag stands there."""
    return [whole(_, [token]) for token in tokens]


def number(_: Any, tokens: Sequence[Token]) -> float:
    """A number, whole where it is written so."""
    try:
        return whole(_, tokens)
    except ValueError:
        pass
    try:
        return float(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value.replace(HYPHEN, '-')!r} is no number") from None


WHOLE = Parameter(converter=whole)
FROM_0 = Parameter(converter=whole, validator=validators.Number(gte=0))
FROM_1 = Parameter(converter=whole, validator=validators.Number(gte=1))


def flags_of(
    options: type,
    group: Group,
    *,
    defaults: Any = None,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    types: Mapping[str, Any] | None = None,
    help: Mapping[str, str] | None = None,
    groups: Mapping[str, Group] | None = None,
    names: Mapping[str, str | tuple[str, ...]] | None = None,
) -> type:
    """A dataclass with a field, `None` by default, for each field of a dataclass of options.

    Args:
      options: the class; a field's line under `Attributes:` is its help.
      group: the panel of the help in which they stand.
      defaults: what stands where nothing is said, for the help; by default what the class itself has.
      only, without: names of fields.
      types: of fields, where a word of the command line has another than the field.
      help: of fields, where the class speaks to programmers.
      groups: of fields that stand in another panel than `group`.
      names: of flags that are not called as their fields are.
    """
    hints, said = typing.get_type_hints(options), described(options) | dict(help or {})
    fields = []
    for field in dataclasses.fields(options):
        if field.name in without or (only is not None and field.name not in only):
            continue
        kinds = typing.get_args(hints[field.name]) or (hints[field.name],)
        default = field.default if defaults is None else getattr(defaults, field.name)
        text = said[field.name]
        if isinstance(default, str | int | float) and default is not False and not text.endswith(")"):
            text = f"{text} ({default})"
        kind: Any = (types or {}).get(field.name)
        converter: Callable[..., Any] | None = None
        if kind is None and float in kinds:
            kind, converter = float, number if int in kinds else None
        elif kind is None:
            kind = next(k for k in kinds if k is not type(None))
            converter = whole if kind is int else None
        metavar = "N" if kind in (int, float, list[int]) else "TEXT" if kind == list[str] else "NAME"
        if kind == list[int]:
            converter = wholes
        shown = Parameter(
            name=(names or {}).get(field.name),
            help=text,
            converter=converter,
            metavar=metavar,
            group=(groups or {}).get(field.name, group),
        )
        # Of some words, `none` is no word; where `None` may stand, cyclopts takes it for a flag that was not said.
        annotation: Any = Annotated[kind if typing.get_origin(kind) is Literal else kind | None, shown]
        fields.append((field.name, annotation, dataclasses.field(default=None)))
    made = dataclasses.make_dataclass(f"{options.__name__}Flags", fields, frozen=True)
    made.__module__ = __name__  # cyclopts takes a class of the module `types` for one that Python brings
    return Parameter(name="*", group=group)(made)


def default_of(function: Callable[..., Any], name: str) -> Any:
    """What a function has where nothing is said for an argument."""
    return inspect.signature(function).parameters[name].default


def described(options: type) -> dict[str, str]:
    """What a docstring says of each field under `Attributes:`, a sentence without its end."""
    found = {}
    _, _, attributes = (inspect.getdoc(options) or "").partition("Attributes:")
    for names, text in _ATTRIBUTES.findall(attributes.partition("Raises:")[0]):
        found.update(dict.fromkeys(names.split(", "), " ".join(text.split()).rstrip(".")))
    return found


def said(flags: Any) -> dict[str, Any]:
    """The flags that were given, by their names."""
    return {name: value for name, value in vars(flags).items() if value is not None}
