"""The last stage of a bundled model: a model and marked replies in, parameters that prefer the better replies out.

    python -m dialogpt_jax.bundled.prefer --init RUN/mean --export MODEL \\
        --dialogues RUN/sample.jsonl.gz CORPUS/everyday.jsonl.gz

    marked replies ─pairs of one context─┐
    dialogues ──────rows, file by file───┴→ loss → AdamW → MODEL, in float16

RUN and CORPUS are those of `dialogpt_jax.bundled.make`, which wrote the sample and runs this as its last stage. A pair of
replies with different marks is a lesson: direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) raises
what the better one gained on the worse, against the model that it began from,

    loss = −log σ(β · (gain(better) − gain(worse))),   gain(reply) = log p(reply | context) − log p₀(reply | context)

and that alone would forget how people talk. So each step also reads turns of the corpus, on which the model must expect
what it expected before (KL), and a little of what really came; and a little of the better reply's own likelihood.

Letters: B rows, the better halves first; P pairs; T tokens; R rows of the corpus; V vocabulary (padded); M = R · T.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dialogpt_jax.bundled.marked import MARKED, NONSENSE, PASSABLE, SENSIBLE, Marked, MarksError, read_marked
from dialogpt_jax.chat.bot import Bot
from dialogpt_jax.chat.loading import load
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import pad_right
from dialogpt_jax.data.formats import read_dialogues
from dialogpt_jax.errors import counted, one_line
from dialogpt_jax.int8 import check_trainable
from dialogpt_jax.likelihood import hidden_of_texts, token_losses
from dialogpt_jax.model import Params, head_kernel, logits_by
from dialogpt_jax.training.optim import adamw
from dialogpt_jax.training.schedules import linear
from dialogpt_jax.weights.directory import check_target, write_directory

STEPS, WARMUP, RATE, DECAY, B2 = 800, 10, 3e-4, 0.05, 0.99
BETA, LIKELIHOOD, KEPT, READ = 0.1, 0.05, 1.0, 0.2  # β, and the shares of likelihood, of KL and of the corpus
LENGTHS = {32: 32, 64: 16}  # tokens of a row, and the pairs of a step that has such rows
CORPUS_ROWS, CORPUS_TOKENS, CORPUS_TURNS = 12, 64, 8
LESSONS = {(SENSIBLE, NONSENSE): 5, (PASSABLE, NONSENSE): 2, (SENSIBLE, PASSABLE): 2}  # pairs of a context and epoch


class Lesson(NamedTuple):
    """Two replies to a context; whether the better one is sensible, and so worth learning by itself."""

    turns: list[str]
    better: str
    worse: str
    sensible: bool


class Rows(NamedTuple):
    """Tokens (B, T), and 1 where one is learned."""

    tokens_BT: np.ndarray
    weights_BT: np.ndarray


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dialogpt_jax.bundled.prefer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--init", type=Path, required=True, help="the model directory to begin from")
    parser.add_argument("--export", type=Path, required=True, help="where the new one goes; a model there is replaced")
    parser.add_argument("--dialogues", type=Path, nargs="+", required=True, help="files; each gives as many rows")
    parser.add_argument("--marked", type=Path, default=MARKED, help="marked replies; by default the package's")
    args = parser.parse_args(argv)
    try:
        check_target(args.export)
        bot, marked = load(args.init), read_marked(args.marked)
        sources = [list(read_dialogues(path)) for path in args.dialogues]
        params = learn_preferences(bot, marked, sources)
        write_directory(args.export, params, bot.config, bot.tokenizer, dtype="float16")  # whole or not at all
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
    print(f"wrote {args.export}", flush=True)
    return 0


def lessons(marked: Sequence[Marked], rng: random.Random) -> list[Lesson]:
    """An epoch: of each context some pairs of each two marks that it has, drawn and shuffled."""
    found = []
    for turns, replies in marked:
        for (better, worse), most in LESSONS.items():
            for _ in range(min(most, len(replies[better]) * len(replies[worse]))):
                pair = rng.choice(replies[better]), rng.choice(replies[worse])
                found.append(Lesson(turns, *pair, better == SENSIBLE))
    rng.shuffle(found)
    return found


def batches(bot: Bot, marked: Sequence[Marked], rng: random.Random) -> Iterator[tuple[Rows, np.ndarray]]:
    """Without end: the rows of the better replies and below them of the worse, and 1 for each sensible one.

    Raises:
      MarksError: no two replies with different marks fit in the rows, as with a tokenizer that makes many tokens.
    """
    waiting: dict[int, list[tuple[Lesson, list[list[int]], int]]] = {length: [] for length in LENGTHS}
    while True:
        epoch, fitting = lessons(marked, rng), 0
        for lesson in epoch:
            context = bot.encode(lesson.turns, max_new_tokens=1)
            eos = bot.config.eos_token_id
            both = [[*context, *ids, eos] for ids in bot.tokenizer.encode_batch([lesson.better, lesson.worse])]
            length = next((n for n in LENGTHS if max(map(len, both)) <= n), None)
            if length is None:  # of the package's contexts some eighty are; a program of their own is not worth it
                continue
            fitting += 1
            waiting[length].append((lesson, both, len(context)))
            if len(waiting[length]) == LENGTHS[length]:
                taken, waiting[length] = waiting[length], []
                texts = [both[side] for side in (0, 1) for _, both, _ in taken]
                starts = [start for _ in (0, 1) for _, _, start in taken]
                yield _rows(texts, starts, length), np.array([lesson.sensible for lesson, _, _ in taken], np.float32)
        if not fitting:
            raise MarksError(
                f"of {counted(len(epoch), 'pairs')} of {counted(len(marked), 'contexts')} none fits in {max(LENGTHS)} "
                "tokens of this model's tokenizer; give marks that differ within a context, or the model that they are of"
            )


def corpus_rows(bot: Bot, sources: Sequence[Sequence[Sequence[str]]], rng: random.Random) -> Rows:
    """Rows of dialogues, drawn from one source after the other, each from its beginning; its first turn is not learned."""
    eos, texts, starts = bot.config.eos_token_id, [], []
    for row in range(CORPUS_ROWS):
        drawn = rng.choice(sources[row % len(sources)])
        turns = [[*ids, eos] for ids in bot.tokenizer.encode_batch(list(drawn[:CORPUS_TURNS]))]
        texts.append([token for turn in turns for token in turn][:CORPUS_TOKENS])
        starts.append(len(turns[0]))
    return _rows(texts, starts, CORPUS_TOKENS)


def _rows(texts: Sequence[Sequence[int]], starts: Sequence[int], length: int) -> Rows:
    tokens_BT, lengths_B = pad_right(texts, length)
    places_T = np.arange(length)
    inside_BT = (places_T >= np.array(starts)[:, None]) & (places_T < np.asarray(lengths_B)[:, None])
    return Rows(tokens_BT, inside_BT.astype(np.float32))


def preference_loss(
    params: Params, config: GPT2Config, first: Params, pairs: Rows, sensible_P: jax.Array, corpus: Rows
) -> jax.Array:
    """What a step makes smaller, a scalar.

    Args:
      params, config: the model.
      first: the parameters that it began from; no gradient flows into them.
      pairs: P rows of better replies, and below them P rows of the worse.
      sensible_P: 1 where the better reply is sensible, and learned by itself too.
      corpus: rows on which to expect what `first` expects.
    """
    losses_BT = token_losses(params, config, pairs.tokens_BT) * pairs.weights_BT
    before_BT = jax.lax.stop_gradient(token_losses(first, config, pairs.tokens_BT)) * pairs.weights_BT
    gains_B = (before_BT - losses_BT).sum(axis=1)
    half = len(sensible_P)
    preferred = jax.nn.softplus(-BETA * (gains_B[:half] - gains_B[half:])).mean()
    learned_PT = pairs.weights_BT[:half] * sensible_P[:, None]
    likelihood = (losses_BT[:half] * sensible_P[:, None]).sum() / jnp.maximum(learned_PT.sum(), 1.0)
    kept, read = _against_before(params, config, first, corpus)
    return preferred + LIKELIHOOD * likelihood + KEPT * kept + READ * read


def learn_preferences(
    bot: Bot, marked: Sequence[Marked], sources: Sequence[Sequence[Sequence[str]]], *, steps: int = STEPS, seed: int = 0
) -> Params:
    """Parameters in float32 after so many steps; the same for the same seed.

    Args:
      bot: the model to begin from.
      marked: the contexts and their replies.
      sources: dialogues of the corpus; rows are drawn from each in turn.
      steps: of AdamW, at a rate that falls to 0.
      seed: of the pairs and of the dialogues.

    Raises:
      MarksError: there is no pair to learn from.
      ValueError: the model has fewer positions than the rows have tokens, or int8 weights; or the loss is not finite.
    """
    longest = max(*LENGTHS, CORPUS_TOKENS)
    if bot.config.n_positions < longest:
        raise ValueError(f"the model has {bot.config.n_positions} positions; rows of {longest} tokens need as many")
    check_trainable(bot.params)
    rng = random.Random(seed)
    optimizer = adamw(linear(RATE, steps=steps, warmup=min(WARMUP, steps - 1)), weight_decay=DECAY, b2=B2)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), bot.params)
    first, state = _as_bfloat16(params), optimizer.init(params)

    @jax.jit
    def step(params, first, state, pairs, sensible_P, corpus):
        def loss(params):
            return preference_loss(_as_bfloat16(params), bot.config, first, pairs, sensible_P, corpus)

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    drawn = batches(bot, marked, rng)
    for number in range(1, steps + 1):
        pairs, sensible_P = next(drawn)
        params, state, value = step(params, first, state, pairs, sensible_P, corpus_rows(bot, sources, rng))
        if number % 20 == 0 or number in (1, steps):
            print(f"preferences: step {number} of {steps}, loss {float(value):.3f}", flush=True)
            if not np.isfinite(value):
                raise ValueError(f"the loss at step {number} is {float(value)}; look at the weights that it began from")
    return params


def _against_before(params: Params, config: GPT2Config, first: Params, corpus: Rows) -> tuple[jax.Array, jax.Array]:
    """KL from what the first model expects of the learned tokens, and −log p of them; both means, in nats."""

    def log_probs(params: Params) -> jax.Array:
        x_RTD = hidden_of_texts(params, config, corpus.tokens_BT, None, None, False)[:, :-1]
        logits_MV = logits_by(head_kernel(params, config), config, x_RTD.reshape(-1, x_RTD.shape[-1]))
        return jax.nn.log_softmax(logits_MV.astype(jnp.float32), axis=-1)

    before_MV, now_MV = jax.lax.stop_gradient(log_probs(first)), log_probs(params)
    weights_M = corpus.weights_BT[:, 1:].reshape(-1)
    came_M = jnp.take_along_axis(now_MV, corpus.tokens_BT[:, 1:].reshape(-1, 1), axis=-1)[:, 0]
    probs_MV = jnp.exp(before_MV)
    apart_M = jnp.where(probs_MV > 0, probs_MV * (before_MV - now_MV), 0.0).sum(axis=-1)
    learned = jnp.maximum(weights_M.sum(), 1.0)
    return (weights_M * apart_M).sum() / learned, -(weights_M * came_M).sum() / learned


def _as_bfloat16(params: Params) -> Params:
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)


if __name__ == "__main__":
    sys.exit(main())
