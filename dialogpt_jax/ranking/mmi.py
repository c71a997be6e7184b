"""How probable what was said is, given a reply: hypotheses and a source in, log P(source | hypothesis) out.

The maximum mutual information of Zhang et al. 2019, section 3.2: a backward model, trained on dialogues whose last turn
comes first (`data.examples.order_and_weigh` with `reverse`), punishes what could be said to anything.

    hypothesis [x y EOS], source [a b EOS]:   the row   x y EOS a b EOS     of which a, b and the last EOS are scored

Letters: M hypotheses, T tokens of a hypothesis and its source, S scored tokens, D model.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import fill_up, pad_right
from dialogpt_jax.decoding.request import bucket_of
from dialogpt_jax.decoding.score_batches import score_replies
from dialogpt_jax.likelihood import hidden_of_texts, losses_of_hidden
from dialogpt_jax.model import Params
from dialogpt_jax.ranking.rank_options import ALL
from dialogpt_jax.replies.language_model import LanguageModel

ROWS = 64  # hypotheses in a batch, at most


def source_of(backward: LanguageModel, turns: Sequence[str], source: str, *, room: int) -> list[int]:
    """The ids of what a backward model is asked for: the last turn, or all of them, the last one first, each with EOS.

    What does not fit into `room` tokens is left out by whole turns, and of the last turn from its end.
    """
    eos, chosen = backward.config.eos_token_id, list(reversed(turns)) if source == ALL else [turns[-1]]
    first, *others = backward.tokenizer.encode_batch(chosen)
    ids = [*first[: room - 1], eos]
    for turn in others:
        if len(ids) + len(turn) + 1 > room:
            break
        ids += [*turn, eos]
    return ids


def backward_scores(
    backward: LanguageModel, hypotheses: Sequence[Sequence[int]], dialogues: Sequence[Sequence[str]], source: str
) -> list[float]:
    """log P(source | hypothesis), the sum over the source's tokens, EOS included, in nats.

    Args:
      backward: the backward model.
      hypotheses: ids of each, its EOS included where it has one; without it, it gets one all the same.
      dialogues: the turns that each replies to.
      source: "last", the last turn, or "all" of them.

    Raises:
      ValueError: a hypothesis leaves no room for a source.
    """
    config = backward.config
    rows, starts = [], []
    for ids, turns in zip(hypotheses, dialogues, strict=True):
        said = [*ids, *([] if ids and ids[-1] == config.eos_token_id else [config.eos_token_id])]
        room = config.n_positions - len(said)
        if room < 2:
            most = f"the backward model has {config.n_positions} positions"
            raise ValueError(f"a hypothesis has {len(said)} tokens and {most}; give a smaller max_new_tokens")
        rows.append([*said, *source_of(backward, turns, source, room=room)])
        starts.append(len(said))
    return row_totals(backward, rows, starts)


def information(model: LanguageModel, replies: Sequence[Sequence[int]], forward: Sequence[float]) -> list[float]:
    """log P(reply | context) − log P(reply), what the context adds (Li et al. 2016); P(reply) is after a lone EOS.

    Args:
      model: the forward model.
      replies: ids of each.
      forward: log P(reply | context) of each.
    """
    [alone] = score_replies(model.params, model.config, [[model.config.eos_token_id]], [replies])
    return [within - float(logprobs.sum()) for within, logprobs in zip(forward, alone, strict=True)]


def row_totals(model: LanguageModel, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[float]:
    """log P of each row's tokens from its start on, given those before it; in batches of similar length."""
    totals = np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda m: len(rows[m]))
    size = min(ROWS, bucket_of(len(rows)))
    for begin in range(0, len(order), size):
        chosen = order[begin : begin + size]
        filled = fill_up(chosen, size)
        width = bucket_of(max(len(rows[m]) for m in filled), model.config.n_positions)
        scored = bucket_of(max(len(rows[m]) - starts[m] for m in filled), width)
        tokens_MT, lengths_M = pad_right([rows[m] for m in filled], width)
        starts_M = np.array([starts[m] for m in filled], np.int32)
        found = _totals(model.params, model.config, tokens_MT, starts_M, lengths_M, scored=scored)
        totals[chosen] = np.asarray(found)[: len(chosen)]
    return totals.tolist()


@functools.partial(jax.jit, static_argnames=("config", "scored"))
def _totals(
    params: Params, config: GPT2Config, tokens_MT: jax.Array, starts_M: jax.Array, lengths_M: jax.Array, *, scored: int
) -> jax.Array:
    """log P of the tokens from each row's start to its length, at most `scored` of them.

    As `decoding.score.score`, but only what is scored meets the vocabulary: of a hypothesis and its source a third, and the
    head is a third of GPT-2 small's work.
    """
    x_MTD = hidden_of_texts(params, config, tokens_MT, None, None, False)
    places_MS = starts_M[:, None] + jnp.arange(scored)[None]
    inside_MS = places_MS < lengths_M[:, None]
    places_MS = jnp.minimum(places_MS, tokens_MT.shape[1] - 1)
    x_MSD = jnp.take_along_axis(x_MTD, (places_MS - 1)[..., None], axis=1)
    next_MS = jnp.take_along_axis(tokens_MT, places_MS, axis=1)
    return -jnp.where(inside_MS, losses_of_hidden(params, config, x_MSD, next_MS), 0.0).sum(axis=1)
