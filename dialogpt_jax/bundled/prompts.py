"""The fixed list of everyday prompts that a release is judged by: `prompts.json` in; dialogues and the rule of marks out.

Ten greetings and feelings, ten on films, music, sport and food, ten questions about itself, ten follow-ups that end a
dialogue of three turns. No dialogue of the corpus begins with one of them, and they are never trained on. A person marks
each reply once, by the rule that stands beside the prompts, and the card shows all of them.
"""

import json
from pathlib import Path
from typing import NamedTuple

MARKS = ("sensible", "passable", "nonsense")


class Prompt(NamedTuple):
    """A kind (`questions about itself`) and the turns that are said to the model."""

    kind: str
    turns: tuple[str, ...]


def read_prompts() -> tuple[list[Prompt], dict[str, str]]:
    """The forty prompts in their order, and for each mark what it means."""
    held = json.loads(Path(__file__).with_name("prompts.json").read_text(encoding="utf-8"))
    return [Prompt(entry["kind"], tuple(entry["turns"])) for entry in held["prompts"]], held["rule"]
