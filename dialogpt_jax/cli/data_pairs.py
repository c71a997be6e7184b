"""`dialogpt data pairs`: dialogues in; pairs of replies to train a ranker on, out."""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from dialogpt_jax.cli import streams
from dialogpt_jax.cli.common import ModelFlags, load_bot
from dialogpt_jax.cli.flags import FROM_0, FROM_1, default_of, make_app
from dialogpt_jax.data.formats import held_out
from dialogpt_jax.data.pairs import Pair, against_other_turns, against_own_replies
from dialogpt_jax.errors import counted, naming

EXAMPLES = """\
A place is drawn in each dialogue. What was really said there is the better reply. The worse one is a turn of another \
dialogue, and of a second pair what the model replies there: so a ranker learns what belongs to a context, and what sounds \
like a machine. OUT has a pair a line, {"turns": [...], "better": "...", "worse": "..."}.

Examples:
  dialogpt data pairs talk.jsonl pairs.jsonl
  dialogpt data pairs talk.jsonl pairs.jsonl --against turns --per-dialogue 4
                                           no model replies: quick
  dialogpt train --pairs pairs.jsonl --out RUN --export DIR
"""
app = make_app(
    "pairs",
    "dialogpt data pairs [OPTIONS] FILE OUT",
    help="Make pairs of replies of dialogues, a better and a worse one, to train a ranker on.",
    help_epilogue=EXAMPLES,
)
PER_DIALOGUE, SEED = (default_of(against_other_turns, name) for name in ("per_dialogue", "seed"))


@app.default
def run(
    file: Annotated[str, Parameter(name="FILE", help="dialogues, as `dialogpt data check --help` shows")],
    out: Annotated[str, Parameter(name="OUT", help="the file of pairs to write, a new one")],
    /,
    *,
    against: Annotated[
        Literal["turns", "replies", "both"],
        Parameter(metavar="NAME", help="worse is another dialogue's turn, the model's own reply, or a pair of each"),
    ] = "both",
    per_dialogue: Annotated[int, FROM_1, Parameter(metavar="N", help="places in each dialogue")] = PER_DIALOGUE,
    seed: Annotated[int, FROM_0, Parameter(metavar="N", help="of all that is drawn")] = SEED,
    model: ModelFlags = ModelFlags(),  # noqa: B008  (frozen)
) -> int:
    if os.path.lexists(out):
        raise ValueError(f"{out}: a file is there already; name a new one")
    dialogues, dropped = held_out(file)
    if dropped:
        streams.tell(dropped)
    found: list[list[Pair]] = []
    if against != "replies":
        found.append(against_other_turns(dialogues, per_dialogue=per_dialogue, seed=seed))
    if against != "turns":
        found.append(_against_replies(dialogues, per_dialogue, seed, model))
    mixed = [pair for pairs in itertools.zip_longest(*found) for pair in pairs if pair is not None]
    part = Path(f"{out}.part")
    with naming(part):
        part.write_text("".join(json.dumps(pair._asdict(), ensure_ascii=False) + "\n" for pair in mixed), "utf-8")
        part.replace(out)
    streams.show(f"wrote {out}: {counted(len(mixed), 'pairs')} of {counted(len(dialogues), 'dialogues')}")
    return 0


def _against_replies(dialogues: Sequence[Sequence[str]], per_dialogue: int, seed: int, model: ModelFlags) -> list[Pair]:
    from dialogpt_jax.cli.progress import show_progress

    bot = load_bot(model)
    with show_progress("replies", "words") as progress:
        done = 0

        def tell(now: int, of: int) -> None:
            nonlocal done
            progress(now - done, of - now, 0)
            done = now

        def replies(contexts: list[list[str]]) -> Sequence[str]:
            return bot.replies(contexts, seed=seed, progress=tell)

        return against_own_replies(dialogues, replies, per_dialogue=per_dialogue, seed=seed)
