"""Does a model prefer the true next turn? Contexts in, how many turns of other dialogues it likes better out.

Letters: B contexts, N candidates.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dialogpt_jax.decoding.score_batches import score_replies
from dialogpt_jax.errors import counted
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


def ranks(lm: LanguageModel, contexts: Sequence[Context], *, candidates: int = CANDIDATES, seed: int = 0) -> Ranks:
    """Where the true next turn stands among turns of other dialogues; chance is k / candidates.

    Where another turn scores the same as the true one, it counts as better.

    Args:
      lm: the model.
      contexts: with their true next turns, from which the others are drawn too: of another dialogue, and another text.
      candidates: the truth and this many less one others.
      seed: of the draw; with it, a context's number decides its others.

    Raises:
      ValueError: there are not enough other turns.
    """
    eos, (prompts, truths) = lm.config.eos_token_id, encode_truths(lm, contexts)
    sets_BN = draw_sets(contexts, candidates=candidates, seed=seed)
    # P(turn) is the same behind any context, so each turn is scored once.
    alone = score_replies(lm.params, lm.config, [[eos]], [truths])[0]
    within = score_replies(lm.params, lm.config, prompts, [[truths[j] for j in set_N] for set_N in sets_BN])
    total_BN = np.array([[logprobs.sum() for logprobs in own] for own in within])
    mean_BN = np.array([[logprobs.mean() for logprobs in own] for own in within])
    alone_BN = np.array([logprobs.sum() for logprobs in alone])[sets_BN]
    return Ranks(*((x_BN[:, 1:] >= x_BN[:, :1]).sum(axis=1) for x_BN in (mean_BN, total_BN - alone_BN)))


def encode_truths(lm: LanguageModel, contexts: Sequence[Context]) -> tuple[list[list[int]], list[list[int]]]:
    """The ids of each context, and those of its true next turn with EOS, of which the first 64 count."""
    longest = min(LONGEST_REPLY, lm.config.n_positions // 2)
    ids = lm.tokenizer.encode_batch([c.truth for c in contexts])
    truths = [[*own, lm.config.eos_token_id][:longest] for own in ids]
    return [lm.encode(c.turns, max_new_tokens=longest) for c in contexts], truths


def draw_sets(contexts: Sequence[Context], *, candidates: int = CANDIDATES, seed: int = 0) -> np.ndarray:
    """For each context the numbers of those whose true turns are its candidates, int64 (B, N): its own stands first.

    Raises:
      ValueError: there are not enough other turns.
    """
    owners, texts = np.array([c.dialogue for c in contexts]), np.array([c.truth for c in contexts], object)
    sets_BN = np.empty((len(contexts), candidates), np.int64)
    for i in range(len(contexts)):
        others = np.flatnonzero((owners != owners[i]) & (texts != texts[i]))
        if len(others) < candidates - 1:
            raise ValueError(
                f"hits@k needs {counted(candidates - 1, 'turns')} of other dialogues for each context; "
                f"context {i} has {len(others)}"
            )
        sets_BN[i] = [i, *np.random.default_rng((seed, i)).choice(others, candidates - 1, replace=False)]
    return sets_BN
