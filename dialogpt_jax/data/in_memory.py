"""Dialogues at hand in memory to training examples: texts, messages or `Dialogue`s and a tokenizer in, examples out.

What is wrong with an argument is one line here, and so is what is no dialogue; `examples.py` is the mathematics below, and
`prepare.py` does the same with files.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from dialogpt_jax.arguments import MOST, as_plain, as_whole_number, shown
from dialogpt_jax.data.dialogue_value import DataError, Dialogue
from dialogpt_jax.data.examples import (
    MOST_TIMES,
    REPLIES,
    WHICH_TURNS,
    Example,
    Weighed,
    dialogue_examples,
    joined_dialogues,
    order_and_weigh,
)
from dialogpt_jax.errors import counted
from dialogpt_jax.text.dialogue import TurnList
from dialogpt_jax.text.tokenizer import MOST_ID, Tokenizer


def make_examples(
    dialogues: Iterable[Dialogue | TurnList],
    tokenizer: Tokenizer,
    *,
    eos: int | None = None,
    max_length: int = 128,
    train_on: str = REPLIES,
    reverse: bool = False,
    joined: int = 0,
) -> list[Example]:
    """The examples of dialogues that are at hand, in memory; `dialogpt data prepare` does it with files.

    Args:
      dialogues: each a list of texts, chat messages, whose roles are the speakers, or a `Dialogue` with weights and
        speakers. One of a single turn has no target and gives no example.
      tokenizer: the model's.
      eos: ends each turn; the tokenizer's own by default.
      max_length: of an example in tokens; at most the model's context.
      train_on, reverse: see `order_and_weigh`.
      joined: how many times each dialogue stands, beside alone, among others as one long dialogue: see
        `joined_dialogues`. Single exchanges want some 3, and all else 0.

    Raises:
      ValueError: the tokenizer has no end of text and no `eos` is given; something is no dialogue; a turn is empty; nobody
        is called `train_on`; no dialogue has a target.

    Example:
      >>> (example,) = dg.make_examples([["Hi!", "Hello."]], bot.tokenizer)
      >>> bot.tokenizer.decode(example.tokens_T[example.weights_T > 0])  # what is learned; its EOS is not shown
      'Hello.'
    """
    if not isinstance(tokenizer, Tokenizer):
        raise TypeError(f"tokenizer is {shown(tokenizer)}; give the model's Tokenizer, such as `bot.tokenizer`")
    eos = tokenizer.end_of_text_id if eos is None else as_whole_number("eos", eos, least=0, most=MOST_ID)
    if eos is None:
        raise ValueError("the tokenizer has no <|endoftext|>; say which id ends a turn (eos=)")
    max_length = as_whole_number("max_length", max_length, least=2, most=MOST)
    if not isinstance(train_on, str):
        raise TypeError(
            f"train_on is {shown(train_on)}; give {', '.join(map(repr, WHICH_TURNS))} or the name of a speaker"
        )
    joined = as_whole_number("joined", joined, least=0, most=MOST_TIMES)
    if not isinstance(reverse, bool | np.bool_):
        raise TypeError(f"reverse is {shown(reverse)}; give True or False")
    checked = _as_dialogues(dialogues)
    speakers = {speaker for dialogue in checked for speaker in dialogue.speakers or () if speaker is not None}
    if checked and train_on not in (*WHICH_TURNS, *speakers):
        names = ", ".join(map(repr, sorted(speakers))) or "no speaker"
        known = ", ".join(map(repr, WHICH_TURNS))
        raise DataError(f"train_on is {train_on!r}; give {known} or a speaker; the dialogues name {names}")
    ordered = [order_and_weigh(dialogue, train_on=train_on, reverse=bool(reverse)) for dialogue in checked]
    weighed: list[Weighed] = [(tokenizer.encode_batch(dialogue.turns), dialogue.weights or ()) for dialogue in ordered]
    rng = np.random.default_rng(0)
    several = [pair for _ in range(joined) for pair in joined_dialogues(weighed, max_length=max_length, rng=rng)]
    found = [
        example
        for turns, weights in [*weighed, *several]
        for example in dialogue_examples(turns, weights, eos=eos, max_length=max_length)
    ]
    if checked and not found:
        raise DataError(
            f"no example: of {counted(len(checked), 'dialogues')} none has a turn to learn; the first turn is only "
            "context, so give at least two, and a weight over 0"
        )
    return found


def _as_dialogues(dialogues: Iterable[Dialogue | TurnList]) -> list[Dialogue]:
    plain = as_plain(dialogues)
    if isinstance(plain, str | bytes | Mapping | Dialogue) or not isinstance(plain, Iterable):
        raise DataError(
            f"dialogues is {shown(dialogues)}; give a list of dialogues, each a list of turns: [[text, …], …]"
        )
    found = []
    for number, dialogue in enumerate(plain):
        if isinstance(dialogue, str | Mapping):
            raise DataError(
                f"dialogue {number} is {shown(dialogue)}; give a list of dialogues, each a list of turns: [[text, …], …]"
            )
        try:
            found.append(dialogue if isinstance(dialogue, Dialogue) else Dialogue(dialogue))  # type: ignore[arg-type]
        except DataError as error:
            raise DataError(f"dialogue {number}: {error}") from None
        if empty := [at for at, turn in enumerate(found[-1].turns, start=1) if not turn.strip()]:
            raise DataError(f"dialogue {number}: turn {empty[0]} is empty; write something, or leave the dialogue out")
    return found
