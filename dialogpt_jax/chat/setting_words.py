"""What a person writes to change how replies are made: words in, values of a sampling and a search out, or one clear error.

temperature 0.7 top_p none                     numbers, `none` turns one off
penalty_scope own    forced_end yes
beams 4              early_stopping never      `beams none`: no search
rank mmi hypotheses 8                          `rank off`: one reply is drawn
stop_strings "see you" bye                     a list takes all words behind it; `none` empties it
logit_bias well=-2                             TEXT=N, each
seed random                                    draws one
"""

import dataclasses
import difflib
import shlex
from collections.abc import Sequence
from typing import Any

from dialogpt_jax.decoding.beam_options import EARLY_STOPPING_WORDS, BeamOptions
from dialogpt_jax.decoding.sampling import FOLLOWERS, LISTS, NUMBERS, SCOPES
from dialogpt_jax.ranking.rank_options import SETTINGS as OF_RANK

TEXTS = ("stop_strings", "bad_words", "dry_breakers")
# Of a sampling, all but its functions; of beams; and what a chat has besides.
SETTINGS = (*NUMBERS, *SCOPES, "forced_end", *(name for name in LISTS if name != "processors"))
OF_BEAMS = tuple(field.name for field in dataclasses.fields(BeamOptions))
SETTABLE = (*SETTINGS, *OF_BEAMS, *OF_RANK, "max_new_tokens", "seed")


def settings_of(words: str) -> dict[str, Any]:
    """The values that words give, by the names of their fields.

    Raises:
      ValueError: a name or a value is none.

    Example:
      >>> settings_of('top_k 5 stop_strings "see you" bye')
      {'top_k': 5.0, 'stop_strings': ['see you', 'bye']}
    """
    try:
        left = shlex.split(words)
    except ValueError:
        raise ValueError(
            f"{words}: a quotation has no end; a text with an apostrophe stands in double quotes"
        ) from None
    changes: dict[str, Any] = {}
    while left:
        name, _, value = left[0].partition("=")
        left = ([value] if value else []) + left[1:]
        left = left[1:] if left[:1] == ["="] else left
        if name.replace("-", "_") == "penalty_alpha":
            raise ValueError(
                f"{name} is no setting of a chat; `dialogpt reply --penalty-alpha 0.6` replies by that search"
            )
        if name not in SETTABLE:
            near = difflib.get_close_matches(name, SETTABLE, n=1)
            known = f"did you mean {near[0]}?" if near else f"there are {', '.join(SETTABLE)}"
            raise ValueError(f"{name} is no setting; {known}")
        if not left:
            raise ValueError(f"{name} has no value; /settings NAME VALUE, or NAME=VALUE")
        if name in LISTS:
            changes[name], left = _listed(name, left), []
        else:
            changes[name], left = _value(name, left[0]), left[1:]
    for name, leader in (*FOLLOWERS.items(), ("decay_start", "decay_factor"), ("decay_factor", "decay_start")):
        if leader in changes and changes[leader] is None:  # which turns them off, too
            changes.setdefault(name, None)
    return changes


def biases_of(words: Sequence[str]) -> dict[str, float]:
    """`TEXT=N`, each, as `logit_bias` has it."""
    found = {}
    for word in words:
        text, equals, number = word.rpartition("=")
        try:
            found[text] = float(number)
        except ValueError:
            equals = ""
        if not (text and equals):
            raise ValueError(f"logit_bias is {word!r}; give TEXT=N, such as well=-2")
    return found


def _listed(name: str, words: Sequence[str]) -> Any:
    if list(words) == ["none"]:
        return []
    if name == "logit_bias":
        return biases_of(words)
    return list(words) if name in TEXTS else [_whole(name, word) for word in words]


def _value(name: str, word: str) -> Any:
    if name in SCOPES or name in ("source", "mix"):
        return word
    if name == "seed" and word == "random":
        return None
    if name == "rank":
        return None if word in ("off", "none") else word
    if name == "forced_end":
        if word not in ("yes", "no"):
            raise ValueError(f"forced_end: {word!r} is not `yes` or `no`")
        return word == "yes"
    if name == "early_stopping":
        if word not in EARLY_STOPPING_WORDS:
            raise ValueError(f"early_stopping: {word!r} is none of {', '.join(EARLY_STOPPING_WORDS)}")
        return EARLY_STOPPING_WORDS[word]
    if name == "beams" and word == "none":
        return None
    if name not in (*NUMBERS, "length_penalty", "diversity_penalty", "backward_weight", "rank_temperature"):
        return _whole(name, word)
    if word == "none" and name not in ("length_penalty", "backward_weight", "rank_temperature"):
        return None
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{name}: {word!r} is not a number") from None


def _whole(name: str, word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"{name}: {word!r} is not a whole number") from None
