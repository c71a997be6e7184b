"""Many contexts, each with replies of its own: token ids in; log-probabilities of the replies' tokens out.

    contexts, replies ─_pieces→ some replies to one context, of a bucket ─_batches→ pieces of one shape ─score_candidates→

The replies of a context share its prefix; contexts of similar length share a batch. All that ranks replies is this one
function: P(reply | context), P(reply) after a lone EOS, and, by a model of turns said backwards, P(source | hypothesis),
where the hypotheses are the contexts.

Letters: B rows, T context tokens, N replies of a row, R tokens of a reply.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import fill_up, pad_right
from dialogpt_jax.decoding.request import bucket_of
from dialogpt_jax.decoding.score import score_candidates
from dialogpt_jax.decoding.soundness import check_finite
from dialogpt_jax.model import Params

# Of a batch, pads included: so many at most of its contexts, and of its replies. It bounds the memory: in the shape of
# GPT-2 small the attention of 4,096 queries to 1,088 slots is 200 MB.
TOKENS = 4096
SHORTEST_CONTEXT = 64  # tokens; shorter ones are padded to this, others to the next power of two
MOST_ROWS = 64


class Piece(NamedTuple):
    """Some replies to one context, and the shape they are padded to; sorted, those of one shape stand together.

    Attributes:
      width: tokens of the context.
      replies: their number.
      slots: tokens of a reply.
      context: its number.
      members: the numbers of the replies.
    """

    width: int
    replies: int
    slots: int
    context: int
    members: list[int]


def score_replies(
    params: Params,
    config: GPT2Config,
    contexts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[Sequence[int]]],
    *,
    progress: Callable[[int], None] | None = None,
) -> list[list[np.ndarray]]:
    """log p(token | context, the reply's tokens before it) of each reply, float32 (R,), in the order in which they came.

    Widths are powers of two, so that many lengths compile few programs. What else is scored changes a value by rounding
    alone: in float32 by less than 1e-4 of a token's log-probability.

    Args:
      params, config: the model.
      contexts: ids, at least one each.
      replies: the replies to each context; EOS is scored where it is given.
      progress: called with the number of replies that were scored, after each batch.

    Raises:
      ValueError: a context and a reply do not fit into `n_positions` together, or an id is outside the vocabulary.
      NonFiniteLogits: a log-probability is not finite.
    """
    found: list[list[np.ndarray]] = [[np.zeros(0, np.float32)] * len(own) for own in replies]
    for batch, rows in _batches(_pieces(config, contexts, replies)):
        width, candidates, slots, *_ = batch[0]
        context_BT, lengths_B = pad_right([contexts[piece.context] for piece in fill_up(batch, rows)], width)
        replies_BNR, counts_BN = np.zeros((rows, candidates, slots), np.int32), np.zeros((rows, candidates), np.int32)
        for row, (*_, context, members) in enumerate(batch):
            own = pad_right([replies[context][j] for j in members], slots)
            replies_BNR[row, : len(members)], counts_BN[row, : len(members)] = own
        scores = score_candidates(params, config, context_BT, lengths_B, replies_BNR, counts_BN)
        logprobs_BNR = np.asarray(jax.device_get(scores.logprobs))
        check_finite(bool(np.isfinite(logprobs_BNR).all()))
        for row, (*_, context, members) in enumerate(batch):
            for n, j in enumerate(members):
                found[context][j] = logprobs_BNR[row, n, : counts_BN[row, n]].copy()
        if progress is not None:
            progress(sum(len(piece.members) for piece in batch))
    return found


def _pieces(
    config: GPT2Config, contexts: Sequence[Sequence[int]], replies: Sequence[Sequence[Sequence[int]]]
) -> list[Piece]:
    """All replies, the longest of each context first, cut where a piece has `TOKENS`.

    3 replies of 20 tokens, 2 of 5:    one piece of 8 replies, 32 slots
    300 of 9:                          one piece of 256 replies, 16 slots, and one of 64
    """
    pieces = []
    for number, (context, own) in enumerate(zip(contexts, replies, strict=True)):
        width = bucket_of(max(len(context), SHORTEST_CONTEXT), config.n_positions)
        left = sorted(range(len(own)), key=lambda j: (-len(own[j]), j))
        while left:
            slots = bucket_of(len(own[left[0]]), config.n_positions)
            candidates = min(_power_of_two(len(left)), max(TOKENS // slots, 1))
            pieces.append(Piece(width, candidates, slots, number, left[:candidates]))
            left = left[candidates:]
    return sorted(pieces)


def _batches(pieces: list[Piece]) -> Iterator[tuple[list[Piece], int]]:
    """Pieces of one shape, and the number of rows they are filled up to."""
    for shape, same in itertools.groupby(pieces, key=lambda piece: piece[:3]):
        group, (width, candidates, slots) = list(same), shape
        most = max(TOKENS // max(width, candidates * slots), 1)
        rows = min(_power_of_two(len(group)), most, MOST_ROWS)
        yield from ((group[begin : begin + rows], rows) for begin in range(0, len(group), rows))


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
