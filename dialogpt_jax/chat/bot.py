"""A model one can talk with: dialogues of text in, replies of text out.

`load` is the edge where files are read; a `Bot` is a value after that: parameters, config and tokenizer, and functions of
them. What draws is given by `seed`, the row's place in the caller's list and the number of turns, so a call repeats.

Letters: B rows, T prompt tokens, N candidates.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dialogpt_jax.arguments import MOST, as_path, as_plain, as_whole_number, shown
from dialogpt_jax.chat.candidates import Candidate, Candidates
from dialogpt_jax.chat.keys import row_keys
from dialogpt_jax.chat.language_model import LanguageModel
from dialogpt_jax.chat.session import Chat
from dialogpt_jax.chat.settings import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_SAMPLING,
    DEFAULT_SEED,
    checked_length,
    checked_sampling,
    few_buckets,
    rows_of_sampling,
    sampling_for,
    seed_or_drawn,
)
from dialogpt_jax.data.batches import fill_up, pad_right
from dialogpt_jax.decoding.beam_options import BeamOptions
from dialogpt_jax.decoding.beam_search import beam_search
from dialogpt_jax.decoding.generate import generate, generate_candidates
from dialogpt_jax.decoding.request import bucket_of
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.decoding.soundness import NonFiniteLogits, check_finite
from dialogpt_jax.model import compute_dtype
from dialogpt_jax.text.dialogue import DialogueError, TurnList, Turns, as_turns
from dialogpt_jax.text.tokenizer import Tokenizer

DEFAULT_ROWS = 32
DEFAULT_CANDIDATES = 16
SHORTEST_BATCH = 64  # tokens; the contexts of a batch are padded to this, or 4 times as much, or 16 times


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Bot(LanguageModel):
    """A dialogue model with its tokenizer; get one from `dialogpt_jax.load`.

    All that reply take `sampling` (default `Sampling(temperature=0.3, top_k=50, top_p=0.9, no_repeat_ngram=3)`),
    `seed` (default 0: a call repeats; `None` draws one and logs it) and `max_new_tokens` (default 40, EOS included). A
    dialogue is a text, a list of texts or chat messages; the context is its newest turns, dropped by whole turns where they
    do not fit.

    Attributes:
      params: the parameters; the computation has their dtype.
      config: the sizes.
      tokenizer: text to ids.

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
        length_penalty: float = BeamOptions.length_penalty,
        early_stopping: bool | str = BeamOptions.early_stopping,
    ) -> str:
        """The reply to a dialogue.

        Args:
          turns: a text, a list of texts or messages.
          sampling, seed, max_new_tokens: as above.
          beams: the best reply that a search with so many beams finds; `sampling` is then greedy by default, may have any
            processors, and with a temperature draws the beams.
          length_penalty, early_stopping: of the search, as in `dg.beam_search`.

        Raises:
          DialogueError: no turn, or nothing in the newest; a plain text is a dialogue of one turn.
          NonFiniteLogits: the weights are damaged, or too large for their dtype.
        """
        found = self.candidates(
            turns,
            n=1,
            sampling=sampling,
            seed=seed,
            max_new_tokens=max_new_tokens,
            beams=beams,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
        )
        return found[0].text

    def candidates(
        self,
        turns: Turns,
        n: int | None = None,
        *,
        sampling: Sampling | None = None,
        seed: int | None = DEFAULT_SEED,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        beams: int | None = None,
        length_penalty: float = BeamOptions.length_penalty,
        early_stopping: bool | str = BeamOptions.early_stopping,
    ) -> list[Candidate]:
        """Several replies to one dialogue, made together on a shared prefix; the first is what `reply` gives.

        Args:
          turns, sampling, seed, max_new_tokens, beams, length_penalty, early_stopping: as for `reply`.
          n: how many; 16, or with beams as many as there are, by default. With beams, the n best of them, best first; fewer
            where so many are not possible.
        """
        options = None if beams is None else BeamOptions(beams, length_penalty, early_stopping)
        if n is None:
            n = DEFAULT_CANDIDATES if options is None else options.beams
        n, sampling = as_whole_number("n", n, least=1, most=MOST), checked_sampling(sampling_for(sampling, beams))
        turns, length = as_turns(turns), min(checked_length(max_new_tokens), self.config.n_positions)
        context = self.encode(turns, max_new_tokens=length)
        tokens_BT, lengths_B = np.array([context], np.int32), np.array([len(context)], np.int32)
        how: dict[str, Any] = {
            "sampling": sampling,
            "max_new_tokens": length,
            "keys": row_keys(seed_or_drawn(seed), [0], [len(turns)]),
            "stops": self.stops(sampling),
        }
        out: Any
        if options is None:
            out = generate_candidates(self.params, self.config, tokens_BT, lengths_B, candidates=n, **how)
        else:
            how |= dataclasses.asdict(options)
            out = beam_search(self.params, self.config, tokens_BT, lengths_B, n_best=n, **how)
        out = jax.device_get(out)
        found = Candidates(
            self._candidate(out.tokens[0, i], out.logprobs[0, i], out.lengths[0, i], out.finished[0, i])
            for i in range(n)
            if out.lengths[0, i] > 0
        )
        if not found:
            raise ValueError("no reply is possible: the sampling's processors forbid every token")
        return found

    def replies(
        self,
        dialogues: Iterable[TurnList],
        *,
        sampling: Sampling = DEFAULT_SAMPLING,
        seed: int | None = DEFAULT_SEED,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """A reply to each of many dialogues, in their order, in compiled batches of similar length.

        Args:
          dialogues: each a list of texts or of messages. A plain text is refused here, since a list of texts could mean
            one dialogue or several.
          sampling: its numbers may be arrays with one value a dialogue: value i is for dialogue i.
          batch_size: rows in a batch; by default 32, or what a quarter of the memory at hand holds.
          progress: called with (done, all) after each batch.
        """
        found = self.answers(
            dialogues,
            sampling=sampling,
            seed=seed,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=progress,
        )
        return [answer.text for answer in found]

    def answers(
        self,
        dialogues: Iterable[TurnList],
        *,
        sampling: Sampling = DEFAULT_SAMPLING,
        seed: int | None = DEFAULT_SEED,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Candidate]:
        """`replies` with what is known of each: tokens, log-probabilities, whether it ended by itself."""
        checked = _as_dialogues(dialogues)
        sampling = checked_sampling(sampling, len(checked))
        longest_reply, seed = min(checked_length(max_new_tokens), self.config.n_positions), seed_or_drawn(seed)
        if batch_size is not None:
            batch_size = as_whole_number("batch_size", batch_size, least=1, most=MOST)
        if progress is not None and not callable(progress):
            raise TypeError(f"progress is {shown(progress)}; give a function of (done, all)")
        contexts = [self.encode(turns, max_new_tokens=longest_reply) for turns in checked]
        rows = batch_size or self._rows_that_fit(len(contexts), max(map(len, contexts), default=1), longest_reply)
        # A batch is of one bucket, so there is one program for each bucket, however many dialogues there are.
        buckets = [few_buckets(len(context), self.config.n_positions, SHORTEST_BATCH) for context in contexts]
        groups = [[i for i, of_i in enumerate(buckets) if of_i == bucket] for bucket in sorted(set(buckets))]
        found: dict[int, Candidate] = {}
        for chosen in (group[begin : begin + rows] for group in groups for begin in range(0, len(group), rows)):
            filled = fill_up(chosen, rows)
            tokens_BT, lengths_B = pad_right([contexts[i] for i in filled], buckets[chosen[0]])
            out = generate(
                self.params,
                self.config,
                tokens_BT,
                lengths_B,
                sampling=rows_of_sampling(sampling, filled),
                max_new_tokens=longest_reply,
                keys=row_keys(seed, filled, [len(checked[i]) for i in filled]),
                stops=self.stops(sampling),
            )
            out = jax.device_get(out)
            for row, i in enumerate(chosen):
                try:
                    found[i] = self._candidate(out.tokens[row], out.logprobs[row], out.lengths[row], out.finished[row])
                except NonFiniteLogits as error:
                    raise NonFiniteLogits(f"dialogue {i}: {error}") from None
            if progress is not None:
                progress(len(found), len(contexts))
        return Candidates(found[i] for i in range(len(contexts)))

    def stream(
        self,
        turns: Turns,
        *,
        sampling: Sampling = DEFAULT_SAMPLING,
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
        sampling: Sampling = DEFAULT_SAMPLING,
        seed: int | None = DEFAULT_SEED,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    ) -> Chat:
        """A conversation, `dialogpt_jax.Chat`, that keeps its turns and, between them, the cache."""
        return Chat(self, seed=seed, sampling=sampling, max_new_tokens=max_new_tokens)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes a model directory that this package, transformers and CTranslate2 load; in int8, this package alone."""
        from dialogpt_jax.weights.directory import write_directory

        write_directory(as_path("directory", directory), self.params, self.config, self.tokenizer)

    def _candidate(self, tokens, logprobs, length, finished) -> Candidate:
        tokens, logprobs = tokens[:length], logprobs[:length]
        check_finite(bool(np.isfinite(logprobs).all()))
        return Candidate(self.tokenizer.decode(tokens), tokens, logprobs, float(logprobs.sum()), bool(finished))

    def _rows_that_fit(self, dialogues: int, context: int, reply: int) -> int:
        config = self.config
        slots = few_buckets(context, config.n_positions, SHORTEST_BATCH) + bucket_of(reply, config.n_positions)
        size = compute_dtype(self.params).itemsize
        cache = 2 * config.n_layer * config.n_embd * size * slots
        logits = 4 * 4 * config.padded_vocab_size  # a few float32 copies of a row's logits are alive at once
        rows = min(DEFAULT_ROWS, 1 << (max(dialogues, 1) - 1).bit_length())
        while rows > 1 and rows * (cache + logits) > _memory() / 4:
            rows //= 2
        return rows


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    dtype: str | None = None,
    revision: str | None = None,
) -> Bot:
    """A bot from a model.

    Args:
      model: `None` for the small model that ships with the package; a model directory; or a name on the Hub, such as
        "microsoft/DialoGPT-medium".
      dtype: "float32" (the default, whatever the file holds, unless that is int8), "bfloat16", "float16", or "int8":
        weights of 8 bits, a quarter of the bytes to read for a token, and on CPU the fastest.
      revision: of a Hub repository: a branch, tag or commit.

    Example:
      >>> bot = dg.load()
      >>> bot.reply("Does money buy happiness?")
      '...'
    """
    from dialogpt_jax.weights.directory import load_params
    from dialogpt_jax.weights.hub import resolve

    if model is not None:
        as_path("model", model)
    folder = resolve(bundled_directory() if model is None else model, revision=revision)
    params, config = load_params(folder, dtype=dtype)
    tokenizer = Tokenizer.load(folder)
    try:
        return Bot(params, config, tokenizer)
    except ValueError as error:  # the weights and the tokenizer do not belong together
        raise ValueError(f"{folder}: {error}") from None


def bundled_directory() -> Path:
    """The model directory that ships with the package."""
    return Path(__file__).resolve().parents[1] / "bundled" / "model"


def _as_dialogues(dialogues: Iterable[TurnList]) -> list[list[str]]:
    plain = as_plain(dialogues)
    if isinstance(plain, str | bytes | Mapping) or not isinstance(plain, Iterable):
        raise DialogueError(
            "replies takes a list of dialogues, each a list of turns: [[text, …], …]; for one dialogue use reply; got "
            f"{type(dialogues).__name__}"
        )
    dialogues = list(plain)
    if any(isinstance(d, str | Mapping) for d in dialogues):
        raise DialogueError(
            "replies takes a list of dialogues, each a list of turns: [[text, …], …]; for one dialogue use reply"
        )
    checked = []
    for number, dialogue in enumerate(dialogues):
        try:
            checked.append(as_turns(dialogue))
        except DialogueError as error:
            raise DialogueError(f"dialogue {number}: {error}") from None
    return checked


def _memory() -> float:
    """Bytes of the memory that the default device computes in."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    except (ValueError, OSError, AttributeError):  # not on this system
        return 4e9
