"""The flags of drafts, which `reply`, `chat` and `eval` share: words of the command line in, what `load` takes out."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from cyclopts import Parameter

from dialogpt_jax.cli.flags import FROM_1, MODEL, UsageError


@Parameter(name="*", group=MODEL)
@dataclasses.dataclass(frozen=True)
class DraftFlags:
    """What drafts tokens for the model."""

    draft: Annotated[
        str | None,
        Parameter(
            metavar="MODEL",
            help="the same replies sooner, by speculative decoding: a smaller model with the same vocabulary, as for "
            "--model, drafts what may come, and the model reads several drafts at once; `lookup` takes them from what was "
            "said before",
        ),
    ] = None
    draft_tokens: Annotated[int | None, FROM_1, Parameter(metavar="N", help="with --draft: so many at once (3)")] = None


def drafts_of(flags: DraftFlags, others: Mapping[str, Any]) -> dict[str, Any]:
    """What `load` takes of drafts.

    Args:
      flags: as said.
      others: the ways to a reply that go without drafts, by their flags; `None` where one was not said.
    """
    if flags.draft is None:
        if flags.draft_tokens is not None:
            raise UsageError("--draft-tokens goes with --draft MODEL")
        return {}
    for name, value in others.items():
        if value is not None:
            raise UsageError(f"--draft and {name} do not go together; give one of them")
    tokens = {} if flags.draft_tokens is None else {"draft_tokens": flags.draft_tokens}
    return {"draft": flags.draft, **tokens}


def acceptance(replies: Iterable[Any]) -> dict[str, Any]:
    """How often drafts were right in some replies; empty where none was drafted.

    `forwards` are those that read drafts, `accepted` the drafts that became tokens; all tokens but the first of each reply
    come from these forwards.
    """
    drafted = [reply for reply in replies if reply.forwards is not None]
    if not drafted:
        return {}
    forwards, accepted = (sum(getattr(reply, name) for reply in drafted) for name in ("forwards", "accepted"))
    tokens = sum(_length(reply.tokens) - 1 for reply in drafted)
    return {
        "forwards": forwards,
        "accepted": accepted,
        "accepted_a_forward": round(accepted / max(forwards, 1), 4),
        "tokens_a_forward": round(tokens / max(forwards, 1), 4),
    }


def _length(tokens: Any) -> int:
    return tokens if isinstance(tokens, int) else len(tokens)
