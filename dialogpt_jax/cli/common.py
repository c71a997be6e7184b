"""What the commands that reply share: their flags, and the bot that they name."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from dialogpt_jax.chat.setting_words import biases_of
from dialogpt_jax.cli.flags import (
    AGAIN,
    BEAMS,
    HYPHEN,
    MODEL,
    REPLY,
    SAMPLING,
    WHOLE,
    WORDING,
    UsageError,
    flags_of,
    number,
    said,
)
from dialogpt_jax.cli.program_cache import OFF_VARIABLE, keep_compiled_programs
from dialogpt_jax.cli.rank_flags import ModelsThatRank
from dialogpt_jax.decoding.beam_options import EARLY_STOPPING_WORDS, BeamOptions
from dialogpt_jax.decoding.contrastive_options import DEFAULT_K, ContrastiveOptions
from dialogpt_jax.decoding.sampling import GREEDY, SCOPES, Sampling, Scope
from dialogpt_jax.ranking.safety import Safety
from dialogpt_jax.replies.settings import DEFAULT_MAX_NEW_TOKENS, DEFAULT_SAMPLING, DEFAULT_SEED
from dialogpt_jax.weights.dtypes import DTypeName

if TYPE_CHECKING:
    from dialogpt_jax.chat.bot import Bot

SAMPLING_HELP = {
    "temperature": "lower is safer, 0 is greedy",
    "top_k": "draw among the K best tokens; 0: among all",
    "top_p": "draw among the best that hold P; 1: among all",
    "min_p": "only tokens P times as probable as the best",
    "top_n_sigma": "only tokens whose logit is N deviations or less below the best",
    "typical_p": "draw among the P whose surprise is usual",
    "epsilon_cutoff": "only tokens at least this probable",
    "eta_cutoff": "the same, lower where much is possible",
    "xtc_probability": "so often, 0 to 1, leave out the likely tokens but for the least likely of them",
    "xtc_threshold": "which are those at least this probable (0.1)",
}
AGAIN_HELP = {
    "no_repeat_ngram": "no N tokens in a row twice; 0: any",
    "ngram_scope": "where they were said: in the `reply`, the bot's `own` turns too, or the whole `context`",
    "repetition_penalty": "over 1: say a word less often again",
    "presence_penalty": "over 0: say what was said less often again",
    "frequency_penalty": "the same for each time that it was said",
    "penalty_scope": "what the penalties look at: the `reply`, the bot's `own` turns too, or the whole `context`",
    "dry_multiplier": "over 0: carry on less often what was said before, the longer the less",
    "dry_base": "how much more for each token more (1.75)",
    "dry_allowed_length": "from so many tokens in a row on (2)",
    "dry_range": "among so many of the last tokens (all)",
    "dry_scope": "where it was said, as for --ngram-scope",
    "dry_breakers": "no repeat goes across a token that holds this; repeatable",
}
WORDING_HELP = {
    "stop_strings": "the reply ends where it holds this; repeatable",
    "bad_words": "the reply never says this word; repeatable",
    "logit_bias": "TEXT=N: add N to the logit of the word; repeatable",
    "min_new_tokens": "the shortest reply, in tokens",
    "decay_start": "after so many tokens the end grows more likely; with --decay-factor",
    "decay_factor": "so fast; over 1",
    "forced_end": "a reply that is cut ends all the same",
    "suppress_tokens": "a token id that never comes; repeatable",
    "begin_suppress_tokens": "the same, as the reply's first token",
    "forced_tokens": "a token id that the reply begins with; repeatable, in this order",
}
SAMPLING_TYPES = {
    **dict.fromkeys(SCOPES, Scope),
    **dict.fromkeys(("stop_strings", "bad_words", "logit_bias", "dry_breakers"), list[str]),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "forced_tokens"), list[int]),
}
BEAM_HELP = {
    "beams": "the best reply that a search with N beams finds; greedy, unless a sampling is said",
    "length_penalty": "with --beams: over 0 favours long replies",
    "early_stopping": "with --beams: done when N replies are: `yes`, at once; `no`, when the best beam is no better; "
    "`never`, when it could not become better",
    "beam_groups": "with --beams: search in N groups that say different things; N divides the beams",
    "diversity_penalty": "with --beam-groups: what a token loses for each beam of an earlier group that says it (0.5)",
}
if TYPE_CHECKING:

    class SamplingFlags(Any): ...

    class BeamFlags(Any): ...

    class SamplingChanges(Any): ...
else:
    BeamFlags = flags_of(BeamOptions, BEAMS, types={"early_stopping": Literal[*EARLY_STOPPING_WORDS]}, help=BEAM_HELP)
    _how = {
        "without": ("processors",),  # functions, which no word of a command line is
        "types": SAMPLING_TYPES,
        "help": SAMPLING_HELP | AGAIN_HELP | WORDING_HELP,
        "groups": dict.fromkeys(AGAIN_HELP, AGAIN) | dict.fromkeys(WORDING_HELP, WORDING),
        "names": {"stop_strings": "--stop"},
    }
    SamplingChanges = flags_of(Sampling, SAMPLING, defaults=Sampling(None, min_new_tokens=None), **_how)
    SamplingFlags = flags_of(Sampling, SAMPLING, defaults=DEFAULT_SAMPLING, **_how)
Block = Annotated[
    str | None,
    Parameter(
        metavar="FILE",
        group=REPLY,
        help="what the bot must not say, in any case: a word or phrase a line, or a regular expression between slashes; "
        "another reply is given instead, shown sentence by sentence",
    ),
]
PenaltyAlpha = Annotated[
    float | None,
    Parameter(
        name="--penalty-alpha",
        metavar="A",
        converter=number,
        group=BEAMS,
        help="contrastive search: of the --top-k likeliest tokens (4) the one that is likely and says something new; A, 0 "
        "to 1, is how much the new counts (0.6 is usual)",
    ),
]
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


def load_bot(
    flags: ModelFlags,
    ranking: ModelsThatRank | None = None,
    block: str | None = None,
    drafts: Mapping[str, Any] | None = None,
    *,
    one_reply: bool = False,
) -> "Bot":
    """The bot that the flags name, with what ranks its replies, the file of what it must not say, and what drafts for it.

    It is behind a compilation cache, unless that is turned off; of `one_reply` the program is loaded while the model is.
    """
    if flags.compilation_cache:
        keep_compiled_programs(whole=one_reply)
    # Here, as in the commands, since it imports jax: their help need not wait for it.
    from dialogpt_jax.chat.loading import load

    others: dict[str, Any] = {} if ranking is None else {"reverse": ranking.reverse, "ranker": ranking.ranker}
    if block is not None:
        others["safety"] = Safety.read(block)
    return load(flags.model, dtype=flags.dtype, revision=flags.revision, **others, **(drafts or {}))


def sampling_of(flags: Any, base: Sampling = DEFAULT_SAMPLING) -> Sampling:
    """A sampling with what the flags change."""
    changes = said(flags)
    for name in ("stop_strings", "bad_words", "logit_bias", "dry_breakers"):
        if name in changes:
            changes[name] = [text.replace(HYPHEN, "-") for text in changes[name]]
    if "logit_bias" in changes:
        changes["logit_bias"] = biases_of(changes["logit_bias"])
    for name, all_of_them in (("top_k", 0), ("top_p", 1), ("no_repeat_ngram", 0)):
        if changes.get(name) == all_of_them:
            changes[name] = None
    return dataclasses.replace(base, **changes)


def beams_of(flags: Any) -> BeamOptions | None:
    """How beams are searched; `None` without --beams."""
    given = said(flags)
    if "beams" not in given:
        for name in given:
            raise UsageError(f"--{name.replace('_', '-')} goes with --beams N")
        return None
    if "early_stopping" in given:
        given["early_stopping"] = EARLY_STOPPING_WORDS[given["early_stopping"]]
    return BeamOptions(**given)


def contrastive_of(
    penalty_alpha: float | None, sampling: Any, beams: BeamOptions | None, rank: Any
) -> ContrastiveOptions | None:
    """How contrastive search chooses, with the --top-k of the flags of a sampling; `None` without --penalty-alpha."""
    if penalty_alpha is None:
        return None
    for name, way in (("--beams", beams), ("--rank", rank)):
        if way is not None:
            raise UsageError(f"--penalty-alpha and {name} are two ways to a reply; give one of them")
    if said(sampling).get("temperature"):
        raise UsageError("--penalty-alpha draws nothing; leave --temperature out")
    return ContrastiveOptions(penalty_alpha, said(sampling).get("top_k", DEFAULT_K))


def greedy_of(flags: Any) -> Sampling:
    """The sampling of contrastive search, whose --top-k is another thing."""
    return dataclasses.replace(sampling_of(flags, GREEDY), top_k=None)


def seed_of(word: str) -> int | None:
    """The number given, or `None` for `random`."""
    if word == "random":
        return None
    if not word.isascii() or not word.isdigit():
        raise ValueError(f"--seed is {word!r}; give a whole number from 0, or `random`")
    return int(word)
