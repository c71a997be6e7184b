"""What the commands that reply share: their flags, and the bot that they name."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dialogpt_jax.chat.settings import DEFAULT_MAX_NEW_TOKENS, DEFAULT_SAMPLING, DEFAULT_SEED
from dialogpt_jax.cli.flags import MODEL, REPLY, SAMPLING, WHOLE, flags_of, said
from dialogpt_jax.cli.program_cache import OFF_VARIABLE, keep_compiled_programs
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.weights.dtypes import DTypeName

if TYPE_CHECKING:
    from dialogpt_jax.chat.bot import Bot

SAMPLING_HELP = {
    "temperature": "lower is safer, 0 is greedy",
    "top_k": "draw among the K best tokens; 0: among all",
    "top_p": "draw among the best that hold P; 1: among all",
    "min_p": "only tokens P times as probable as the best",
    "repetition_penalty": "over 1: say a word less often again",
    "penalize_context": "the penalty is for words of the whole dialogue, not of the reply alone",
    "min_new_tokens": "the shortest reply, in tokens",
}
if TYPE_CHECKING:

    class SamplingFlags(Any): ...

    class SamplingChanges(Any): ...
else:
    SamplingChanges = flags_of(Sampling, SAMPLING, defaults=Sampling(None, min_new_tokens=None), help=SAMPLING_HELP)
    SamplingFlags = flags_of(Sampling, SAMPLING, defaults=DEFAULT_SAMPLING, help=SAMPLING_HELP)
CompilationCache = Annotated[
    bool,
    Parameter(
        name="--compilation-cache",
        negative="--no-compilation-cache",
        show_default=False,
        help=f"keep compiled programs in the user's cache folder, so that the next start is quick; off: {OFF_VARIABLE}=1",
    ),
]


@Parameter(name="*", group=MODEL)
@dataclasses.dataclass(frozen=True)
class ModelFlags:
    """Which model replies, and how it is computed."""

    model: Annotated[
        str | None,
        Parameter(
            metavar="MODEL",
            help="a model directory, or a name on the Hub such as microsoft/DialoGPT-medium; "
            "without it, the small model that ships with the package",
        ),
    ] = None
    revision: Annotated[str | None, Parameter(metavar="NAME", help="branch, tag or commit of a Hub model")] = None
    dtype: Annotated[
        DTypeName | None,
        Parameter(
            metavar="NAME",
            help="compute in this (float32); bfloat16 halves the memory, with int8 a token comes soonest on CPU",
        ),
    ] = None
    compilation_cache: CompilationCache = True


@Parameter(name="*", group=REPLY)
@dataclasses.dataclass(frozen=True)
class ReplyFlags:
    """How a reply is made."""

    seed: Annotated[str, Parameter(metavar="N", help="the same seed repeats a conversation; `random` draws one")] = str(
        DEFAULT_SEED
    )
    max_new_tokens: Annotated[int, WHOLE, Parameter(metavar="N", help="the longest reply, in tokens")] = (
        DEFAULT_MAX_NEW_TOKENS
    )


def load_bot(flags: ModelFlags) -> "Bot":
    """The bot that the flags name, behind a compilation cache unless that is turned off."""
    # Here, as in the commands, since it imports jax: their help need not wait for it.
    from dialogpt_jax.chat.bot import load

    if flags.compilation_cache:
        keep_compiled_programs()
    return load(flags.model, dtype=flags.dtype, revision=flags.revision)


def sampling_of(flags: Any, base: Sampling = DEFAULT_SAMPLING) -> Sampling:
    """A sampling with what the flags change."""
    changes = said(flags)
    for name, all_of_them in (("top_k", 0), ("top_p", 1)):
        if changes.get(name) == all_of_them:
            changes[name] = None
    return dataclasses.replace(base, **changes)


def seed_of(word: str) -> int | None:
    """The number given, or `None` for `random`."""
    if word == "random":
        return None
    if not word.isascii() or not word.isdigit():
        raise ValueError(f"--seed is {word!r}; give a whole number from 0, or `random`")
    return int(word)
