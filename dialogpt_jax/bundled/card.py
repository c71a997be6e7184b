"""The bundled model's card: a bot and held-out dialogues in, `README.md` with measured figures and unpicked replies out."""

import collections
import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dialogpt_jax.bundled.prompts import (
    LOOKED_AT,
    MARKS,
    UNMARKED,
    Exchange,
    answer_prompts,
    count_marks,
    hold_chats,
    read_marks,
    read_prompts,
)
from dialogpt_jax.chat.bot import Bot
from dialogpt_jax.data.formats import DataError, Dropped, read_lines
from dialogpt_jax.decoding.sampling import describe_sampling
from dialogpt_jax.evaluation.contexts import Context, cut
from dialogpt_jax.evaluation.harness import answer
from dialogpt_jax.evaluation.intervals import Estimate
from dialogpt_jax.evaluation.model_measures import measure_model, measure_replies
from dialogpt_jax.evaluation.perplexity import bits_per_byte
from dialogpt_jax.evaluation.replies import Reply
from dialogpt_jax.evaluation.settings import DECODINGS, Settings
from dialogpt_jax.evaluation.tables import as_markdown
from dialogpt_jax.ranking.rank_options import SENSE, SENSE_SAMPLING, Rank, describe_rank

CARD = "README.md"
NUM_CONTEXTS, NUM_EVERYDAY, NUM_SHOWN = 1000, 300, 20
TEMPERATURES = (0.3, 0.4, 0.5, 0.6, 0.7)
DECODE = "chat"
SETTINGS = Settings(DECODINGS[DECODE])
RANK = Rank(SENSE)  # by which `dialogpt chat` and `reply` choose
RANKED = Settings(SENSE_SAMPLING, rank=RANK)
EVALUATION = (
    f"dialogpt eval --model MODEL --data CORPUS/valid.jsonl.gz --contexts {NUM_CONTEXTS} --decode {DECODE} --markdown"
)

TELL_SENSE = "python -m dialogpt_jax.bundled.tell_sense --model MODEL --export sense_head.safetensors"

SOURCES = """\
| source | licence | register |
|---|---|---|
| self_dialogue (jfainberg/self_dialogue_corpus) | BSD-3-Clause | films, music, sport; one person wrote both sides |
| chitchat (chitchat-dataset 0.9.0, BYU PCC lab) | MIT | students' small talk |
| Topical-Chat (alexa/Topical-Chat, its valid and test files) | CDLA-Sharing-1.0 | talk about facts |
| Synthetic-Persona-Chat (google-research-datasets, its valid and test files) | CC BY 4.0 | polite persona talk, written by a language model |
| personality (microsoft/botframework-cli, qna_chitchat_friendly) | MIT | who are you, how are you |
| everyday | CC0 | greetings, feelings, food, home, work, small repairs; **written for this corpus by a language model**, each dialogue on its own |

Turns with slurs, e-mail addresses, phone numbers, URLs or more than 60 words were cut out of it beforehand."""

LIMITS = """\
- It is small, and read some seven million words. It makes small talk in short turns; it states facts, and they are invented. It
  remembers at most 512 tokens of the conversation.
- It is a product of its corpora: American students and crowd workers, films and sport. Slurs were filtered out of the
  training text by a list; nothing filters what the model says. Do not put it before people without a filter of your own.
- English only.
- It says "I" and tells of a life. It has none."""


def read_curve(metrics: Path) -> list[tuple[int, float]]:
    """(step, bits per byte) of each evaluation in a run's `metrics.jsonl`; of a step run twice, the later."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return sorted({row["step"]: row["valid_bits_per_byte"] for row in rows if "valid_bits_per_byte" in row}.items())


def read_by_source(path: Path) -> dict[str, list[list[str]]]:
    """The dialogues of a `.jsonl.gz` by their `source`, in the order of the first of each."""
    found: dict[str, list[list[str]]] = collections.defaultdict(list)
    with path.open("rb") as raw:
        for line in read_lines(raw, path):
            if isinstance(line, Dropped):
                raise DataError(f"{path}, line {line.line}: {line.reason}")
            entry = json.loads(line[1])
            found[entry["source"]].append(entry["turns"])
    return dict(found)


def measure(bot: Bot, valid: Sequence[Sequence[str]]) -> tuple[list[Estimate], list[Context], list[Reply]]:
    """What the command EVALUATION measures, and the contexts with the replies that the commands give."""
    contexts = cut(valid, NUM_CONTEXTS)
    return (
        measure_model(bot, contexts, answer(bot, contexts, SETTINGS), valid),
        contexts,
        answer(bot, contexts, RANKED),
    )


def write_card(
    directory: Path,
    bot: Bot,
    valid: Mapping[str, Sequence[Sequence[str]]],
    everyday: Mapping[str, Sequence[Sequence[str]]],
    *,
    curve: list[tuple[int, float]],
    command: str,
    how: Mapping[str, str],
    history: str = "",
) -> None:
    """Measures the model in `directory` and writes its card there.

    Args:
      directory: a model directory.
      bot: what `load` makes of it.
      valid, everyday: the held-out dialogues by source.
      curve: (step, bits per byte) of the run.
      command: that makes the model.
      how: the command of each training, by the stage's name.
      history: a paragraph on how these very weights came to be.
    """
    dialogues = [turns for of_source in valid.values() for turns in of_source]
    found, contexts, answers = measure(bot, dialogues)
    prompts, marks = read_prompts(), read_marks()
    exchanges = answer_prompts(bot, prompts.prompts, RANKED.sampling, RANK)
    chats = hold_chats(bot, prompts.chats, RANKED.sampling, RANK)
    (directory / CARD).write_text(
        "\n\n".join(
            [
                _head(bot, command, how, history, curve),
                _figures(found, measure_replies(contexts, answers, resamples=0), len(dialogues)),
                _bits(bot, {**valid, **everyday}, found),
                _prompts(exchanges, prompts.kinds, prompts.rule, marks),
                _temperatures(bot, [turns for of_source in everyday.values() for turns in of_source], marks),
                _chats(chats, marks),
                f"## The first {NUM_SHOWN} contexts and their replies, unpicked\n\n"
                "The model saw the whole context; the table shows its last turn.\n",
                _table(
                    ("said to it", "its reply"),
                    [
                        (context.turns[-1], answer.text)
                        for context, answer in list(zip(contexts, answers, strict=True))[:NUM_SHOWN]
                    ],
                ),
                f"## Limits\n\n{LIMITS}\n",
            ]
        ),
        encoding="utf-8",
    )


def _head(bot: Bot, command: str, how: Mapping[str, str], history: str, curve: list[tuple[int, float]]) -> str:
    config, commands = bot.config, "\n".join(how.values())
    return f"""\
---
license: mit
language: en
tags: [dialogue, gpt2, DialoGPT]
---

# The bundled model of dialogpt_jax

A DialoGPT in miniature: a GPT-2 of {config.num_parameters:,} parameters ({config.n_layer} layers of width \
{config.n_embd}, {config.n_head} heads, {config.n_positions} positions, a byte-level BPE of {config.vocab_size}), trained
on open dialogues with the objective of Zhang et al. 2019, p(every turn after the first | all before it), a token's loss
counted alike wherever it stands. Stored in float16; any reader of GPT-2 directories loads it.

## How it was made

```sh
{command}
```

That makes the tokenizer; a teacher of twice the width, which is not shipped; a student that learns, in a dozen passes, the
corpus and what the teacher expects at each place of it; and settles it on everyday talk at a low rate:

```sh
{commands}
```

The mean of the weights before and after settling keeps what each has learned. The last of these begins from that mean: it
raises, of replies that the model itself gave and that were marked, what the better ones gained on the worse (direct
preference optimisation, Rafailov et al. 2023). The marks lie in the package as `marked_replies.jsonl.gz`; a language
model gave them, by the rule of the forty prompts below, and none of their contexts is near to one of those.

Beside the model stands a sense head, which looks at what the model holds of a reply that it has drawn, and says how sensible
it is: two layers, trained in a minute on the same marks and on those of replies of this model (`marked_draws.jsonl.gz`):

```sh
{TELL_SENSE}
```

Muon for the matrices, Adam for the rest, bfloat16 products, float32 state; the rates are level, and fall to 0 at the end;
what each exports is the running average of its weights.
{history}
It saw the train part of a corpus of 39,900 dialogues, 6.9 million words:

{SOURCES}
{_curve(curve)}"""


def _curve(curve: list[tuple[int, float]]) -> str:
    if not curve:
        return ""
    table = _table(
        ("step", *(f"{step}" for step, _ in curve)), [("bits per byte", *(f"{value:.3f}" for _, value in curve))]
    )
    return (
        "\n\nBits per byte on the first 500 dialogues of the valid part, while the student was trained (32,768 tokens a step):"
        f"\n\n{table}"
    )


def _figures(found: list[Estimate], ranked: list[Estimate], dialogues: int) -> str:
    f, r = ({estimate.name: estimate.value for estimate in own} for own in (found, ranked))
    rows = [
        (
            "bits per byte of the turns after the first (EOS counted in the bits, not in the bytes)",
            f"{f['bits per byte']:.3f}",
            "",
        ),
        ("perplexity per token", f"{f['perplexity']:.1f}", ""),
        ("replies that ended by themselves", f"{f['ended']:.1%}", f"{r['ended']:.1%}"),
        ("replies that repeat a 4-gram of words", f"{f['repeating']:.1%}", f"{r['repeating']:.1%}"),
        ("share of the commonest reply", f"{f['commonest']:.1%}", f"{r['commonest']:.1%}"),
        ("words in a reply", f"{f['length']:.1f}", f"{r['length']:.1f}"),
    ]
    if "PMI hits@1" in f:
        true = "the true next turn beats nine turns of other dialogues, by what the context adds to its log-probability"
        rows.append((f"{true} (chance is 10 %)", f"{f['PMI hits@1']:.1%}", ""))
        rows.append(("the same by its mean log-probability a token", f"{f['hits@1']:.1%}", ""))
    return f"""\
## Figures

On the valid part, {dialogues} dialogues split off by a hash. Replies to {NUM_CONTEXTS} contexts, each dialogue cut before a
drawn turn: one drawn ({_settings(SETTINGS)}), and the one that `dialogpt chat` and `reply` give ({_settings(RANKED)}).

{_table(("measure", "one drawn", "the most sensible of 16"), rows)}

All measures of those that were drawn alone, NIST and BLEU against the one turn that really came; Ent and Dist depend on how many replies
there are. The table is what this prints:

```sh
{EVALUATION}
```

{as_markdown({DECODE: found})}"""


def _bits(bot: Bot, by_source: Mapping[str, Sequence[Sequence[str]]], found: list[Estimate]) -> str:
    rows = []
    for source, dialogues in by_source.items():
        if not any(len(turns) > 1 for turns in dialogues):
            continue
        spent = bits_per_byte(bot.params, bot.config, bot.tokenizer, dialogues)
        rows.append((source, f"{len(dialogues)}", f"{spent['bits_per_byte']:.3f}", f"{spent['perplexity']:.1f}"))
    return f"""\
## Bits per byte by source

Of held-out dialogues; the everyday ones are not among the valid part above.

{_table(("source", "dialogues", "bits per byte", "perplexity per token"), rows)}"""


def _prompts(
    exchanges: Sequence[Exchange], kinds: Sequence[str], rule: Mapping[str, str], marks: Mapping[Exchange, str]
) -> str:
    counts = count_marks(exchanges, marks)
    rows = [
        (kind, " / ".join(turns), reply, marks.get(Exchange(turns, reply), UNMARKED))
        for kind, (turns, reply) in zip(kinds, exchanges, strict=True)
    ]
    return f"""\
## Forty everyday prompts, unpicked

A fixed list, never trained on. As `dialogpt reply` answers it: {_settings(RANKED)}. {", ".join(f"**{count} {mark}**" for mark, count in counts.items() if count)}.
A language model read each reply three times, without knowing which temperature gave it, and the middle mark counts, by this rule: {"; ".join(f"*{mark}*: {meaning}" for mark, meaning in rule.items())}.

{_table(("kind", "said to it", "its reply", "mark"), rows)}"""


def _temperatures(bot: Bot, everyday: Sequence[Sequence[str]], marks: Mapping[Exchange, str]) -> str:
    prompts, contexts, rows = read_prompts().prompts, cut(everyday, NUM_EVERYDAY), []
    for settings, temperature in itertools.product((SETTINGS, RANKED), TEMPERATURES):
        sampling = dataclasses.replace(settings.sampling, temperature=temperature)
        counts = count_marks(answer_prompts(bot, prompts, sampling, settings.rank), marks)
        answers = answer(bot, contexts, dataclasses.replace(settings, sampling=sampling))
        f = {estimate.name: estimate.value for estimate in measure_replies(contexts, answers, resamples=0)}
        shares = (f"{f[name]:.1%}" for name in ("ended", "repeating", "commonest"))
        name = f"{temperature}" if settings.rank is None else f"{temperature}, of {settings.rank.hypotheses}"
        rows.append((name, *(f"{counts[mark]}" for mark in (*MARKS, UNMARKED)), *shares))
    return f"""\
## Temperatures

The forty prompts' replies by their marks, one drawn at each temperature; and of the replies to {len(contexts)} held-out everyday dialogues, cut before a
drawn turn, how many ended by themselves, repeat a 4-gram, and equal the commonest. Everything else as in the defaults. The
last rows are of the most sensible of 16 that were drawn at the temperature.

{_table(("temperature", *MARKS, UNMARKED, "ended", "repeating", "commonest"), rows)}"""


def _chats(chats: Sequence[Sequence[Exchange]], marks: Mapping[Exchange, str]) -> str:
    rows = [
        (f"{turn}", *(f"{count}" for count in count_marks([chat[turn - 1] for chat in chats], marks).values()))
        for turn in LOOKED_AT
    ]
    shown = "\n\n".join(
        _table(("turn", "said to it", "its reply", "mark"), [_chat_row(n, e, marks) for n, e in enumerate(chat, 1)])
        for chat in chats
    )
    return f"""\
## Chats of eight turns

{len(chats)} chats whose one side is fixed, whatever the answers; the replies at turns {", ".join(map(str, LOOKED_AT))} are marked.

{_table(("turn", *MARKS, UNMARKED), rows)}

{shown}"""


def _chat_row(number: int, exchange: Exchange, marks: Mapping[Exchange, str]) -> tuple[str, ...]:
    mark = marks.get(exchange, UNMARKED) if number in LOOKED_AT else ""
    return f"{number}", exchange.turns[-1], exchange.reply, mark


def _settings(settings: Settings) -> str:
    ranked = "" if settings.rank is None else f"{describe_rank(settings.rank)}, "
    drawn = describe_sampling(settings.sampling)
    return f"{ranked}{drawn}, at most {settings.max_new_tokens} tokens, seed {settings.seed}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Text as one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
