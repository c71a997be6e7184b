"""What is measured, as values: lines, rows and lengths in; cases, and who takes part in each, out.

    lines, rows, prompts, new ─cases_of→ Case …
    Case, engines, dtypes ─contenders_of→ Contender …

Nothing here imports jax or a peer: a command that asks for help, and the process that starts all others, need neither.
"""

import dataclasses
import importlib.util
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dialogpt_jax.errors import counted

OURS = "dialogpt_jax"
CACHES = ("warm cache", "cold cache")
CHAT_WORDS, CHAT_NEW, CHAT_TURN, MIXED_NEW = 20, 20, 8, 40
LOOKED_UP, DRAFTED, COMPILED = "looked up", "drafted by small", "compiled"
ACCEPTED = 0.7  # of the drafts that are looked at, in `lookup` and `draft`


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the benchmark.

    Attributes:
      summary: what it measures, for a person.
      rows, prompt, new: what it has where nothing is said; 0 where it has no such number.
      unit: of the figure that is shown; a rate ends in "/s", and else less is better.
      dtypes: whether it is measured in each dtype, or in the first alone.
      flags: which of `--rows`, `--prompt` and `--new` change it.
    """

    summary: str
    unit: str
    rows: tuple[int, ...] = (1,)
    prompt: int = 0
    new: int = 0
    dtypes: bool = True
    flags: tuple[str, ...] = ()


LINES: Mapping[str, Line] = {
    "decode": Line(
        "a prompt and new tokens, whole call, greedy, EOS forbidden",
        rows=(1, 8),
        prompt=64,
        new=64,
        unit="tokens/s",
        flags=("rows", "prompt", "new"),
    ),
    "lookup": Line(
        f"decode, three looked-up drafts a step, {ACCEPTED} right (forced)",
        prompt=64,
        new=64,
        unit="tokens/s",
        flags=("rows", "prompt", "new"),
    ),
    "draft": Line(
        f"medium and large, small drafts: three a step, each right with {ACCEPTED}",
        prompt=64,
        new=64,
        unit="tokens/s",
        flags=("rows", "prompt", "new"),
    ),
    "prefill": Line("a prompt and one token", prompt=256, new=1, unit="ms", flags=("rows", "prompt")),
    "chat": Line(
        f"turn {CHAT_TURN} of a kept chat: {CHAT_WORDS} words in, {CHAT_NEW} tokens forced out", new=CHAT_NEW, unit="ms"
    ),
    "mixed": Line(
        f"contexts of mixed length, replies of up to {MIXED_NEW} tokens",
        rows=(32,),
        new=MIXED_NEW,
        unit="contexts/s",
        flags=("rows",),
    ),
    "start": Line("the first reply of a fresh process", new=CHAT_NEW, unit="s", dtypes=False),
    "train": Line(
        "a training step: forward, backward, clipped, AdamW",
        rows=(32,),
        prompt=128,
        unit="tokens/s",
        flags=("rows", "prompt"),
    ),
    "processors": Line(
        "what each step from logits to a token costs", rows=(1, 8), prompt=256, unit="ms", dtypes=False, flags=("rows",)
    ),
    "searches": Line(
        "candidates, beams and contrastive search, against one reply",
        prompt=64,
        new=32,
        unit="ms",
        dtypes=False,
        flags=("new",),
    ),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A line at one size: so many rows, tokens of prompt and new tokens."""

    line: str
    rows: int
    prompt: int
    new: int

    def describe(self) -> str:
        told = [self.line, counted(self.rows, "rows")]
        if self.prompt:
            told.append(counted(self.prompt, "tokens") + (f" + {self.new:,} new" if self.new else ""))
        elif self.new:
            told.append(counted(self.new, "new tokens"))
        return ", ".join(told)

    @property
    def unit(self) -> str:
        return LINES[self.line].unit

    def tokens(self) -> int:
        """What the rate counts in one call; contexts of `mixed` are counted by who gives them."""
        return self.rows * (self.prompt if self.line == "train" else self.new)


@dataclasses.dataclass(frozen=True)
class Engine:
    """Who can take part.

    Attributes:
      module: what its worker imports; it has `make`.
      packages: what must be installed for it.
      dtypes: ours → what it calls the nearest of its own.
      lines: those that it can run.
      install: how to get it, for a person.
      compiles: whether it decodes compiled, too, where its module's `compiles()` says so.
    """

    module: str
    packages: tuple[str, ...]
    dtypes: Mapping[str, str]
    lines: tuple[str, ...]
    install: str = "pip install -e '.[bench]'"
    compiles: bool = False

    def missing(self) -> list[str]:
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


_SAME = {name: name for name in ("float32", "bfloat16", "int8")}
ENGINES: Mapping[str, Engine] = {
    OURS: Engine("dialogpt_jax.bench.ours", (), _SAME | {"float16": "float16"}, tuple(LINES)),
    "transformers": Engine(
        "dialogpt_jax.bench.with_transformers",
        ("transformers", "torch"),
        {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"},
        ("decode", "lookup", "draft", "prefill", "chat", "mixed", "start", "train"),
        compiles=True,
    ),
    "ctranslate2": Engine(
        "dialogpt_jax.bench.with_ctranslate2",
        ("ctranslate2", "transformers", "torch"),  # its converter reads a directory through transformers
        {"float32": "float32", "int8": "int8", "float16": "float16"},
        ("decode", "lookup", "draft", "prefill", "chat", "mixed", "start"),
    ),
    "llama.cpp": Engine(
        "dialogpt_jax.bench.with_llama_cpp",
        ("llama_cpp", "gguf"),
        {"float32": "F32", "int8": "Q8_0"},
        ("decode", "lookup", "draft", "prefill", "chat"),
        "pip install llama-cpp-python gguf (built from C++: it needs a compiler)",
    ),
}


@dataclasses.dataclass(frozen=True)
class Contender:
    """One of those that take turns in a case.

    Attributes:
      engine: a key of `ENGINES`.
      dtype: in our name for it.
      what: of `processors` and `searches`, which; of `start`, which cache; who drafts; of a peer, whether it is compiled.
    """

    engine: str
    dtype: str
    what: str = ""

    def describe(self, engines: Mapping[str, Engine] = ENGINES) -> str:
        return " ".join(filter(None, (self.engine, engines[self.engine].dtypes[self.dtype], self.what)))


def cases_of(
    lines: Sequence[str], *, rows: Sequence[int] = (), prompts: Sequence[int] = (), new: int | None = None
) -> list[Case]:
    """The cases of the lines; what is not said is each line's own."""
    found = []
    for name in lines:
        line = LINES[name]
        those = rows if rows and "rows" in line.flags else line.rows
        lengths = prompts if prompts and "prompt" in line.flags else (line.prompt,)
        many = line.new if new is None or "new" not in line.flags else new
        found += [Case(name, r, length, many) for length in lengths for r in those]
    return found


def contenders_of(
    case: Case,
    engines: Sequence[str],
    dtypes: Sequence[str],
    *,
    known: Mapping[str, Engine] = ENGINES,
    compiled: Collection[str] = (),
) -> list[Contender]:
    """Who takes part: each engine that has the line, in each of the dtypes that it has; those of `compiled` once more."""
    wanted = dtypes if LINES[case.line].dtypes else dtypes[:1]
    found = []
    for engine in engines:
        for dtype in wanted:
            if case.line in known[engine].lines and dtype in known[engine].dtypes and not _cannot(case, dtype):
                whats = _whats(case) if engine == OURS else ("",)
                whats = ("", COMPILED) if engine in compiled and case.line == "decode" else whats
                found += [Contender(engine, dtype, what) for what in whats]
    return found


def _cannot(case: Case, dtype: str) -> bool:
    return case.line == "train" and dtype not in ("float32", "bfloat16")


def _whats(case: Case) -> Sequence[str]:
    return {
        "lookup": ("", LOOKED_UP),
        "draft": ("", DRAFTED),
        "start": CACHES,
        "processors": PROCESSORS,
        "searches": SEARCHES,
    }.get(case.line, ("",))


STEP, GREEDY, DRAW = "a step of the model", "greedy", "a draw"
# What is drawn from, by the sampling's fields; the cost is over a plain draw.
DRAWN: Mapping[str, Mapping[str, Any]] = {
    "top_k": {"top_k": 50},
    "top_p": {"top_p": 0.9},
    "top_k and top_p": {"top_k": 50, "top_p": 0.9},
    "min_p": {"min_p": 0.05},
    "top_n_sigma": {"top_n_sigma": 1.0},
    "typical_p": {"typical_p": 0.9},
    "epsilon_cutoff": {"epsilon_cutoff": 1e-4},
    "eta_cutoff": {"eta_cutoff": 1e-3},
    "xtc": {"xtc_probability": 0.5},
    "xtc with top_k": {"top_k": 50, "xtc_probability": 0.5},
}
_PAIRS = [(i, i + 1) for i in range(100, 200)]
# What greedy has too; the cost is over the greedy choice.
PROCESSED: Mapping[str, Mapping[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.2, "penalty_scope": "context"},
    "presence_penalty": {"presence_penalty": 0.5, "penalty_scope": "context"},
    "frequency_penalty": {"frequency_penalty": 0.5, "penalty_scope": "context"},
    "no_repeat_ngram": {"no_repeat_ngram": 3, "ngram_scope": "context"},
    "dry": {"dry_multiplier": 0.8, "dry_breakers": [13, 198]},
    "bad_words (100)": {"bad_words": _PAIRS},
    "logit_bias (100)": {"logit_bias": dict.fromkeys(_PAIRS, -1.0)},
    "min_new_tokens": {"min_new_tokens": 5},
    "decay": {"decay_start": 3, "decay_factor": 1.1},
    "suppress_tokens (100)": {"suppress_tokens": list(range(100))},
    "forced_end": {"forced_end": True},
}
PROCESSOR_TOKENS, STEP_TOKENS = 10, 4  # that a call takes, so that its start does not count
PROCESSORS = (STEP, GREEDY, DRAW, *DRAWN, *PROCESSED)
ONE_GREEDY, ONE_DRAWN = "a greedy reply", "a drawn reply"
SEARCHES = (ONE_GREEDY, ONE_DRAWN, "16 candidates", "4 beams", "10 beams", "10 beams in 5 groups", "contrastive, k 4")
