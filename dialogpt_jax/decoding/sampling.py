"""How a token is chosen, as a caller says it: numbers and lists in, a checked `Sampling` out, a pytree (`logits.py`).

What goes with what (as in the README; `tests/decoding/test_combinations.py` tries each cell):

| | `reply`, `candidates` | `chat`, `stream` | `replies` | `beams=` | `penalty_alpha=` | `draft=` | keys on a mesh |
|---|---|---|---|---|---|---|---|
| penalties, blocks, DRY, lengths, ids | yes | yes | yes | yes | yes | yes | yes |
| temperature to XTC | yes | yes | yes | yes | no | yes | yes |
| texts: `stop_strings`, `bad_words` | yes | yes | yes | yes | yes | yes | no |
| `processors=[f]` | yes | yes | yes | yes | yes | yes | yes |
| a number for each dialogue | no | no | yes | yes | no | yes | yes |
| `beams=` | yes | yes | yes | – | no | no | yes |
| `draft=` | yes | yes | yes | no | no | – | yes |
| int8 | yes | yes | yes | yes | yes | yes | yes |

Nothing here imports jax, so that the help of a command, which shows the defaults, need not wait for it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dialogpt_jax.arguments import as_flag, as_number, as_plain, as_whole_number, shown

TOP_K_BUCKETS = (16, 64, 256, 1024)
# What stands where only the number that turns a step on is given: as in llama.cpp and text-generation-webui.
XTC_THRESHOLD, DRY_BASE, DRY_ALLOWED_LENGTH = 0.1, 1.75, 2
# What a penalty or a block looks at: the reply, the bot's own earlier turns too, or the whole context.
Scope = Literal["reply", "own", "context"]
Word = tuple[int, ...] | str  # some tokens in a row, or a text that a tokenizer makes some of

if TYPE_CHECKING:
    import jax

    Number = float | int | np.ndarray | np.number | jax.Array | None
else:
    Number = float | int | np.ndarray | np.number | None


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is chosen. A pytree: numbers are leaves, so another number compiles nothing; `None` leaves a step out.

    Steps come in the order of `decoding/processors.py`, which is transformers'. Greedy has all but those from temperature
    to xtc_threshold.

    Attributes:
      temperature: divides the logits; `None` (or 0, made `None`) takes the best token: greedy.
      top_k: only the k best, 1 to 1024. Ties with the last of them stay, as far as they are among the best 16, 64, 256 or
        1024: the first of these that is over k (at 1024 none stay).
      top_p: only the smallest set of best tokens that holds this probability, over 0 to 1 (Holtzman et al. 2019), to
        within 3e-7. Of ties with the last of them, as many stay as are needed, the last by id; without `top_k`, all.
      min_p: only tokens at least this fraction as probable as the best, 0 to 1 (Nguyen et al. 2024).
      top_n_sigma: only tokens whose logit is within so many standard deviations of the best, over 0 (Tang et al. 2024).
      typical_p: only the tokens whose surprise is nearest to the expected one, so many that they hold this probability,
        over 0 to 1 (Meister et al. 2022).
      epsilon_cutoff: only tokens at least this probable, and the best, from 0 to below 1 (Hewitt et al. 2022).
      eta_cutoff: as epsilon_cutoff, but lower where the distribution is flat, from 0 to below 1 (Hewitt et al. 2022).
      xtc_probability, xtc_threshold: so often, 0 to 1, the tokens at least as probable as the threshold (0.1), over 0 to 1,
        are left out but for the least probable of them, unless EOS were among those that go: "exclude top choices", as in
        llama.cpp and, for EOS, text-generation-webui. The row's own key decides at each token.
      repetition_penalty: logits of seen tokens are divided by it where positive, else multiplied (Keskar et al. 2019);
        over 0, 1 changes nothing.
      presence_penalty: is taken from the logit of a token that was seen.
      frequency_penalty: is taken from the logit of a token for each time that it was seen.
      penalty_scope: static; what the penalties have seen: the "reply" so far; the bot's "own" earlier turns too, without
        their ends; or the whole "context" and the reply, as transformers has it: the ends of turns count there.
      no_repeat_ngram: so many tokens in a row that were said do not come again (Paulus et al. 2017), from 1.
      ngram_scope: static; where they were said, as for `penalty_scope`.
      dry_multiplier, dry_base, dry_allowed_length: a token that would carry on a repeat of n tokens, n being at least the
        allowed length (2), loses multiplier · base^(n − allowed length); the base is 1.75, at least 1, and n counts to 50:
        "don't repeat yourself", as in llama.cpp and text-generation-webui.
      dry_range: repeats are looked for in so many of the last tokens of context and reply, from 1; in all by default.
      dry_scope: static; where they were said, as for `penalty_scope`, but by default in the whole "context".
      dry_breakers: static; no repeat goes across one of these, and none is lowered: token ids, or texts, which stand for
        each token that holds them. EOS, the end of a turn, always is one.
      min_new_tokens: the reply's length before its EOS is at least this; 1 by default: a reply is not empty.
      decay_start, decay_factor: from the token of this number on, from 0, the end grows more likely: the size of its
        logit, times factor^n − 1, is added, n counting from 1. Both or neither.
      logit_bias: static ids; what is added to a logit: {id: number}, or {(id, …, id): number} for the last of several
        tokens where the reply has just said the others, or {text: number}.
      bad_words: static; what the reply never says: an id, a list of ids or a text, each. A text stands for its tokens, as
        written and behind a space (so `"ass"` leaves "class" alone); a `Bot` knows them, `generate` takes ids.
      suppress_tokens, begin_suppress_tokens: static ids; which never come, or not as the reply's first token.
      forced_tokens: static ids; the reply begins with them.
      forced_end: static; where a reply is cut by `max_new_tokens`, the last of its tokens is EOS.
      stop_strings: static; a reply ends where it holds one of these texts, which is its last words.
      processors: static; functions of yours, (logits_MV, `ReplyState`) → logits_MV, which run in the compiled loop after
        all the above but temperature to xtc_threshold. One function is one program: define it once. Numbers that change go
        into a `jax.tree_util.Partial`, or any pytree that can be called, such as that of `dg.anti_lm`.

    Numbers may be scalars or arrays with one value a row. Lists are the same for all rows; other ids compile nothing.

    Raises:
      ValueError: a number out of range (jax's arrays are not looked at), or a list of another shape.

    Example:
      >>> bot.reply("Hi!", sampling=dg.Sampling(temperature=0.8, top_k=50, top_p=0.9))
      '...'
      >>> bot.reply("Hi!", sampling=dg.GREEDY) == bot.reply("Hi!", sampling=dg.GREEDY, seed=1)
      True
      >>> bot.reply(["Hi!", "Hello.", "And you?"], sampling=dg.Sampling(no_repeat_ngram=3, ngram_scope="own"))
      '...'
    """

    temperature: Number = 1.0
    top_k: Number = None
    top_p: Number = None
    min_p: Number = None
    top_n_sigma: Number = None
    typical_p: Number = None
    epsilon_cutoff: Number = None
    eta_cutoff: Number = None
    xtc_probability: Number = None
    xtc_threshold: Number = None
    repetition_penalty: Number = None
    presence_penalty: Number = None
    frequency_penalty: Number = None
    penalty_scope: Scope = "reply"
    no_repeat_ngram: Number = None
    ngram_scope: Scope = "reply"
    dry_multiplier: Number = None
    dry_base: Number = None
    dry_allowed_length: Number = None
    dry_range: Number = None
    dry_scope: Scope = "context"
    dry_breakers: Sequence[int | str] = ()
    min_new_tokens: Number = 1
    decay_start: Number = None
    decay_factor: Number = None
    logit_bias: Mapping[Any, float] | Sequence[tuple[Sequence[int], float]] = ()
    bad_words: Sequence[int | str | Sequence[int]] = ()
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    forced_tokens: Sequence[int] = ()
    forced_end: bool = False
    stop_strings: Sequence[str] = ()
    processors: Sequence[Callable[..., Any]] = ()

    def __post_init__(self) -> None:
        if is_number(self.temperature) and self.temperature == 0:
            object.__setattr__(self, "temperature", None)
        _check("temperature", self.temperature, low=0.0, high=1e4, open_low=True)
        _check("top_k", self.top_k, low=1, high=TOP_K_BUCKETS[-1], whole=True)
        _check("top_p", self.top_p, low=0.0, high=1.0, open_low=True)
        _check("min_p", self.min_p, low=0.0, high=1.0)
        _check("top_n_sigma", self.top_n_sigma, low=0.0, high=1e4, open_low=True)
        _check("typical_p", self.typical_p, low=0.0, high=1.0, open_low=True)
        _check("epsilon_cutoff", self.epsilon_cutoff, low=0.0, high=1 - 1e-6)
        _check("eta_cutoff", self.eta_cutoff, low=0.0, high=1 - 1e-6)
        _check("xtc_probability", self.xtc_probability, low=0.0, high=1.0)
        _check("xtc_threshold", self.xtc_threshold, low=0.0, high=1.0, open_low=True)
        _check("repetition_penalty", self.repetition_penalty, low=0.0, high=1e4, open_low=True)
        _check("presence_penalty", self.presence_penalty, low=-1e4, high=1e4)
        _check("frequency_penalty", self.frequency_penalty, low=-1e4, high=1e4)
        _check("no_repeat_ngram", self.no_repeat_ngram, low=1, high=2**20, whole=True)
        _check("dry_multiplier", self.dry_multiplier, low=0.0, high=1e4)
        _check("dry_base", self.dry_base, low=1.0, high=1e4)
        _check("dry_allowed_length", self.dry_allowed_length, low=1, high=2**20, whole=True)
        _check("dry_range", self.dry_range, low=1, high=2**31 - 1, whole=True)
        _check("min_new_tokens", self.min_new_tokens, low=0, high=2**31 - 1, whole=True)
        _check("decay_start", self.decay_start, low=0, high=2**31 - 1, whole=True)
        _check("decay_factor", self.decay_factor, low=0.0, high=1e4, open_low=True)
        if (self.decay_start is None) != (self.decay_factor is None):
            raise ValueError("decay_start and decay_factor go together; give both or neither")
        for name, leader in FOLLOWERS.items():
            if getattr(self, leader) is None and getattr(self, name) is not None:
                raise ValueError(f"{name} goes with {leader}; give both, or leave {name} out")
        as_flag("forced_end", self.forced_end)
        for name in SCOPES:
            scope = getattr(self, name)
            if not isinstance(scope, str) or scope not in get_args(Scope):
                raise ValueError(f"{name} is {shown(scope)}; it must be one of {', '.join(get_args(Scope))}")
        for name, as_list in _LISTS.items():
            object.__setattr__(self, name, as_list(name, as_plain(getattr(self, name))))


def _as_ids(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError(f"{name} is {shown(value)}; give a list of token ids")
    return tuple(as_whole_number(f"a token of {name}", as_plain(i), least=0, most=2**31 - 1) for i in value)


def _as_words(name: str, value: Any) -> tuple[Word, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError(f"{name} is {shown(value)}; give a list of token ids, of lists of them and of texts")
    return tuple(_as_word(name, as_plain(word)) for word in value)


def _as_word(name: str, word: Any) -> Word:
    if isinstance(word, str):
        return _as_text(name, word)
    found = _as_ids(name, word) if isinstance(word, Sequence) else _as_ids(name, (word,))
    if not found:
        raise ValueError(f"{name} holds a list of no tokens; leave it out, or give its token ids")
    return found


def _as_breakers(name: str, value: Any) -> tuple[int | str, ...]:
    words = _as_words(name, value)
    if any(not isinstance(word, str) and len(word) != 1 for word in words):
        raise ValueError(f"{name} is {shown(value)}; give a list of token ids and of texts")
    return tuple(word if isinstance(word, str) else word[0] for word in words)


def _as_biases(name: str, value: Any) -> tuple[tuple[Word, float], ...]:
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, Sequence) or any(
        not isinstance(p, Sequence) or isinstance(p, str) or len(p) != 2 for p in pairs
    ):
        raise ValueError(f"{name} is {shown(value)}; give a number for each token id, such as {{50: -2.0}}")
    found = {}
    for ids, bias in pairs:
        if not (is_number(bias) and bias == -np.inf):
            bias = as_number(f"a number of {name}", bias, least=-1e9, below=1e9)
        found[_as_word(name, as_plain(ids))] = float(bias)
    return tuple(found.items())


def _as_texts(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} is {shown(value)}; give a list of texts")
    return tuple(_as_text(name, text) for text in texts)


def _as_text(name: str, text: str) -> str:
    if not text:
        raise ValueError(f"{name} holds a text of nothing; leave it out, or give what it is to find")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{name} holds {text!r}, which has a lone surrogate and is no text; leave it out")
    return text


def _as_functions(name: str, value: Any) -> tuple[Callable[..., Any], ...]:
    if not isinstance(value, Sequence) or not all(callable(function) for function in value):
        raise ValueError(f"{name} is {shown(value)}; give a list of functions of (logits_MV, state)")
    return tuple(value)


_LISTS: Mapping[str, Callable[[str, Any], Any]] = {
    "logit_bias": _as_biases,
    "bad_words": _as_words,
    "dry_breakers": _as_breakers,
    "suppress_tokens": _as_ids,
    "begin_suppress_tokens": _as_ids,
    "forced_tokens": _as_ids,
    "stop_strings": _as_texts,
    "processors": _as_functions,
}
LISTS = tuple(_LISTS)
SCOPES = ("penalty_scope", "ngram_scope", "dry_scope")
STATIC = (*SCOPES, "forced_end", *LISTS)
# Numbers that say more of a step which another number turns on.
FOLLOWERS = {
    "xtc_threshold": "xtc_probability",
    **dict.fromkeys(("dry_base", "dry_allowed_length", "dry_range"), "dry_multiplier"),
}
NUMBERS = tuple(field.name for field in dataclasses.fields(Sampling) if field.name not in STATIC)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _check(name: str, value: Any, *, low: float, high: float, open_low: bool = False, whole: bool = False) -> None:
    if isinstance(value, str | bool | bytes | np.bool_):
        raise ValueError(f"{name} is {value!r}; it must be a number")
    if isinstance(value, list | tuple | dict):  # a pytree of its own, not one leaf
        raise ValueError(f"{name} is {shown(value)}; for one number a row, give an array")
    if value is None or not (hasattr(value, "__array__") or is_number(value)):
        return  # left out, or what jax puts in a tree for a moment
    if not isinstance(value, int | float | np.number | np.ndarray):
        import jax

        if isinstance(value, jax.Array):  # not to be looked at
            return
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "iuf":
        raise ValueError(f"{name} is {shown(value)}; it must be a number")
    if numbers.ndim:
        open_low = open_low and name != "temperature"  # 0 for some rows: they take their best token
    inside = ((low < numbers) if open_low else (low <= numbers)) & (numbers <= high)
    if whole:
        inside &= numbers == np.floor(numbers)
    if not inside.all():
        kind = "a whole number" if whole else "a number"
        wrong = value if numbers.ndim == 0 else f"{shown(value)}, of which {numbers[~inside].flat[0]}"
        above = open_low and name != "temperature"  # whose 0 is greedy
        limits = f"over {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
        raise ValueError(f"{name} is {wrong}; it must be {kind} {limits}")


GREEDY = Sampling(temperature=None)
PAPER = Sampling(top_k=10)  # arXiv 1911.00536, section 3.3: top-k sampling, k = 10


def describe_sampling(sampling: Sampling) -> str:
    """The settings that are on, for a person: `temperature 0.8, top_k 50`."""
    on = ["greedy"] if sampling.temperature is None else []
    for field in dataclasses.fields(sampling):
        value = getattr(sampling, field.name)
        if value is None or value is False or (isinstance(value, tuple) and not value):
            continue
        if isinstance(value, str) and value == field.default:
            continue
        if field.name == "processors":
            value = ", ".join(getattr(f, "__name__", type(f).__name__) for f in value)
        if field.name != "min_new_tokens" or not is_number(value) or value != 1:
            on.append(f"{field.name} {value:g}" if is_number(value) else f"{field.name} {value}")
    return ", ".join(on)
