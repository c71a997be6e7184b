"""A model, its replies and the dialogues they were made from flow in; every measure of it comes out, with its interval."""

import collections
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dialogpt_jax.evaluation import hits, measures
from dialogpt_jax.evaluation.contexts import Context
from dialogpt_jax.evaluation.diversity import repetition
from dialogpt_jax.evaluation.intervals import Estimate, estimates
from dialogpt_jax.evaluation.perplexity import measure_dialogues
from dialogpt_jax.replies.language_model import LanguageModel

PLACES = (1, 2, 5)  # the k of hits@k
MOST_RANKED = 1000  # contexts for hits@k: scoring ten turns for each costs more than drawing one reply


class Answer(Protocol):
    """A reply's text, and whether it ended by itself: a `Candidate` or a `Reply`."""

    @property
    def text(self) -> str: ...

    @property
    def finished(self) -> bool: ...


def measure_model(
    lm: LanguageModel,
    contexts: Sequence[Context],
    answers: Sequence[Answer],
    dialogues: Sequence[Sequence[str]],
    *,
    resamples: int = measures.RESAMPLES,
    seed: int = 0,
) -> list[Estimate]:
    """`measure_replies`, then what the model thinks of the true turns: `measure_predictions`."""
    bootstrap = {"resamples": resamples, "seed": seed}
    return measure_replies(contexts, answers, **bootstrap) + measure_predictions(lm, contexts, dialogues, **bootstrap)


def measure_replies(
    contexts: Sequence[Context],
    answers: Sequence[Answer],
    *,
    resamples: int = measures.RESAMPLES,
    seed: int = 0,
) -> list[Estimate]:
    """`measures.measure` against the true next turn; then shares of the replies.

    `ended`: by themselves, not cut. `repeating`: with a 4-gram of words that stands in them twice. `commonest`: equal to
    the one that is given most often.
    """
    texts = [answer.text for answer in answers]
    truths = [[context.truth] for context in contexts]
    found = measures.measure(texts, truths, resamples=resamples, seed=seed)
    commonest = collections.Counter(texts).most_common(1)[0][0]
    shares_BN = np.stack(
        [
            [answer.finished for answer in answers],
            repetition([text.split() for text in texts]) > 0,
            [text == commonest for text in texts],
        ],
        axis=-1,
    ).astype(np.float64)
    names = ["ended", "repeating", "commonest"]
    return found + estimates(names, lambda sums: sums / len(texts), (shares_BN,), resamples=resamples, seed=seed)


def measure_predictions(
    lm: LanguageModel,
    contexts: Sequence[Context],
    dialogues: Sequence[Sequence[str]],
    *,
    resamples: int = measures.RESAMPLES,
    seed: int = 0,
) -> list[Estimate]:
    """How probable the true turns are to a model. Whole dialogues are drawn for the intervals of the first three.

    `bits per byte`: of the turns after the first, EOS counted in the bits, not in the bytes. `perplexity`: exp of the mean
    over all their tokens. `sample perplexity`: exp of the mean over dialogues of each one's mean, which DialoGPT's code
    reports as "ppl". `hits@k`: the true turn is among the k best of ten, nine of them from other dialogues
    (`hits.ranks`), over the first 1,000 contexts, by mean log-probability; `PMI hits@1` by what the context adds to it.
    Left out where there are not so many others.
    """
    bootstrap = {"resamples": resamples, "seed": seed}
    spent = measure_dialogues(lm.params, lm.config, lm.tokenizer, dialogues)
    some_D = spent.tokens_D > 0
    nats_D, tokens_D, bytes_D = (x_D[some_D] for x_D in spent)

    def score(nats, tokens, num_bytes, means, ones):
        return np.stack([nats / np.log(2) / num_bytes, np.exp(nats / tokens), np.exp(means / ones)], axis=-1)

    columns = (nats_D, tokens_D, bytes_D, nats_D / tokens_D, np.ones_like(nats_D))
    found = estimates(["bits per byte", "perplexity", "sample perplexity"], score, columns, **bootstrap)
    ranked = contexts[:MOST_RANKED]
    others = [sum(c.dialogue != one.dialogue and c.truth != one.truth for c in ranked) for one in ranked]
    if min(others, default=0) < hits.CANDIDATES - 1:
        return found
    ranks = hits.ranks(lm, ranked)
    inside_BN = np.stack([*(ranks.by_mean < k for k in PLACES), ranks.by_information < 1], axis=-1).astype(np.float64)
    names = [*(f"hits@{k}" for k in PLACES), "PMI hits@1"]
    return found + estimates(names, lambda sums: sums / len(ranked), (inside_BN,), **bootstrap)
