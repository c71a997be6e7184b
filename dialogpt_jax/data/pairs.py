"""Pairs of replies to train a ranker on: files or dialogues in; pairs, and the examples that a training run reads, out.

A pair is a context and two replies, the first better. As an example it is one row of two texts, packed as `packing.py`
packs dialogues; the weight marks where the score of each is read, at its last token:

    context [5 6] [7], better [8], worse [9 4]          EOS = 0
    tokens_T        5 6 0 7 0 8  5 6 0 7 0 9 4
    weights_T       0 0 0 0 0 1  0 0 0 0 0 0 1
    segments        0 0 0 0 0 0  1 1 1 1 1 1 1          BETTER, WORSE

Each turn of the context ends with EOS, a reply does not. A context that is too long loses its first tokens, in both texts
the same, so that they still differ in the reply alone.

Source: golsun/DialogRPT `src/feeder.py` (`get_batch`): `max_seq_len` 50, leading tokens dropped from both.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dialogpt_jax.arguments import MOST, as_whole_number, shown
from dialogpt_jax.data.dialogue_value import DataError, Dropped
from dialogpt_jax.data.examples import Example
from dialogpt_jax.data.formats import read_lines
from dialogpt_jax.text.dialogue import DialogueError, as_turns
from dialogpt_jax.text.tokenizer import Tokenizer

BETTER, WORSE = 0, 1  # the segments of a row
MAX_LENGTH = 64  # tokens of each text; the authors' 50, up to a multiple of 16
FORM = '{"turns": ["Hi!"], "better": "Hello, how are you?", "worse": "The rain."}'
_TRIES = 100  # to draw another dialogue's turn


class Pair(NamedTuple):
    """Two replies to one context.

    Attributes:
      turns: what was said, at least one text.
      better, worse: the replies, two texts that differ.

    Example:
      >>> pair = dg.Pair(["Hi!"], better="Hello, how are you?", worse="The rain.")
      >>> pair.better
      'Hello, how are you?'
    """

    turns: list[str]
    better: str
    worse: str


def read_pairs(path: str | os.PathLike[str]) -> list[Pair]:
    """The pairs of a file, a line of JSON each, plain or `.gz`: {"turns": […], "better": "…", "worse": "…"}.

    Raises:
      OSError: it cannot be read.
      DataError: a line is no pair, there is none, or a gzip file is broken.
    """
    found = []
    with Path(path).open("rb") as raw:
        for line in read_lines(raw, path):
            number = line.line if isinstance(line, Dropped) else line[0]
            try:
                if isinstance(line, Dropped):
                    raise DataError(line.reason)
                found.append(_parse(line[1]))
            except DataError as error:
                raise DataError(f"{path}, line {number}: {error}") from None
    if not found:
        raise DataError(f"{path}: the file is empty; expected a pair a line, such as {FORM}")
    return found


def _parse(line: bytes) -> Pair:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error}); a pair is {FORM}") from None
    if not isinstance(fields, dict) or not {"turns", "better", "worse"} <= fields.keys():
        raise DataError(f"no pair, which is {FORM}, but {shown(fields)}")
    return as_pair(Pair(fields["turns"], fields["better"], fields["worse"]))


def as_pair(pair: Any) -> Pair:
    """A pair, or what is like one, found sound: stripped texts.

    Raises:
      DataError: no turn, a text that is empty or none, or two replies that are the same.
    """
    if not isinstance(pair, tuple) or len(pair) != 3:
        raise DataError(f"a pair is {shown(pair)}; give a Pair(turns, better, worse)")
    try:
        turns = [turn.strip() for turn in as_turns(pair[0])]
    except DialogueError as error:
        raise DataError(str(error)) from None
    replies = []
    for name, text in zip(Pair._fields[1:], pair[1:], strict=True):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{name} is {shown(text)}; give a text with something in it")
        replies.append(text.strip())
    if replies[0] == replies[1]:
        raise DataError(f"better and worse are both {shown(replies[0])}; a pair has two replies that differ")
    return Pair(turns, *replies)


def make_pairs(
    pairs: Iterable[Pair], tokenizer: Tokenizer, *, eos: int | None = None, max_length: int = MAX_LENGTH
) -> list[Example]:
    """The examples of pairs, for `fit` with `PAIRWISE`.

    Args:
      pairs: each a context, a better and a worse reply to it.
      tokenizer: the ranker's.
      eos: ends each turn of a context; the tokenizer's own by default.
      max_length: tokens of each of the two texts; a row has up to twice as many, and a model's positions must hold it. A
        reply that leaves no room for a token of context loses its end.

    Raises:
      DataError: one is no pair.
      ValueError: the tokenizer has no end of text and no `eos` is given.

    Example:
      >>> pairs = [dg.Pair(["Hi!"], "Hello, how are you?", "The rain."), dg.Pair(["Who are you?"], "I am Pip.", "No!")]
      >>> params, config = ranker.params, ranker.config
      >>> options = dg.TrainOptions(steps=2, batch_size=2, learning_rate=1e-4)
      >>> examples = dg.make_pairs(pairs, ranker.tokenizer)
      >>> fitted = dg.fit(params, config, examples, options, objective=dg.PAIRWISE, report=lambda line: None)
      >>> better = dg.Ranker(fitted.params, fitted.config, ranker.tokenizer)
    """
    if not isinstance(tokenizer, Tokenizer):
        raise TypeError(f"tokenizer is {shown(tokenizer)}; give the ranker's Tokenizer, such as `ranker.tokenizer`")
    eos = tokenizer.end_of_text_id if eos is None else eos
    if eos is None:
        raise ValueError("the tokenizer has no <|endoftext|>; say which id ends a turn (eos=)")
    max_length = as_whole_number("max_length", max_length, least=2, most=MOST)
    checked = []
    for number, pair in enumerate(pairs):
        try:
            checked.append(as_pair(pair))
        except DataError as error:
            raise DataError(f"pair {number}: {error}") from None
    turns = iter(tokenizer.encode_batch([text for pair in checked for text in pair.turns]))
    replies = iter(tokenizer.encode_batch([text for pair in checked for text in pair[1:]]))
    found = []
    for pair in checked:
        context = [token for _ in pair.turns for token in [*next(turns), eos]]
        found.append(pair_example(context, next(replies), next(replies), max_length=max_length))
    return found


def pair_example(context: Sequence[int], better: Sequence[int], worse: Sequence[int], *, max_length: int) -> Example:
    """The row of a pair in token ids; see the head of this file. `context` has the EOS of each of its turns."""
    better, worse = better[: max_length - 1], worse[: max_length - 1]
    kept = context[max(len(context) + max(len(better), len(worse)) - max_length, 0) :]
    sizes = len(kept) + len(better), len(kept) + len(worse)
    weights_T = np.zeros(sum(sizes), np.float32)
    weights_T[[sizes[0] - 1, -1]] = 1.0
    return Example([*kept, *better, *kept, *worse], weights_T, np.repeat((BETTER, WORSE), sizes))


def against_other_turns(dialogues: Sequence[Sequence[str]], *, per_dialogue: int = 1, seed: int = 0) -> list[Pair]:
    """What was really said, better than a turn of another dialogue: `human_vs_rand` of the authors.

    Args:
      dialogues: lists of turns. One of a single turn gives no pair; nor does a place beside an empty turn.
      per_dialogue: how many places of each dialogue are drawn, all of them where there are fewer.
      seed: of the draw; with it, a dialogue's number decides its places.

    Raises:
      DataError: no dialogue has a second turn, or there is no turn of another dialogue.
    """
    pool = [(d, turn) for d, turns in enumerate(dialogues) for turn in turns[1:] if turn.strip()]
    found = []
    for d, at, rng in _places(dialogues, per_dialogue, seed):
        truth = dialogues[d][at]
        for _ in range(_TRIES):
            owner, other = pool[rng.integers(len(pool))]
            if owner != d and other.strip() != truth.strip():
                found.append(as_pair(Pair(list(dialogues[d][:at]), truth, other)))
                break
    if not found:
        raise DataError(f"{len(dialogues)} dialogues give no pair; at least two need a second turn")
    return found


def against_own_replies(
    dialogues: Sequence[Sequence[str]],
    replies: Callable[[list[list[str]]], Sequence[str]],
    *,
    per_dialogue: int = 1,
    seed: int = 0,
) -> list[Pair]:
    """What was really said, better than what a model replies there: `human_vs_machine` of the authors.

    Args:
      dialogues, per_dialogue, seed: as for `against_other_turns`, and with the same places.
      replies: contexts to a reply to each, such as a bot's `replies`. An empty one, or the truth itself, gives no pair.

    Raises:
      DataError: no dialogue has a second turn, or every reply is the truth.
    """
    places = [(d, at) for d, at, _ in _places(dialogues, per_dialogue, seed)]
    contexts = [list(dialogues[d][:at]) for d, at in places]
    truths = [dialogues[d][at] for d, at in places]
    own = replies(contexts) if contexts else []
    found = [
        as_pair(Pair(turns, truth, reply))
        for turns, truth, reply in zip(contexts, truths, own, strict=True)
        if reply.strip() and reply.strip() != truth.strip()
    ]
    if not found:
        raise DataError(f"{len(dialogues)} dialogues give no pair; none has a second turn that differs from the reply")
    return found


def _places(dialogues: Sequence[Sequence[str]], per_dialogue: int, seed: int):
    """(dialogue, the turn to be replied by, a generator for what is drawn there), in the dialogues' order."""
    per_dialogue = as_whole_number("per_dialogue", per_dialogue, least=1, most=MOST)
    for d, turns in enumerate(dialogues):
        rng = np.random.default_rng((seed, d))
        drawn = [int(at) + 1 for at in rng.permutation(max(len(turns) - 1, 0))]
        for at in sorted([at for at in drawn if turns[at - 1].strip() and turns[at].strip()][:per_dialogue]):
            yield d, at, rng
