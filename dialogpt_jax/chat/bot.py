"""A model one can talk with: dialogues of text in, replies of text out.

A `Bot` is a value: parameters, config and tokenizer, and functions of them; `loading.load` makes one from
files. What draws is given by `seed`, the row's place in the caller's list and the number of turns, so a call repeats.

Letters: B rows, T prompt tokens, N candidates.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Unpack

import jax
import numpy as np

from dialogpt_jax.arguments import MOST, as_path, as_whole_number
from dialogpt_jax.chat.batched import as_dialogues, batched_answers, checked_progress
from dialogpt_jax.chat.batched_beams import searched_answers
from dialogpt_jax.chat.scoring import as_replies, as_replies_to_each, encode_to_score, score_encoded
from dialogpt_jax.chat.session import Chat
from dialogpt_jax.decoding.beam_options import BeamWords, beam_options
from dialogpt_jax.decoding.beam_search import beam_search
from dialogpt_jax.decoding.contrastive import contrastive_search
from dialogpt_jax.decoding.contrastive_options import DEFAULT_K
from dialogpt_jax.decoding.generate import generate_candidates
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.ranking.rank_options import Rank, RankFunction
from dialogpt_jax.ranking.ranking_model import RankingModel
from dialogpt_jax.replies.candidates import Candidate, Candidates, candidate_of
from dialogpt_jax.replies.keys import row_keys
from dialogpt_jax.replies.language_model import refuse_draft
from dialogpt_jax.replies.settings import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_SEED,
    checked_length,
    checked_sampling,
    sampling_for,
    seed_or_drawn,
)
from dialogpt_jax.text.dialogue import TurnList, Turns, as_turns

DEFAULT_CANDIDATES = 16


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Bot(RankingModel):
    """A dialogue model with its tokenizer; get one from `dialogpt_jax.load`.

    All that reply take `sampling` (default `Sampling(temperature=0.3, top_k=50, top_p=0.9, no_repeat_ngram=3)`),
    `seed` (default 0: a call repeats; `None` draws one and logs it) and `max_new_tokens` (default 40, EOS included). A
    dialogue is a text, a list of texts or chat messages; the context is its newest turns, dropped by whole turns where they
    do not fit.

    All but `stream` take `beams`, too: the best reply that a search with so many beams finds. `sampling` is then greedy by
    default, may have any processors, and with a temperature draws the beams. With `beams` go `length_penalty` (1.0),
    `early_stopping` (False), `beam_groups` (1) and `diversity_penalty` (0.5): see `dg.beam_search`.

    Attributes:
      params: the parameters; the computation has their dtype.
      config: the sizes.
      tokenizer: text to ids.
      reverse: a backward model that ranks replies, if the bundled one is not to.
      ranker: a `Ranker` that does.

    Example:
      >>> bot.reply(["Hi!", "Hello.", "Any plans for today?"], seed=1)
      '...'
      >>> bot.replies([["Hi!"], ["How are you?"]])
      ['...', '...']
      >>> "".join(bot.stream("Hi!")) == bot.reply("Hi!")
      True
    """

    def reply(
        self,
        turns: Turns,
        *,
        sampling: Sampling | None = None,
        seed: int | None = DEFAULT_SEED,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        beams: int | None = None,
        rank: str | RankFunction | Rank | None = None,
        penalty_alpha: float | None = None,
        top_k: int | None = None,
        **search: Unpack[BeamWords],
    ) -> str:
        """The reply to a dialogue.

        Args:
          turns: a text, a list of texts or messages.
          sampling, seed, max_new_tokens, beams: as above, and so the words that go with `beams`.
          rank: proposes several replies and gives the one that comes first by this rule; as for `rank`.
          penalty_alpha, top_k: contrastive search (Su et al. 2022), as `dg.contrastive_search` takes them: 0.6 and 4 are
            usual. `sampling` is then greedy, with any processors. (What draws among the k best is `Sampling(top_k=k)`.)

        Raises:
          DialogueError: no turn, or nothing in the newest; a plain text is a dialogue of one turn.
          NonFiniteLogits: the weights are damaged, or too large for their dtype.
        """
        how: dict[str, Any] = {"sampling": sampling, "seed": seed, "max_new_tokens": max_new_tokens}
        ways = [
            name
            for name, way in (("rank", rank), ("beams", beams), ("penalty_alpha", penalty_alpha))
            if way is not None
        ]
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(ways)} are two ways to a reply; give one of them")
        if penalty_alpha is not None:
            refuse_draft(self, "penalty_alpha")
        if top_k is not None and penalty_alpha is None:
            raise ValueError("top_k goes with penalty_alpha; to draw among the k best, give sampling=Sampling(top_k=k)")
        beam_options(beams, search)
        if rank is not None:
            return self.rankings([as_turns(turns)], rank, **how)[0].reply
        if penalty_alpha is not None:
            text = self._contrastive(turns, penalty_alpha, DEFAULT_K if top_k is None else top_k, **how).text
        else:
            text = self.candidates(turns, n=1, beams=beams, **how, **search)[0].text
        if self.safety is None or self.safety.why_not(text) is None:
            return text
        others = (candidate.text for candidate in self.candidates(turns, beams=beams, **how, **search))
        return next((text for text in others if self.safety.why_not(text) is None), self.safety.default)

    def candidates(
        self,
        turns: Turns,
        n: int | None = None,
        *,
        sampling: Sampling | None = None,
        seed: int | None = DEFAULT_SEED,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        beams: int | None = None,
        **search: Unpack[BeamWords],
    ) -> list[Candidate]:
        """Several replies to one dialogue, made together on a shared prefix; the first is what `reply` gives.

        Args:
          turns, sampling, seed, max_new_tokens, beams: as for `reply`.
          n: how many; 16, or with beams as many as there are, by default. With beams, the n best of them, best first; fewer
            where so many are not possible.
        """
        options = beam_options(beams, search)
        if options is not None:
            refuse_draft(self, "beams")
        if n is None:
            n = DEFAULT_CANDIDATES if options is None else options.beams
        n = as_whole_number("n", n, least=1, most=MOST)
        turns, asked, how = self._asked(turns, sampling_for(sampling, options), max_new_tokens)
        how["keys"] = row_keys(seed_or_drawn(seed), [0], [len(turns)])
        out: Any
        if options is None:
            out = generate_candidates(*asked, candidates=n, draft=self.draft, **how)
        else:
            out = beam_search(*asked, **(how | dataclasses.asdict(options) | {"n_best": n}))
        out = jax.device_get(out)
        fields = [out.tokens, out.logprobs, out.lengths, out.finished]
        fields += [] if self.draft is None else [out.forwards, out.accepted]
        return Candidates(
            candidate_of(self.tokenizer, *(x[0, i] for x in fields))
            for i in range(n)
            if i == 0 or out.lengths[0, i] > 0
        )

    def _contrastive(
        self,
        turns: Turns,
        penalty_alpha: float,
        top_k: int,
        *,
        sampling: Sampling | None,
        seed: int | None,
        max_new_tokens: int,
    ) -> Candidate:
        seed_or_drawn(seed)  # found sound; nothing is drawn
        _, asked, how = self._asked(turns, sampling_for(sampling, penalty_alpha), max_new_tokens)
        out = jax.device_get(contrastive_search(*asked, penalty_alpha=penalty_alpha, top_k=top_k, **how))
        return candidate_of(self.tokenizer, out.tokens[0], out.logprobs[0], out.lengths[0], out.finished[0])

    def _asked(
        self, turns: Turns, sampling: Sampling, max_new_tokens: int
    ) -> tuple[list[str], tuple[Any, ...], dict[str, Any]]:
        """One dialogue's texts, and what every way of replying takes of it: positional arguments, and named ones."""
        sampling = self.with_ids(checked_sampling(sampling))
        turns, length = as_turns(turns), min(checked_length(max_new_tokens), self.config.n_positions)
        context = self.encode(turns, max_new_tokens=length)
        tokens_BT, lengths_B = np.array([context], np.int32), np.array([len(context)], np.int32)
        how = {"sampling": sampling, "max_new_tokens": length, "stops": self.stops(sampling)}
        return turns, (self.params, self.config, tokens_BT, lengths_B), how

    def replies(
        self,
        dialogues: Iterable[TurnList],
        *,
        sampling: Sampling | None = None,
        seed: int | None = DEFAULT_SEED,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        beams: int | None = None,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        rank: str | RankFunction | Rank | None = None,
        **search: Unpack[BeamWords],
    ) -> list[str]:
        """A reply to each of many dialogues, in their order; a reply that ends gives its row to the next dialogue.

        Args:
          dialogues: each a list of texts or of messages. A plain text is refused here, since a list of texts could mean
            one dialogue or several.
          sampling: its numbers may be arrays with one value a dialogue: value i is for dialogue i.
          beams, rank: as for `reply`, for each dialogue.
          batch_size: replies that are made at once; by default 32 (beams count), or what a quarter of the memory holds.
          progress: called with (done, all) whenever some have ended.
        """
        found = self.answers(
            dialogues,
            sampling=sampling,
            seed=seed,
            max_new_tokens=max_new_tokens,
            beams=beams,
            batch_size=batch_size,
            progress=progress,
            rank=rank,
            **search,
        )
        if self.safety is None:
            return [answer.text for answer in found]
        return [a.text if self.safety.why_not(a.text) is None else self.safety.default for a in found]

    def answers(
        self,
        dialogues: Iterable[TurnList],
        *,
        sampling: Sampling | None = None,
        seed: int | None = DEFAULT_SEED,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        beams: int | None = None,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        rank: str | RankFunction | Rank | None = None,
        **search: Unpack[BeamWords],
    ) -> list[Candidate]:
        """`replies` with what is known of each: tokens, log-probabilities, whether it ended; with a rank, why it won."""
        options = beam_options(beams, search)
        how: dict[str, Any] = {"seed": seed, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
        if rank is not None:
            if options is not None:
                raise ValueError("rank and beams are two ways to a reply; give one of them")
            how |= {"sampling": sampling, "progress": checked_progress(progress)}
            return Candidates(first for first, *_ in self.rankings(as_dialogues(dialogues), rank, **how))
        how |= {"sampling": sampling_for(sampling, options), "progress": progress}
        if options is None:
            return batched_answers(self, dialogues, **how)
        refuse_draft(self, "beams")
        return searched_answers(self, dialogues, options, **how)

    def score(
        self,
        turns: Turns,
        replies: Iterable[str | Candidate],
        *,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        progress: Callable[[int, int], None] | None = None,
    ) -> Candidates:
        """How probable each of some replies to a dialogue is, in their order; `pandas.DataFrame` makes a row of each.

        A turn ends with EOS, so the reply's EOS is scored too. The replies share the context's computation; there may be
        thousands, and the memory for them is bounded.

        Args:
          turns: a text, a list of texts or messages.
          replies: texts; of a `Candidate`, whose tokens are known, those are scored, and it may be a cut one.
          max_new_tokens: the context is what it would be for a reply of this length.
          progress: called with (done, all) after each batch.

        Raises:
          DialogueError: a reply is empty, no text, or does not fit behind the context.
          NonFiniteLogits: the weights are damaged, or too large for their dtype.

        Example:
          >>> near, far = bot.score("Any plans for today?", ["No, not yet.", "The moon is a cheese."])
          >>> near.logprob > far.logprob
          True
          >>> abs(near.mean - near.logprobs.mean()) < 1e-4  # near.perplexity is exp(-near.mean)
          True
        """
        given, progress = [as_replies("replies", replies)], checked_progress(progress)
        encoded = encode_to_score(
            self, [as_turns(turns)], given, max_new_tokens=max_new_tokens, name=lambda _, j: f"replies[{j}]"
        )
        return score_encoded(self, given, *encoded, progress)[0]

    def scores(
        self,
        dialogues: Iterable[TurnList],
        replies: Iterable[str | Candidate] | Iterable[Iterable[str | Candidate]],
        *,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        progress: Callable[[int, int], None] | None = None,
    ) -> Candidates | list[Candidates]:
        """`score` of many dialogues, in compiled batches of similar length.

        What else is scored changes a value by rounding alone: in float32 by less than 1e-4 of a token's log-probability.

        Args:
          dialogues: each a list of texts or of messages.
          replies: one for each dialogue, and then a list with one for each comes back; or a list of them for each.
          max_new_tokens, progress: as in `score`.

        Example:
          >>> dialogues = [["Hi!"], ["Hi!", "Hello.", "Any plans?"]]
          >>> [len(c.tokens) == len(c.logprobs) for c in bot.scores(dialogues, ["Hello.", "No, not yet."])]
          [True, True]
          >>> [len(own) for own in bot.scores(dialogues, [["Hello.", "Bye."], ["No."]])]
          [2, 1]
        """
        checked = as_dialogues(dialogues, many="scores", one="score")
        given, one_each = as_replies_to_each(replies, len(checked))
        progress = checked_progress(progress)

        def name(i: int, j: int) -> str:
            return f"replies[{i}]" if one_each else f"replies[{i}][{j}]"

        encoded = encode_to_score(self, checked, given, max_new_tokens=max_new_tokens, name=name)
        found = score_encoded(self, given, *encoded, progress)
        return Candidates(candidate for own in found for candidate in own) if one_each else found

    def stream(
        self,
        turns: Turns,
        *,
        sampling: Sampling | None = None,
        seed: int | None = DEFAULT_SEED,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    ) -> Iterator[str]:
        """The reply in pieces of text, as it is drawn; joined they are what `reply` gives. Pieces are whole characters."""
        *before, newest = as_turns(turns)
        chat = Chat(self, seed=seed, sampling=sampling, max_new_tokens=max_new_tokens, turns=before)
        return chat.stream(newest)

    def chat(
        self,
        *,
        sampling: Sampling | None = None,
        seed: int | None = DEFAULT_SEED,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        beams: int | None = None,
        rank: str | RankFunction | Rank | None = None,
        **search: Unpack[BeamWords],
    ) -> Chat:
        """A conversation, `dialogpt_jax.Chat`, that keeps its turns and, between them, the cache."""
        how: dict[str, Any] = {"seed": seed, "sampling": sampling, "max_new_tokens": max_new_tokens}
        return Chat(self, beams=beams, rank=rank, **how, **search)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes a model directory that this package, transformers and CTranslate2 load; in int8, this package alone."""
        from dialogpt_jax.weights.directory import write_directory

        write_directory(as_path("directory", directory), self.params, self.config, self.tokenizer)
