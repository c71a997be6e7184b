"""Does a model prefer the true next turn? Contexts in, the share of them in which it beats turns of other dialogues out.

Letters: B rows, T tokens, N candidates, R tokens of a candidate.
"""

from collections.abc import Sequence

import numpy as np

from dialogpt_jax.chat.bot import Bot, few_buckets
from dialogpt_jax.decoding.score import score_candidates
from dialogpt_jax.evaluation.contexts import Context

LONGEST_REPLY = 64  # tokens; what is longer is scored by its beginning


def hits_at_1(bot: Bot, contexts: Sequence[Context], *, candidates: int = 10, seed: int = 0, rows: int = 8) -> float:
    """The share of contexts whose true turn has the highest mean log-probability a token, EOS included.

    Args:
      bot: the model.
      contexts: with their true next turns.
      candidates: the truth and this many less one turns drawn from other dialogues. Chance is 1 / candidates.
      seed: of the draw.
    """
    eos, rng = bot.config.eos_token_id, np.random.default_rng(seed)
    truths = [[*ids, eos][:LONGEST_REPLY] for ids in bot.tokenizer.encode_batch([c.truth for c in contexts])]
    prompts = [bot.encode(c.turns, max_new_tokens=LONGEST_REPLY) for c in contexts]
    owners = np.array([c.dialogue for c in contexts])
    order = sorted(range(len(contexts)), key=lambda i: len(prompts[i]))
    won = 0
    for begin in range(0, len(order), rows):
        chosen = order[begin : begin + rows]
        filled = chosen + [chosen[0]] * (rows - len(chosen))
        lengths_B = np.array([len(prompts[i]) for i in filled], np.int32)
        context_BT = np.zeros((rows, few_buckets(int(lengths_B.max()), bot.config.n_positions)), np.int32)
        replies_BNR = np.zeros((rows, candidates, LONGEST_REPLY), np.int32)
        counts_BN = np.zeros((rows, candidates), np.int32)
        for row, i in enumerate(filled):
            context_BT[row, : len(prompts[i])] = prompts[i]
            others = rng.choice(np.flatnonzero(owners != owners[i]), candidates - 1, replace=False)
            for place, j in enumerate([i, *others]):
                replies_BNR[row, place, : len(truths[j])] = truths[j]
                counts_BN[row, place] = len(truths[j])
        scores = score_candidates(bot.params, bot.config, context_BT, lengths_B, replies_BNR, counts_BN)
        mean_BN = np.asarray(scores.mean)[: len(chosen)]
        won += int((mean_BN[:, 0] > mean_BN[:, 1:].max(axis=1)).sum())
    return won / len(contexts)
