"""The flags of a rank, which `reply`, `chat` and `eval` share: words of the command line in, a `Rank` out."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from dialogpt_jax.cli.flags import RANK, UsageError, flags_of, said
from dialogpt_jax.decoding.beam_options import BeamOptions
from dialogpt_jax.ranking.rank_options import MIXES, RULES, SENSE, SOURCES, Rank

if TYPE_CHECKING:
    from dialogpt_jax.chat.bot import Bot

HELP = {
    "by": "propose several replies and give the best: by `mmi`, what a backward model makes of them; `pmi`, what the "
    "context adds; `rpt`, a ranker; `likelihood`; or `sense`, a head of the model that tells sensible replies. They are "
    "drawn among the 10 best tokens at temperature 1, unless a sampling is said; for `sense` like a plain reply, at 0.5. "
    "The bundled model has such a head: its chats, and single replies as text, are ranked by `sense` unless another way is "
    "said; `off`: one reply is drawn",
    "hypotheses": "with --rank: so many are proposed",
    "backward_weight": "with --rank mmi: how much the backward model counts, 0 to 1 (the paper's); the rest is likelihood",
    "mix": "with --rank mmi: the `sum` of both, which favours short replies, or the `mean` of each a token",
    "source": "with --rank mmi: what it is asked for, the `last` turn or `all`",
    "temperature": "with --rank: 0 takes the best; over 0 draws among them, by softmax(score / T)",
}
NAMES = {"by": "--rank", "temperature": "--rank-temperature"}
# `eval --hypotheses` is a file of replies; so the longer name is everywhere, and the shorter one where it is free.
LONGER, BOTH = "--rank-hypotheses", ("--hypotheses", "--rank-hypotheses")
MODELS = ("reverse", "ranker")
OFF = "off"


@dataclasses.dataclass(frozen=True)
class ModelsThatRank:
    """The models by which replies are ranked."""

    reverse: Annotated[
        str | None,
        Parameter(
            metavar="MODEL",
            help="with --rank: a backward model with the model's vocabulary, as for --model; the bundled one is there "
            "without it",
        ),
    ] = None
    ranker: Annotated[
        str | None, Parameter(metavar="MODEL", help="with --rank: a model that scores replies, such as a DialogRPT")
    ] = None


if TYPE_CHECKING:

    class RankFlags(ModelsThatRank):
        by: str | None

    class EvalRankFlags(ModelsThatRank):
        by: str | None
else:
    _types = {"by": Literal[*RULES, OFF], "source": Literal[*SOURCES], "mix": Literal[*MIXES]}

    @Parameter(name="*", group=RANK)
    @dataclasses.dataclass(frozen=True)
    class RankFlags(ModelsThatRank, flags_of(Rank, RANK, types=_types, help=HELP, names=NAMES | {"hypotheses": BOTH})):
        """How one of several replies is chosen."""

    @Parameter(name="*", group=RANK)
    @dataclasses.dataclass(frozen=True)
    class EvalRankFlags(
        ModelsThatRank, flags_of(Rank, RANK, types=_types, help=HELP, names=NAMES | {"hypotheses": LONGER})
    ):
        """The same, of `eval`."""


def rank_unsaid(flags: Any, *others: Any) -> bool:
    """Whether nobody has said how to reply: no rank, not even off, and none of the other ways."""
    return flags.by is None and all(other is None for other in others)


def rank_by_default(bot: "Bot") -> Rank | None:
    """How its replies are chosen where nobody says so."""
    return None if bot.sense is None else Rank(SENSE)


def rank_of(flags: Any, beams: BeamOptions | None = None) -> Rank | None:
    """How one of several replies is chosen; `None` without --rank, or with --rank off."""
    given = said(flags)
    options = {name: value for name, value in given.items() if name not in MODELS}
    rule = options.get("by")
    if rule is None:
        for name in given:
            raise UsageError(f"{NAMES.get(name, '--' + name.replace('_', '-'))} goes with --rank RULE")
        return None
    if rule == OFF:
        for name in given.keys() - {"by"}:
            raise UsageError(f"{NAMES.get(name, '--' + name.replace('_', '-'))} goes with a rank, and --rank is off")
        return None
    if beams is not None:
        raise UsageError("--rank and --beams are two ways to a reply; give one of them")
    for name in ("backward_weight", "mix", "source"):
        if name in options and rule != "mmi":
            raise UsageError(f"--{name.replace('_', '-')} goes with --rank mmi")
    if rule == "rpt" and "ranker" not in given:
        raise UsageError("--rank rpt needs --ranker MODEL, a model that scores replies")
    return Rank(**options)
