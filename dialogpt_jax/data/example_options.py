"""How dialogues become examples: a tokenizer's directory and a few choices in, a checked `ExampleOptions` out."""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dialogpt_jax.data.examples import MOST_TIMES, REPLIES
from dialogpt_jax.data.formats import DataError
from dialogpt_jax.text.tokenizer import MERGES_FILE, VOCAB_FILE, Tokenizer

MAX_LENGTH = 128  # tokens of an example: those of microsoft/DialoGPT's training


@dataclass(frozen=True)
class ExampleOptions:
    """How dialogues become examples.

    Attributes:
      eos: the id that ends a turn.
      max_length: tokens of an example, at most.
      train_on: "replies", "all" turns after the first, the "last", or the name of a speaker; see `order_and_weigh`.
      reverse: whether the turns stand in reversed order, for a backward model.
      pack: whether rows hold several examples.
      joined: how many times each dialogue stands, beside alone, among others as one long dialogue; see
        `joined_dialogues`.
    """

    eos: int
    max_length: int = MAX_LENGTH
    train_on: str = REPLIES
    reverse: bool = False
    pack: bool = False
    joined: int = 0

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise DataError(f"max_length is {self.max_length}; an example has at least 2 tokens")
        if not 0 <= self.joined <= MOST_TIMES:
            raise DataError(f"joined is {self.joined}; it is a number of times, from 0 to {MOST_TIMES}")


def make_example_options(
    tokenizer: str | os.PathLike[str],
    *,
    max_length: int = MAX_LENGTH,
    train_on: str = REPLIES,
    reverse: bool = False,
    pack: bool = False,
    joined: int = 0,
) -> ExampleOptions:
    """The options for a tokenizer's directory: EOS is the one of its `config.json`, or else `<|endoftext|>`.

    Raises:
      DataError: `max_length` is less than 2, or beyond the context of the model there; there is no EOS.
      ValueError: the directory's `config.json` or tokenizer is broken.
    """
    from dialogpt_jax.weights.directory import CONFIG_FILE, read_config  # workers do without it, and without jax

    eos = Tokenizer.load(tokenizer).end_of_text_id
    if (Path(tokenizer) / CONFIG_FILE).is_file():
        config = read_config(tokenizer)
        eos = config.eos_token_id
        if max_length > config.n_positions:
            raise DataError(
                f"max_length is {max_length}; the model in {tokenizer} has a context of {config.n_positions} "
                "(n_positions); take at most that"
            )
    if eos is None:
        raise DataError(f"{tokenizer}: no config.json, and no <|endoftext|> in the vocabulary, which ends each turn")
    return ExampleOptions(eos, max_length, train_on, reverse, pack, joined)


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """SHA-256 of a tokenizer's vocabulary and merges: which data belongs to which model."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        for name in (VOCAB_FILE, MERGES_FILE):
            digest.update((Path(folder) / name).read_bytes())
    return digest.hexdigest()
