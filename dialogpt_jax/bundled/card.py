"""The bundled model's card: a bot and held-out dialogues in, `README.md` with measured figures and unpicked replies out."""

import collections
import json
from collections.abc import Sequence
from pathlib import Path

from dialogpt_jax.chat.bot import Bot, Candidate
from dialogpt_jax.chat.settings import DEFAULT_MAX_NEW_TOKENS, DEFAULT_SAMPLING
from dialogpt_jax.decoding.logits import describe
from dialogpt_jax.evaluation.contexts import Context, cut
from dialogpt_jax.evaluation.diversity import repetition
from dialogpt_jax.evaluation.hits import hits_at_1
from dialogpt_jax.evaluation.perplexity import bits_per_byte

CARD = "README.md"
NUM_CONTEXTS, NUM_SHOWN = 1000, 20

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
    return sorted({row["step"]: row["bits_per_byte"] for row in rows if "bits_per_byte" in row}.items())


def measure(bot: Bot, valid: Sequence[Sequence[str]]) -> tuple[dict[str, float], list[Context], list[Candidate]]:
    """The card's figures, and the contexts with the replies they were measured on."""
    contexts = cut(valid, NUM_CONTEXTS)
    answers = bot.answers([c.turns for c in contexts])
    texts = [answer.text for answer in answers]
    figures = bits_per_byte(bot.params, bot.config, bot.tokenizer, valid)
    figures["ended"] = sum(answer.finished for answer in answers) / len(answers)
    figures["repeats"] = float((repetition([text.split() for text in texts]) > 0).mean())
    figures["commonest"] = collections.Counter(texts).most_common(1)[0][1] / len(texts)
    figures["words"] = sum(len(text.split()) for text in texts) / len(texts)
    figures["hits"] = hits_at_1(bot, contexts)
    return figures, contexts, answers


def write_card(
    directory: Path, bot: Bot, valid: Sequence[Sequence[str]], *, curve: list[tuple[int, float]], command: str
) -> None:
    """Measures the model in `directory` and writes its card there."""
    f, contexts, answers = measure(bot, valid)
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

with this package's own train step (optax: Muon for the matrices, Adam for the rest; bfloat16 products, float32 state), on
the train part of a corpus of 34,237 dialogues, 6.7 million words:

{SOURCES}

Bits per byte on the first 100 dialogues of the valid part, while it was trained (8,192 tokens a step):

| step | {steps} |
|---|{"---|" * len(curve)}
| bits per byte | {bits} |

## Figures

On the valid part, {len(valid)} dialogues by other conversations, split off by a hash. Replies with the default settings \
({describe(DEFAULT_SAMPLING)}, at most {DEFAULT_MAX_NEW_TOKENS} tokens, seed 0) to {len(contexts)} contexts, each dialogue
cut before a drawn turn.

| | |
|---|---|
| bits per byte of the turns after the first (EOS counted in the bits, not in the bytes) | {f["bits_per_byte"]:.3f} |
| perplexity per token | {f["perplexity"]:.1f} |
| replies that ended by themselves | {f["ended"]:.1%} |
| replies that repeat a 4-gram of words | {f["repeats"]:.1%} |
| share of the commonest reply | {f["commonest"]:.1%} |
| words in a reply | {f["words"]:.1f} |
| the true next turn beats nine turns of other dialogues (mean log-probability a token; chance is 10 %) | {f["hits"]:.1%} |

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
