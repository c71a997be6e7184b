"""A language model that proposes several replies and says which is best: what a bot is, before it talks."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dialogpt_jax.arguments import MOST, as_whole_number, shown
from dialogpt_jax.cache import ReplyCache
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.ranking.backward import backward_for, check_backward, has_backward
from dialogpt_jax.ranking.dialogrpt import Ranker
from dialogpt_jax.ranking.propose import choice_draw, order, rank_replies
from dialogpt_jax.ranking.rank_options import SENSE, Rank, RankFunction, as_rank
from dialogpt_jax.ranking.report import Ranking
from dialogpt_jax.ranking.safety import Safety
from dialogpt_jax.ranking.sense import SenseHead, check_sense, sense_scores
from dialogpt_jax.replies.candidates import Candidate
from dialogpt_jax.replies.language_model import LanguageModel, refuse_draft
from dialogpt_jax.replies.settings import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_SEED,
    checked_length,
    checked_sampling,
    sampling_for,
    seed_or_drawn,
)
from dialogpt_jax.text.dialogue import Turns, as_turns


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RankingModel(LanguageModel):
    """Parameters, config and tokenizer, and the models that rank what these propose.

    Attributes:
      reverse: a backward model, if the bundled one is not to rank.
      ranker: a `Ranker` that does.
      safety: what must not be said.
      sense: a head on this model's cache that tells sensible replies; the bundled model has one.

    Raises:
      TypeError: one of them is something else.
      ValueError: they do not fit each other.
    """

    reverse: LanguageModel | None = None
    ranker: Ranker | None = None
    safety: Safety | None = None
    sense: SenseHead | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reverse is not None:
            check_backward(self, self.reverse)
        if self.ranker is not None and not isinstance(self.ranker, Ranker):
            raise TypeError(f"ranker is {shown(self.ranker)}; give a directory to `load`, or what `load_ranker` gives")
        if self.safety is not None and not isinstance(self.safety, Safety):
            raise TypeError(f"safety is {shown(self.safety)}; give a Safety, such as Safety(words=[…])")
        if self.sense is not None:
            check_sense(self.sense, self.config)

    def rank(
        self,
        turns: Turns,
        by: str | RankFunction | Rank = "mmi",
        *,
        sampling: Sampling | None = None,
        seed: int | None = DEFAULT_SEED,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    ) -> Ranking:
        """Several replies to a dialogue, the best first, with what is known of each and why it won or lost.

        Args:
          turns, seed, max_new_tokens: as for `reply`.
          by: "mmi", "pmi", "rpt", "likelihood", "sense", a function of (turns, texts), or `dg.Rank` with its numbers.
          sampling: by which they are proposed; the paper's by default, among the ten best tokens, and for "sense" that of a
            plain reply at temperature 0.5.

        Example:
          >>> bot.rank("Any plans for today?", "pmi")[0].text
          '...'
        """
        how: dict[str, Any] = {"sampling": sampling, "seed": seed, "max_new_tokens": max_new_tokens}
        return self.rankings([as_turns(turns)], by, everything=True, **how)[0]

    def rankings(
        self,
        dialogues: list[list[str]],
        by: str | RankFunction | Rank = "mmi",
        *,
        everything: bool = False,
        sampling: Sampling | None = None,
        seed: int | None = DEFAULT_SEED,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        places: Sequence[int] | None = None,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Ranking]:
        """`rank` of many dialogues, in compiled batches of similar length.

        Args:
          dialogues: texts of turns.
          by, sampling, seed, max_new_tokens: as for `rank`.
          everything: all that can be known of a hypothesis, where the rule needs less.
          places: those that decide what is drawn, where the dialogues are a part of others.
          batch_size: dialogues in a batch; at most, and by default, as many as have 128 hypotheses.
          progress: called with (done, all) after each batch.
        """
        options = as_rank(by)
        refuse_draft(self, "a rank")
        backward = self.backward_of(options, everything=everything)
        sampling = self.with_ids(checked_sampling(sampling_for(sampling, None, options), len(dialogues)))
        return rank_replies(
            self,
            dialogues,
            options,
            backward=backward,
            ranker=self.ranker,
            safety=self.safety,
            sense=self.sense,
            sampling=sampling,
            seed=seed_or_drawn(seed),
            max_new_tokens=min(checked_length(max_new_tokens), self.config.n_positions),
            everything=everything,
            places=places,
            batch_size=None if batch_size is None else as_whole_number("batch_size", batch_size, least=1, most=MOST),
            progress=progress,
        )

    def order(
        self,
        turns: Turns,
        candidates: Sequence[Candidate],
        by: str | RankFunction | Rank = "mmi",
        *,
        seed: int = DEFAULT_SEED,
        attempt: int = 0,
    ) -> Ranking:
        """Candidates of one dialogue, however they were made, in the order of a rule.

        Args:
          turns, by: as for `rank`.
          candidates: such as `candidates` and `score` give; the latter takes texts of yours.
          seed, attempt: of a choice that is drawn; `attempt` counts the tries of a chat.

        Raises:
          TypeError: they are no candidates.

        Example:
          >>> mine = bot.score("I lost my keys again.", ["I lost my keys again.", "Did you look in the car?"])
          >>> bot.order("I lost my keys again.", mine)[0].text  # the copy has the better score, and is held back
          'Did you look in the car?'
        """
        options, texts = as_rank(by), as_turns(turns)
        for number, candidate in enumerate(candidates):
            if not isinstance(candidate, Candidate):
                raise TypeError(
                    f"candidates[{number}] is {shown(candidate)}; `score(turns, texts)` makes them of texts"
                )
        draws = [choice_draw(seed, 0, len(texts), attempt)]
        models = (self, self.backward_of(options), self.ranker, self.safety, self.sense)
        return order(*models, [texts], [candidates], options, draws)[0]

    def senses(self, options: Rank, cache: ReplyCache, counts_M: jax.Array) -> Sequence[float | None]:
        """What the sense head says of the replies in a decoding loop's cache; `None` of each where another rule ranks."""
        if self.sense is None or options.by != SENSE:
            return [None] * counts_M.shape[0]
        return np.asarray(sense_scores(self.sense, cache, counts_M)).tolist()

    def backward_of(self, options: Rank, *, everything: bool = False) -> LanguageModel | None:
        """The backward model that these options need, or for a report can have.

        Raises:
          ValueError: a model is missing by which they rank.
        """
        if options.by == "rpt" and self.ranker is None:
            raise ValueError("ranking by rpt needs a ranker: give one, `load(…, ranker=DIR)` or `--ranker DIR`")
        if options.by == SENSE and self.sense is None:
            raise ValueError(
                "ranking by sense needs a head that was trained on this model; the bundled model has one, and `load(…, "
                "sense=FILE)` takes yours (python -m dialogpt_jax.bundled.tell_sense makes it of marked replies); without "
                "one take another rule, or none (--rank off)"
            )
        if options.by == "mmi" or (everything and has_backward(self, self.reverse)):
            return backward_for(self, self.reverse)
        return None
