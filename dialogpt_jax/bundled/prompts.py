"""What a release is judged by: `prompts.json` in; forty everyday prompts, five chats and the rule of marks out.

Of the prompts ten are greetings and feelings, ten are on films, music, sport and food, ten are questions about itself, and
ten are follow-ups that end a dialogue of three turns. A chat is what a person says in eight turns, whatever the answers.
No turn of the corpus is one of the prompts, and none of them is trained on. Each reply is marked once, by the rule
that stands beside the prompts; the marks are in `marks.json`, and the card shows all of them and says who gave them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dialogpt_jax.chat.bot import Bot
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.ranking.rank_options import Rank

MARKS = ("sensible", "passable", "nonsense")
UNMARKED = "not marked"
LOOKED_AT = (1, 3, 5, 8)  # the turns of a chat whose replies are marked, from 1


class Prompts(NamedTuple):
    """The whole list.

    Attributes:
      kinds: of each prompt.
      prompts: the turns that are said to the model.
      chats: what a person says, turn by turn.
      rule: what each mark means.
    """

    kinds: list[str]
    prompts: list[tuple[str, ...]]
    chats: list[tuple[str, ...]]
    rule: Mapping[str, str]


class Exchange(NamedTuple):
    """All turns before a reply, the last of them a person's; and the reply."""

    turns: tuple[str, ...]
    reply: str


def read_prompts() -> Prompts:
    """The list that stands beside this file."""
    held = _read("prompts.json")
    return Prompts(
        [entry["kind"] for entry in held["prompts"]],
        [tuple(entry["turns"]) for entry in held["prompts"]],
        [tuple(turns) for turns in held["chats"]],
        held["rule"],
    )


def answer_prompts(
    bot: Bot, prompts: Sequence[Sequence[str]], sampling: Sampling, rank: Rank | None = None
) -> list[Exchange]:
    """What the bot says to each, with seed 0, as `dialogpt reply` says it."""
    if rank is None:
        replies = bot.replies([list(turns) for turns in prompts], sampling=sampling)
    else:  # one by one: the place in a list decides what is drawn
        replies = [bot.reply(list(turns), sampling=sampling, rank=rank) for turns in prompts]
    return [Exchange(tuple(turns), reply) for turns, reply in zip(prompts, replies, strict=True)]


def hold_chats(
    bot: Bot, chats: Sequence[Sequence[str]], sampling: Sampling, rank: Rank | None = None
) -> list[list[Exchange]]:
    """Each chat held to its end, with seed 0: its exchanges in order."""

    def hold(said: Sequence[str]) -> list[Exchange]:
        chat, exchanges = bot.chat(sampling=sampling, rank=rank), []
        for text in said:
            before = (*chat.turns, text)
            exchanges.append(Exchange(before, chat.say(text)))
        return exchanges

    return [hold(said) for said in chats]


def read_marks() -> dict[Exchange, str]:
    """The marks that have been given: `{"turns": […], "reply": …, "mark": …}` in `marks.json`."""
    return {Exchange(tuple(entry["turns"]), entry["reply"]): entry["mark"] for entry in _read("marks.json")}


def count_marks(exchanges: Sequence[Exchange], marks: Mapping[Exchange, str]) -> dict[str, int]:
    """How many replies have each mark, and how many have none: another model's are marked anew."""
    given = [marks.get(exchange, UNMARKED) for exchange in exchanges]
    return {mark: given.count(mark) for mark in (*MARKS, UNMARKED)}


def _read(name: str):
    return json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
