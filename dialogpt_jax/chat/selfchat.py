"""Two bots talk to each other: openings in, whole conversations out; all of them at once, a batch of replies a turn.

    openings ─bot.answers→ turn 1 ─other.answers→ turn 2 ─bot.answers→ …

What draws a reply is the seed, the conversation's number and how many turns it has: so the reply at turn t is that of
`bot.replies` to the same turns, and a conversation is the same alone or among others. The two exchange text, so they may
have different tokenizers.
"""

import dataclasses
import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from dialogpt_jax.arguments import MOST, as_plain, as_whole_number, shown
from dialogpt_jax.chat.batched import batched_answers, checked_progress
from dialogpt_jax.chat.openings import OPENINGS, TURNS
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.replies.candidates import Candidate, on_one_line
from dialogpt_jax.replies.language_model import LanguageModel
from dialogpt_jax.replies.settings import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_SEED,
    checked_length,
    checked_sampling,
    rows_of_sampling,
    sampling_for,
    seed_or_drawn,
)
from dialogpt_jax.text.dialogue import DialogueError, Turns, as_turns

SPEAKERS = ("bot", "other")  # the first replies to the opening


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Conversation:
    """What was said between two bots.

    Attributes:
      opening: the turns that were there before, the last of them said to the first bot.
      answers: the replies, turn by turn: the first bot's, the other's, the first's, … None is empty: where a bot says
        nothing, the conversation ends.

    Example:
      >>> talk = dg.self_chat(bot, openings=["Hi!"], turns=4)[0]
      >>> talk.turns == talk.opening + [answer.text for answer in talk.answers]
      True
      >>> talk.speakers
      ['other', 'bot', 'other', 'bot', 'other']
    """

    opening: list[str]
    answers: list[Candidate]

    @property
    def turns(self) -> list[str]:
        """All texts, those of the opening first."""
        return [*self.opening, *(answer.text for answer in self.answers)]

    @property
    def speakers(self) -> list[str]:
        """Who said each turn, "bot" or "other", in the opening too: its last turn is the other's."""
        return [SPEAKERS[(number - len(self.opening)) % 2] for number in range(len(self.turns))]

    def __repr__(self) -> str:
        return f"Conversation({on_one_line(self.opening[-1])} and {len(self.answers)} replies)"

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><th>{who}</th><td style='text-align:left'>{html.escape(text)}</td></tr>"
            for who, text in zip(self.speakers, self.turns, strict=True)
        )
        return f"<table>{''.join(rows)}</table>"


class Conversations(list[Conversation]):
    """A list of conversations that shows one a line, the first 16 of them."""

    def __repr__(self) -> str:
        more = [f"… {len(self) - 16} more"] if len(self) > 16 else []
        return "[" + ",\n ".join([*map(repr, self[:16]), *more]) + "]"


def self_chat(
    bot: LanguageModel,
    other: LanguageModel | None = None,
    *,
    openings: Iterable[Turns] | None = None,
    turns: int = TURNS,
    sampling: Sampling | None = None,
    other_sampling: Sampling | None = None,
    seed: int | None = DEFAULT_SEED,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    batch_size: int | None = None,
    first: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Conversation]:
    """Conversations between two bots, all in one batch.

    Args:
      bot: replies to the openings.
      other: replies to that; by default the same bot. Any other model will do, since they exchange text.
      openings: how each conversation begins: a text, a list of texts or messages; 32 of small talk by default.
      turns: how many replies are said in each, those of both together.
      sampling: of both, or of the first where `other_sampling` is given; what a bot has by default. An array of numbers has
        one a conversation.
      other_sampling: of the other.
      seed: with a conversation's number and its turns it decides what is drawn; `None` draws one and logs it.
      max_new_tokens: the longest reply, in tokens.
      batch_size: rows in a batch, as for `Bot.replies`.
      first: the number of the first conversation: those from `openings[5:]` with `first=5` are `conversations[5:]`.
      progress: called with (done, all) replies after each batch.

    Returns:
      A conversation for each opening, in their order.

    Raises:
      DialogueError: an opening is no dialogue.
      NonFiniteLogits: the weights are damaged, or too large for their dtype.

    Example:
      >>> talks = dg.self_chat(bot, openings=["Hi!", ["Hello.", "How are you?"]], turns=2, seed=3)
      >>> [len(talk.turns) for talk in talks]
      [3, 4]
      >>> talks[0].answers[0].text == bot.reply("Hi!", seed=3)
      True
      >>> bolder = dg.self_chat(bot, turns=2, openings=["Hi!"], other_sampling=dg.Sampling(temperature=1.0))
    """
    *_, last = grow_conversations(
        bot,
        other,
        openings=openings,
        turns=turns,
        sampling=sampling,
        other_sampling=other_sampling,
        seed=seed,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        first=first,
        progress=progress,
    )
    return last


def grow_conversations(
    bot: LanguageModel,
    other: LanguageModel | None = None,
    *,
    openings: Iterable[Turns] | None = None,
    turns: int = TURNS,
    sampling: Sampling | None = None,
    other_sampling: Sampling | None = None,
    seed: int | None = DEFAULT_SEED,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    batch_size: int | None = None,
    first: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[list[Conversation]]:
    """The conversations of `self_chat` after each turn, `turns` times; the arguments are checked before the first."""
    begun = _as_openings(OPENINGS if openings is None else openings)
    turns, first = (
        as_whole_number("turns", turns, least=1, most=MOST),
        as_whole_number("first", first, least=0, most=MOST),
    )
    max_new_tokens, seed = checked_length(max_new_tokens), seed_or_drawn(seed)
    other = bot if other is None else other
    for name, model in (("bot", bot), ("other", other)):
        if not isinstance(model, LanguageModel):
            raise TypeError(f"{name} is {shown(model)}; give a bot, such as `dg.load()`")
    progress = checked_progress(progress)
    sampling = sampling_for(sampling, None)
    speakers = [
        (model, checked_sampling(chosen, len(begun)))
        for model, chosen in ((bot, sampling), (other, sampling if other_sampling is None else other_sampling))
    ]
    talks = Conversations(Conversation(opening, []) for opening in begun)
    for turn in range(turns):
        # A conversation that has ended stays as it is; the others keep their places, and so their keys.
        going = [i for i, talk in enumerate(talks) if len(talk.answers) == turn]
        model, chosen = speakers[turn % 2]
        found = batched_answers(
            model,
            [talks[i].turns for i in going],
            sampling=rows_of_sampling(chosen, going),
            seed=seed,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=_told(progress, sum(len(talk.answers) for talk in talks), (turns - turn) * len(going)),
            places=[first + i for i in going],
        )
        said: Mapping[int, Candidate] = {i: one for i, one in zip(going, found, strict=True) if one.text.strip()}
        talks = Conversations(
            dataclasses.replace(talk, answers=[*talk.answers, said[i]]) if i in said else talk
            for i, talk in enumerate(talks)
        )
        yield talks


def _told(progress: Callable[[int, int], None] | None, before: int, left: int) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, _: progress(before + done, before + left)


def _as_openings(openings: Any) -> Sequence[list[str]]:
    plain = as_plain(openings)
    if isinstance(plain, str | bytes | Mapping) or not isinstance(plain, Iterable):
        raise DialogueError(f"openings is {shown(openings)}; give a list: a text or a list of turns a conversation")
    begun = []
    for number, opening in enumerate(plain):
        try:
            begun.append(as_turns(opening))
        except DialogueError as error:
            raise DialogueError(f"opening {number}: {error}") from None
    if not begun:
        raise DialogueError("openings holds none; give at least one text")
    return begun
