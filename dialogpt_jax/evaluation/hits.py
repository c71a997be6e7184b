"""Does a model prefer the true next turn? Contexts in, how many turns of other dialogues it likes better out.

Letters: B contexts, T tokens, N candidates, R tokens of a candidate.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dialogpt_jax.data.batches import fill_up, pad_right
from dialogpt_jax.decoding.request import bucket_of
from dialogpt_jax.decoding.score import score_candidates
from dialogpt_jax.evaluation.contexts import Context
from dialogpt_jax.replies.language_model import LanguageModel

LONGEST_REPLY = 64  # tokens; what is longer is scored by its beginning
CANDIDATES = 10


class Ranks(NamedTuple):
    """Where the true next turn stands, best first: int64 (B,), 0 the best. hits@k is the share of ranks under k.

    Attributes:
      by_mean: ordered by mean log-probability a token, EOS included. Common phrases stand high whatever was said before.
      by_information: ordered by log P(turn | context) − log P(turn), their pointwise mutual information (Li et al. 2016):
        what the context adds. P(turn) is its probability after a lone EOS.
    """

    by_mean: np.ndarray
    by_information: np.ndarray


def ranks(
    lm: LanguageModel, contexts: Sequence[Context], *, candidates: int = CANDIDATES, seed: int = 0, rows: int = 8
) -> Ranks:
    """Where the true next turn stands among turns of other dialogues; chance is k / candidates.

    Where another turn scores the same as the true one, it counts as better.

    Args:
      lm: the model.
      contexts: with their true next turns, from which the others are drawn too: of another dialogue, and another text.
      candidates: the truth and this many less one others.
      seed: of the draw; with it, a context's number decides its others.
      rows: contexts scored together.

    Raises:
      ValueError: there are not enough other turns.
    """
    eos, longest = lm.config.eos_token_id, min(LONGEST_REPLY, lm.config.n_positions // 2)
    truths = [[*ids, eos][:longest] for ids in lm.tokenizer.encode_batch([c.truth for c in contexts])]
    prompts = [lm.encode(c.turns, max_new_tokens=longest) for c in contexts]
    owners, texts = np.array([c.dialogue for c in contexts]), np.array([c.truth for c in contexts], object)
    sets_BN = np.empty((len(contexts), candidates), np.int64)
    for i in range(len(contexts)):
        others = np.flatnonzero((owners != owners[i]) & (texts != texts[i]))
        if len(others) < candidates - 1:
            raise ValueError(
                f"hits@k needs {candidates - 1} turns of other dialogues for each context; context {i} has {len(others)}"
            )
        sets_BN[i] = [i, *np.random.default_rng((seed, i)).choice(others, candidates - 1, replace=False)]
    found = Ranks(np.empty(len(contexts), np.int64), np.empty(len(contexts), np.int64))
    nothing_BT, ones_B = np.full((rows, 1), eos, np.int32), np.ones(rows, np.int32)
    order = sorted(range(len(contexts)), key=lambda i: len(prompts[i]))
    for begin in range(0, len(order), rows):
        chosen = order[begin : begin + rows]
        filled = fill_up(chosen, rows)
        longest_prompt = max(len(prompts[i]) for i in filled)
        context_BT, lengths_B = pad_right(
            [prompts[i] for i in filled], bucket_of(longest_prompt, lm.config.n_positions)
        )
        replies = [truths[j] for i in filled for j in sets_BN[i]]
        replies_MR, counts_M = pad_right(replies, bucket_of(max(map(len, replies)), longest))
        replies_BNR, counts_BN = replies_MR.reshape(rows, candidates, -1), counts_M.reshape(rows, candidates)
        scores = score_candidates(lm.params, lm.config, context_BT, lengths_B, replies_BNR, counts_BN)
        alone = score_candidates(lm.params, lm.config, nothing_BT, ones_B, replies_BNR, counts_BN)
        for ranks_B, scores_BN in zip(found, (scores.mean, np.asarray(scores.total) - alone.total), strict=True):
            scores_BN = np.asarray(scores_BN)[: len(chosen)]
            ranks_B[chosen] = (scores_BN[:, 1:] >= scores_BN[:, :1]).sum(axis=1)
    return found
