"""The bundled model's card: a bot and held-out dialogues in, `README.md` with measured figures and unpicked replies out."""

import json
from collections.abc import Sequence
from pathlib import Path

from dialogpt_jax.chat.bot import Bot
from dialogpt_jax.decoding.logits import describe_sampling
from dialogpt_jax.evaluation.contexts import Context, cut
from dialogpt_jax.evaluation.harness import DECODINGS, Settings, answer
from dialogpt_jax.evaluation.intervals import Estimate
from dialogpt_jax.evaluation.model_measures import measure_model
from dialogpt_jax.evaluation.replies import Reply
from dialogpt_jax.evaluation.tables import as_markdown

CARD = "README.md"
NUM_CONTEXTS, NUM_SHOWN = 1000, 20
DECODE = "chat"
SETTINGS = Settings(DECODINGS[DECODE])
EVALUATION = (
    f"dialogpt eval --model MODEL --data CORPUS/valid.jsonl.gz --contexts {NUM_CONTEXTS} --decode {DECODE} --markdown"
)

SOURCES = """\
| source | licence | register |
|---|---|---|
| self_dialogue (jfainberg/self_dialogue_corpus) | BSD-3-Clause | films, music, sport; one person wrote both sides |
| chitchat (chitchat-dataset 0.9.0, BYU PCC lab) | MIT | students' small talk |
| Topical-Chat (alexa/Topical-Chat, its valid and test files) | CDLA-Sharing-1.0 | talk about facts |
| Synthetic-Persona-Chat (google-research-datasets, its valid and test files) | CC BY 4.0 | polite persona talk, written by a language model |
| personality (microsoft/botframework-cli, qna_chitchat_friendly) | MIT | who are you, how are you |

Turns with slurs, e-mail addresses, phone numbers, URLs or more than 60 words were cut out of it beforehand."""

LIMITS = """\
- It is small, and read seven million words. It makes small talk in short turns; it states facts, and they are invented. It
  remembers at most 256 tokens of the conversation.
- It is a product of its corpora: American students and crowd workers, films and sport. Slurs were filtered out of the
  training text by a list; nothing filters what the model says. Do not put it before people without a filter of your own.
- English only.
- It says "I" and tells of a life. It has none."""


def read_curve(metrics: Path) -> list[tuple[int, float]]:
    """(step, bits per byte) of each evaluation in a run's `metrics.jsonl`; of a step run twice, the later."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return sorted({row["step"]: row["valid_bits_per_byte"] for row in rows if "valid_bits_per_byte" in row}.items())


def measure(bot: Bot, valid: Sequence[Sequence[str]]) -> tuple[list[Estimate], list[Context], list[Reply]]:
    """What the command EVALUATION measures, and the contexts with the replies that it was measured on."""
    contexts = cut(valid, NUM_CONTEXTS)
    answers = answer(bot, contexts, SETTINGS)
    return measure_model(bot, contexts, answers, valid), contexts, answers


def write_card(
    directory: Path,
    bot: Bot,
    valid: Sequence[Sequence[str]],
    *,
    curve: list[tuple[int, float]],
    command: str,
    how: str,
) -> None:
    """Measures the model in `directory` and writes its card there."""
    found, contexts, answers = measure(bot, valid)
    f = {estimate.name: estimate.value for estimate in found}
    config = bot.config
    shown = "\n".join(
        f"| {_cell(context.turns[-1])} | {_cell(answer.text)} |"
        for context, answer in list(zip(contexts, answers, strict=True))[:NUM_SHOWN]
    )
    steps = " | ".join(f"{step}" for step, _ in curve)
    bits = " | ".join(f"{value:.3f}" for _, value in curve)
    (directory / CARD).write_text(
        f"""\
---
license: mit
language: en
tags: [dialogue, gpt2, DialoGPT]
---

# The bundled model of dialogpt_jax

A DialoGPT in miniature: a GPT-2 of {config.num_parameters:,} parameters ({config.n_layer} layers of width \
{config.n_embd}, {config.n_head} heads, {config.n_positions} positions, a byte-level BPE of {config.vocab_size}), trained
from scratch on open dialogues with the objective of Zhang et al. 2019, p(every turn after the first | all before it), a
token's loss counted alike wherever it stands. Stored in float16; any reader of GPT-2 directories loads it.

## How it was made

```sh
{command}
```

That trains the tokenizer on the same text, and then runs

```sh
dialogpt data prepare CORPUS/train.jsonl.gz RUN/data --tokenizer RUN/start --max-length {config.n_positions}
dialogpt train --config RUN/start/config.json --tokenizer RUN/start --data RUN/data … {how}
dialogpt convert RUN/trained MODEL --dtype float16
```

Muon for the matrices, Adam for the rest, bfloat16 products, float32 state; the rates are level, and fall to 0 at the end. It saw the
train part of a corpus of 34,237 dialogues, 6.7 million words:

{SOURCES}

Bits per byte on the first 100 dialogues of the valid part, while it was trained (up to 8,192 tokens a step):

| step | {steps} |
|---|{"---|" * len(curve)}
| bits per byte | {bits} |

## Figures

On the valid part, {len(valid)} dialogues split off by a hash. Replies with the default settings \
({describe_sampling(SETTINGS.sampling)}, at most {SETTINGS.max_new_tokens} tokens, seed {SETTINGS.seed}) to {len(contexts)} contexts, each dialogue
cut before a drawn turn.

| | |
|---|---|
| bits per byte of the turns after the first (EOS counted in the bits, not in the bytes) | {f["bits per byte"]:.3f} |
| perplexity per token | {f["perplexity"]:.1f} |
| replies that ended by themselves | {f["ended"]:.1%} |
| replies that repeat a 4-gram of words | {f["repeating"]:.1%} |
| share of the commonest reply | {f["commonest"]:.1%} |
| words in a reply | {f["length"]:.1f} |
| the true next turn beats nine turns of other dialogues, by what the context adds to its log-probability (chance is 10 %) | {f["PMI hits@1"]:.1%} |
| the same by its mean log-probability a token | {f["hits@1"]:.1%} |

All measures of those replies, NIST and BLEU against the one turn that really came; Ent and Dist depend on how many replies
there are. The table is what this prints:

```sh
{EVALUATION}
```

{as_markdown({DECODE: found})}

## The first {NUM_SHOWN} contexts and their replies, unpicked

The model saw the whole context; the table shows its last turn.

| said to it | its reply |
|---|---|
{shown}

## Limits

{LIMITS}
""",
        encoding="utf-8",
    )


def _cell(text: str) -> str:
    """Text as one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
