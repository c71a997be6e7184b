"""The head that tells a model's sensible replies: the model and marked replies in, `sense_head.safetensors` out.

    python -m dialogpt_jax.bundled.tell_sense --model MODEL --export sense_head.safetensors

    marked replies ─read by the model→ features_MF ─two layers, AdamW→ SenseHead

The model stays as it is: what it holds of each reply is computed once, and the head learns the marks from that in a minute.
A sensible reply counts 1, a passable one 0.4, nonsense 0. Of a context with a single sensible reply that one is left out,
for it may have been written and not drawn (`marked.py`), and a head would learn to tell that.

With --hold-out N it learns from the other contexts, and says how often it puts two replies to one of these N in order.

Letters: M replies, F features, U units.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dialogpt_jax.bundled.marked import DRAWN, MARKED, NONSENSE, PASSABLE, SENSIBLE, Marked, MarksError, read_marked
from dialogpt_jax.chat.bot import Bot
from dialogpt_jax.chat.loading import load
from dialogpt_jax.data.batches import fill_up, pad_right
from dialogpt_jax.decoding.request import bucket_of
from dialogpt_jax.errors import one_line
from dialogpt_jax.ranking.sense import SenseHead, read_replies, reply_features
from dialogpt_jax.training.schedules import linear

WORTH = {SENSIBLE: 1.0, PASSABLE: 0.4, NONSENSE: 0.0}
UNITS, STEPS, BATCH, RATE, DECAY = 256, 3000, 1024, 1e-3, 1e-3
DROPPED, DROPPED_UNITS = 0.3, 0.3  # shares of the features and of the units, while it learns
ROWS = 128  # replies that the model reads at once
LEAST = 1e-4  # a feature that hardly differs is not blown up


class Read(NamedTuple):
    """What the model holds of each reply, what it is worth, and the number of its context."""

    features_MF: np.ndarray
    worth_M: np.ndarray
    contexts_M: np.ndarray


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dialogpt_jax.bundled.tell_sense",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="a model directory")
    parser.add_argument("--export", type=Path, required=True, help="the head's file; one that is there is replaced")
    parser.add_argument("--marked", type=Path, nargs="+", default=[MARKED, DRAWN], help="by default the package's")
    parser.add_argument("--hold-out", type=int, default=0, metavar="N", help="contexts that it does not learn from")
    args = parser.parse_args(argv)
    try:
        if args.export.is_dir() or not args.export.resolve().parent.is_dir():  # told before the work
            raise ValueError(f"--export is {args.export}; name a file in a folder that is there")
        bot, marked = load(args.model), [entry for path in args.marked for entry in read_marked(path)]
        last_turns = sorted({entry.turns[-1] for entry in marked})
        if not 0 <= args.hold_out < len(last_turns):
            raise ValueError(
                f"--hold-out is {args.hold_out}; give 0 to {len(last_turns) - 1}, for so many contexts are there"
            )
        held = set(random.Random(0).sample(last_turns, args.hold_out))
        read = read_marks_of(bot, marked)
        out_M = np.array([marked[context].turns[-1] in held for context in read.contexts_M])
        head = learn_sense(Read(*(x[~out_M] for x in read)), blocks=range(bot.config.n_layer))
        if held:
            print(ordered_pairs(head, Read(*(x[out_M] for x in read))), flush=True)
        head.save(args.export)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
    print(f"wrote {args.export}", flush=True)
    return 0


def read_marks_of(bot: Bot, marked: Sequence[Marked]) -> Read:
    """Every marked reply, as the model has it in its cache when it has been drawn."""
    rows: list[tuple[list[int], list[int], float, int]] = []
    for number, (turns, replies) in enumerate(marked):
        context = bot.encode(turns)
        for mark, texts in replies.items():
            if mark == SENSIBLE and len(texts) == 1:
                continue
            ids = bot.tokenizer.encode_batch(texts)
            rows += [(context, [*own, bot.config.eos_token_id], WORTH[mark], number) for own in ids]
    if not rows:
        raise MarksError("there is no marked reply to learn from")
    positions, blocks = bot.config.n_positions, range(bot.config.n_layer)
    features_MF = np.zeros((len(rows), len(blocks) * bot.config.n_embd), np.float32)
    sizes = [(bucket_of(len(context), positions), bucket_of(len(reply), positions)) for context, reply, *_ in rows]
    features = jax.jit(lambda cache, counts_M: reply_features(cache, counts_M, blocks))
    groups = [[i for i, size in enumerate(sizes) if size == of] for of in sorted(set(sizes))]
    done = 0
    for part in (group[start : start + ROWS] for group in groups for start in range(0, len(group), ROWS)):
        filled = fill_up(part, ROWS)
        context_BT, lengths_B = pad_right([rows[i][0] for i in filled], sizes[part[0]][0])
        replies_BR, counts_B = pad_right([rows[i][1] for i in filled], sizes[part[0]][1])
        cache = read_replies(bot.params, bot.config, context_BT, lengths_B, replies_BR[:, None])
        features_MF[part] = np.asarray(features(cache, counts_B))[: len(part)]
        done += len(part)
        if done // 10_000 > (done - len(part)) // 10_000 or done == len(rows):
            print(f"sense: read {done} of {len(rows)} replies", flush=True)
    return Read(features_MF, np.array([row[2] for row in rows], np.float32), np.array([row[3] for row in rows]))


def learn_sense(read: Read, *, blocks: Sequence[int], steps: int = STEPS, seed: int = 0) -> SenseHead:
    """A head that has learned what replies are worth; the same for the same seed.

    Args:
      read: features and worth of the replies.
      blocks: which blocks of the model the features are of.
      steps: of AdamW, at a rate that falls to 0.
      seed: of its first weights, of what is drawn and of what is dropped.
    """
    mean_F, spread_F = read.features_MF.mean(0), np.maximum(read.features_MF.std(0), LEAST)
    features_MF, worth_M = jnp.asarray((read.features_MF - mean_F) / spread_F), jnp.asarray(read.worth_M)
    features = features_MF.shape[1]
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "kernel_UF": jax.random.normal(keys[0], (UNITS, features)) * features**-0.5,
        "bias_U": jnp.zeros(UNITS),
        "row_U": jax.random.normal(keys[1], (UNITS,)) * 0.1 * UNITS**-0.5,
        "offset": jnp.zeros(()),
    }
    optimizer = optax.adamw(linear(RATE, steps=steps, warmup=min(10, steps - 1)), weight_decay=DECAY)

    def loss(params: Any, x_MF: jax.Array, worth_M: jax.Array, key: jax.Array) -> jax.Array:
        """The cross-entropy, a mean."""
        one, other = jax.random.split(key)
        x_MF = _dropped(x_MF, DROPPED, one)
        units_MU = _dropped(jax.nn.gelu(x_MF @ params["kernel_UF"].T + params["bias_U"][None]), DROPPED_UNITS, other)
        z_M = units_MU @ params["row_U"] + params["offset"]
        return (jax.nn.softplus(z_M) - worth_M * z_M).mean()

    @jax.jit
    def step(params, state, key, features_MF, worth_M):
        drawn, dropped = jax.random.split(key)
        some = jax.random.randint(drawn, (BATCH,), 0, len(worth_M))
        value, grads = jax.value_and_grad(loss)(params, features_MF[some], worth_M[some], dropped)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, values = optimizer.init(params), []
    for number in range(1, steps + 1):
        params, state, value = step(params, state, jax.random.fold_in(keys[2], number), features_MF, worth_M)
        values.append(value)
        if number % 500 == 0 or number == steps:
            print(f"sense: step {number} of {steps}, loss {float(jnp.stack(values[-100:]).mean()):.3f}", flush=True)
    kernel_UF = params["kernel_UF"] / spread_F[None]  # takes features as they are
    bias_U = params["bias_U"] - kernel_UF @ mean_F
    return SenseHead(kernel_UF, bias_U, params["row_U"], params["offset"], tuple(blocks))


def ordered_pairs(head: SenseHead, read: Read) -> str:
    """Of two replies to one context with different marks, how often the better has the better score, in words."""
    scores_M = np.asarray(head.of_features(jnp.asarray(read.features_MF)))
    names = {worth: mark for mark, worth in WORTH.items()}
    right: dict[tuple[str, ...], list[bool]] = {}
    for context in np.unique(read.contexts_M):
        own = np.flatnonzero(read.contexts_M == context)
        for i in own:
            for j in own[read.worth_M[own] < read.worth_M[i] - 1e-6]:
                pair = tuple(names[round(float(read.worth_M[k]), 3)] for k in (i, j))
                right.setdefault(pair, []).append(scores_M[i] > scores_M[j])
    shown = (
        f"{better} before {worse} {np.mean(found):.1%} of {len(found)}" for (better, worse), found in right.items()
    )
    return f"sense: held out: {', '.join(shown)}"


def _dropped(x: jax.Array, share: float, key: jax.Array) -> jax.Array:
    return x * jax.random.bernoulli(key, 1 - share, x.shape) / (1 - share)


if __name__ == "__main__":
    sys.exit(main())
