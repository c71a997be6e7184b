"""Turns to token ids: what a caller calls a dialogue in, the context that fits the model out.

A dialogue is one text, its turns joined and ended by EOS (arXiv 1911.00536, section 3.1):

    "Hi!", "Hello."      →      [17250 0] EOS [15496 13] EOS

What does not fit is left out by whole turns, the oldest first. The newest turn always stays, and is cut from its start if
it alone is too long.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from dialogpt_jax.arguments import as_plain, shown
from dialogpt_jax.text.tokenizer import Tokenizer

# Roles of chat messages that are turns, and the one of the first two that each means; the others are ShareGPT's.
USER, ASSISTANT = "user", "assistant"
ROLES = {USER: USER, ASSISTANT: ASSISTANT, "human": USER}
ROLES |= dict.fromkeys(("gpt", "chatgpt", "bing", "bard"), ASSISTANT)
# Roles of chat messages that nobody in the dialogue said.
UNSAID = ("system", "developer", "tool", "function")
# Types of a content's parts that are text.
TEXT_PARTS = ("text", "input_text", "output_text")


class Texts(Protocol):
    """A list or tuple of texts. Unlike `Sequence[str]`, to a type checker one text is not such a sequence."""

    def __contains__(self, value: object, /) -> bool: ...
    def __getitem__(self, index: int, /) -> str: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...


# One turn: a text, or a chat message
Turn = str | Mapping[str, Any]
# A dialogue of several turns: their texts, or chat messages, {"role": …, "content": …}; a content is a text, or a list of
# parts of text, {"type": "text", "text": …}
TurnList = Texts | Sequence[Mapping[str, Any]]
# Or one text, a dialogue of one turn
Turns = str | TurnList


class DialogueError(ValueError):
    """What was given is no dialogue to reply to."""


class TruncationWarning(UserWarning):
    """The newest turn alone is longer than the context, and lost its start."""


def as_turns(dialogue: Turns) -> list[str]:
    """The texts of a dialogue's turns, the newest last: from one text, a list of texts, or chat messages.

    Raises:
      DialogueError: no turn, a turn that is not text, or a newest turn with nothing in it.
    """
    turns = texts_of(dialogue)
    if not turns:
        raise DialogueError("the dialogue has no turn; give at least one text to reply to")
    if not turns[-1].strip():
        raise DialogueError(f"turn {len(turns)}, the one to reply to, is empty; write something")
    return turns


def texts_of(dialogue: Turns) -> list[str]:
    """`as_turns` of what may be empty, or end with an empty reply: the past of a conversation."""
    return [text for text, _ in said_by(dialogue)]


def said_by(dialogue: Turns) -> list[tuple[str, str | None]]:
    """Each turn's text and who said it: "user" or "assistant" by the role of a message, `None` of a plain text.

    Raises:
      DialogueError: a turn that is not text, a message that nobody said, such as a system message, or an unknown role.
    """
    plain = as_plain(dialogue)
    if isinstance(plain, str):
        plain = [plain]
    if isinstance(plain, Mapping):
        raise DialogueError("a dialogue is a text, a list of texts or of messages; got dict; put a message into a list")
    if not isinstance(plain, Sequence) or isinstance(plain, bytes | bytearray):
        raise DialogueError(f"a dialogue is a text, a list of texts or of messages; got {type(dialogue).__name__}")
    turns = []
    for number, turn in enumerate(plain, start=1):
        message = turn if isinstance(turn, Mapping) else {"content": turn}
        text, speaker = as_plain(message.get("content")), speaker_of(number, message.get("role"))
        if message is turn and isinstance(text, list):
            text = join_parts(number, text)
        if not isinstance(text, str):
            what = f"content of message {number}" if message is turn else f"turn {number}"
            raise DialogueError(f"{what} is {type(text).__name__}; expected text")
        turns.append((str(text), speaker))
    return turns


def speaker_of(number: int, role: object) -> str | None:
    """Who says message `number`, by its role: "user" or "assistant"; `None` where it has none.

    Raises:
      DialogueError: it is no text, nobody's, such as a system message's, or unknown.
    """
    if role is None:
        return None
    if not isinstance(role, str):
        raise DialogueError(f"role of message {number} is {type(role).__name__}; expected text")
    if refusal := why_not_a_turn(role):
        raise DialogueError(f"message {number}: {refusal}")
    if role.strip().lower() not in ROLES:
        raise DialogueError(
            f"message {number}: {shown(role)} is no role; known are {', '.join(ROLES)} (in a file of dialogues a name "
            "stands as `speaker`)"
        )
    return ROLES[role.strip().lower()]


def join_parts(number: int, parts: Sequence[Any]) -> str:
    """The text of message `number`, whose content is a list of parts, as chat APIs write it; a line for each part.

        [{"type": "text", "text": "Look!"}, {"type": "text", "text": "A cat."}]      →      "Look!\\nA cat."

    Raises:
      DialogueError: a part is no text, such as an image.
    """
    texts = []
    for place, part in enumerate(parts, start=1):
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind not in TEXT_PARTS or not isinstance(text, str):
            what = f"is of type {kind!r}" if kind not in TEXT_PARTS else "has no text"
            raise DialogueError(f"part {place} of message {number} {what}; only text can be read, leave the part out")
        texts.append(text)
    return "\n".join(texts)


def why_not_a_turn(role: object) -> str | None:
    """Why a message of this role is no turn of a dialogue, and what to do; `None` where it is one.

    DialoGPT was trained on what people said to each other, and has no place for instructions.
    """
    if not isinstance(role, str) or role.strip().lower() not in UNSAID:
        return None
    return f"a {role.strip()} message is no turn of the dialogue; leave it out, or put its text into a user message"


def context_limit(n_positions: int, max_new_tokens: int) -> int:
    """The most context tokens that leave room for a reply; at least half of the positions are the context's."""
    return max(n_positions - max_new_tokens, n_positions // 2, 1)


def window_start(lengths: Sequence[int], *, limit: int, target: int) -> int:
    """The first turn of the context, after a conversation whose turns have these lengths in tokens, EOS included.

    It is a function of the lengths alone, so that a kept chat, one that was undone and a fresh call agree. It follows the
    conversation from its beginning: whenever the turns up to a reply exceed `limit`, the oldest go until `target` is kept.
    So a long chat computes its window anew once in many turns, not at each.

        lengths 4 4 4 4 4, limit 13, target 8:    after turn 1: 0    after turn 3: 0    after turn 5: 20 > 13, so 3
    """
    start, last = 0, len(lengths) - 1
    for newest in range(last % 2, last + 1, 2):  # the turns that were replied to, as two speakers alternate
        if sum(lengths[start : newest + 1]) > limit:
            while start < newest and sum(lengths[start : newest + 1]) > target:
                start += 1
    return start


def encode(tokenizer: Tokenizer, turns: Sequence[str], *, eos: int, n_positions: int, max_new_tokens: int) -> list[int]:
    """The context of a reply to the last of `turns`: ids, each turn ended by EOS, at most `context_limit` of them.

    Warns:
      TruncationWarning: the newest turn alone is too long and was cut from its start.
    """
    limit = context_limit(n_positions, max_new_tokens)
    ended = [[*ids, eos] for ids in tokenizer.encode_batch(turns)]
    start = window_start([len(ids) for ids in ended], limit=limit, target=n_positions // 2)
    context = [token for ids in ended[start:] for token in ids]
    if len(context) > limit:
        warnings.warn(
            f"the last turn has {len(context)} tokens; its first {len(context) - limit} were left out "
            f"(n_positions is {n_positions})",
            TruncationWarning,
            stacklevel=2,
        )
        context = context[-limit:]
    return context
