"""`dialogpt selfchat`: openings in; conversations of two bots out, with what becomes of their replies turn by turn."""

import dataclasses
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from dialogpt_jax.chat.openings import OPENINGS, TURNS
from dialogpt_jax.chat.setting_words import OF_BEAMS, settings_of
from dialogpt_jax.cli import streams
from dialogpt_jax.cli.common import ModelFlags, ReplyFlags, SamplingFlags, load_bot, sampling_of, seed_of
from dialogpt_jax.cli.flags import FROM_1, UsageError, make_app
from dialogpt_jax.decoding.sampling import Sampling, describe_sampling
from dialogpt_jax.errors import counted
from dialogpt_jax.replies.settings import seed_or_drawn
from dialogpt_jax.whole_writes import whole_file

EXAMPLES = """\
The first bot replies to an opening, the other to that, and so on. A reply is what `dialogpt reply` would give to the same \
turns; each conversation draws its own. The table has a line a turn: replies that hold a 4-gram twice, replies that are an \
earlier turn word for word, Dist-1 and Dist-2 of the turn's replies together, words, replies that ended by themselves, and \
bits per byte under the model that says it (low where it goes round in circles).

Examples:
  dialogpt selfchat                             32 openings of small talk
  dialogpt selfchat "Hi!" "I lost my keys." --turns 12 --show 2
  dialogpt selfchat --data openings.jsonl --out talks.jsonl --plot talks.png
  dialogpt selfchat --other microsoft/DialoGPT-small
  dialogpt selfchat --temperature 0 --other-sampling "temperature=1 top_k=10"
  dialogpt data check talks.jsonl               --out is data for training
"""
app = make_app("selfchat", "dialogpt selfchat [OPTIONS] [TEXT...]", help_epilogue=EXAMPLES)


@app.default
def run(
    *openings: Annotated[str, Parameter(name="TEXT", help="the first turn of a conversation")],
    data: Annotated[
        str | None,
        Parameter(
            metavar="FILE",
            help="openings of one turn or several, a conversation a line, in a form of `dialogpt data check --help`",
        ),
    ] = None,
    conversations: Annotated[
        int | None,
        FROM_1,
        Parameter(metavar="N", help="so many; the openings come again, with other draws (one for each opening)"),
    ] = None,
    turns: Annotated[int, FROM_1, Parameter(metavar="N", help="replies in a conversation, of both together")] = TURNS,
    other: Annotated[
        str | None, Parameter(metavar="MODEL", help="the second bot, a directory or a name on the Hub (the same)")
    ] = None,
    other_sampling: Annotated[
        str | None,
        Parameter(
            metavar="'NAME=VALUE …'",
            help="what the second bot's sampling has otherwise: 'temperature=1 top_k=none', as /settings takes it",
        ),
    ] = None,
    show: Annotated[int, FROM_1, Parameter(metavar="N", help="print so many of the conversations")] = 1,
    out: Annotated[
        str | None,
        Parameter(
            metavar="FILE",
            help="the conversations as JSON lines, a new file; after Ctrl-C with the turns that were done by then",
        ),
    ] = None,
    plot: Annotated[
        str | None, Parameter(metavar="FILE.png", help="the table as a picture, with intervals; needs matplotlib")
    ] = None,
    as_json: Annotated[bool, Parameter(name="--json", help="the table as JSON, with 95 % intervals")] = False,
    model: ModelFlags = ModelFlags(),  # noqa: B008  (frozen)
    reply: ReplyFlags = ReplyFlags(),  # noqa: B008
    sampling: SamplingFlags = SamplingFlags(),  # noqa: B008
) -> int:
    if openings and data is not None:
        raise UsageError("give TEXT or --data FILE, not both")
    # What can be found wrong without a model is, before one is loaded.
    drawn = sampling_of(sampling)
    others = drawn if other_sampling is None else _changed(drawn, other_sampling)
    seed = seed_or_drawn(seed_of(reply.seed))
    _check_new(out, plot)
    begun = openings_of(openings, data, conversations)
    bot = load_bot(model)
    second = bot if other is None else _load_other(other, model)
    names = (model.model or "the bundled model", other or model.model or "the bundled model")
    how = {"turns": turns, "sampling": drawn, "other_sampling": others, "seed": seed}
    how |= {"max_new_tokens": reply.max_new_tokens}
    talks: list[Any] = []
    try:
        _talk(talks, bot, second, begun, how)
    finally:  # Ctrl-C too: the turns that are done are worth keeping
        if out is not None and talks:
            _save(Path(out), talks, seed)
            streams.tell(f"{counted(len(talks), 'conversations')} in {out}")
    _report(talks, names, how, show=show, plot=plot, as_json=as_json)
    return 0


def _talk(talks: list[Any], bot: Any, other: Any, openings: list[list[str]], how: dict[str, Any]) -> None:
    """Holds the conversations; the list has them as they are after the last whole turn."""
    from dialogpt_jax.chat.selfchat import grow_conversations
    from dialogpt_jax.cli.progress import show_progress

    left, told = how["turns"], 0
    with show_progress("turns", "replies") as progress:

        def tell(done: int, whole: int) -> None:
            nonlocal told
            progress(0, left, done - told)
            told = done

        for now in grow_conversations(bot, other, openings=openings, progress=tell, **how):
            talks[:], left = now, left - 1
            progress(1, left, 0)


def _report(
    talks: Sequence[Any], names: tuple[str, str], how: dict[str, Any], *, show: int, plot: str | None, as_json: bool
) -> None:
    from dialogpt_jax.evaluation.by_turn import as_text, as_values, measure_turns, save_plot

    measured = measure_turns(talks)
    drawn = [describe_sampling(how[name]) for name in ("sampling", "other_sampling")]
    bots = [f"{name} ({sampling})" for name, sampling in zip(names, drawn, strict=True)]
    title = f"{counted(len(talks), 'conversations')}, seed {how['seed']}"
    if as_json:
        settings = {"bot": names[0], "sampling": drawn[0], "other": names[1], "other_sampling": drawn[1]}
        settings |= {name: how[name] for name in ("seed", "max_new_tokens")} | {"conversations": len(talks)}
        streams.print_json(
            json.dumps({"settings": settings, "turns": as_values(measured)}, ensure_ascii=False, indent=2)
        )
    else:
        for talk in talks[:show]:
            lines = (f"{who}: {' '.join(text.split())}" for who, text in zip(talk.speakers, talk.turns, strict=True))
            streams.show("\n".join([*lines, ""]))
        streams.show(
            "\n".join([title, *(f"{who}: {what}" for who, what in zip(("bot", "other"), bots, strict=True)), ""])
        )
        streams.show(as_text(measured))
    if plot is not None:
        save_plot(measured, Path(plot), title=title, names=bots[:1] if bots[0] == bots[1] else bots)


def openings_of(texts: Sequence[str], data: str | None, conversations: int | None) -> list[list[str]]:
    """The turns that each conversation begins with."""
    if data is not None:
        from dialogpt_jax.data.formats import dialogues_to_reply_to

        begun, _ = dialogues_to_reply_to(data)
    else:
        begun = [[text] for text in texts or OPENINGS]
    for number, opening in enumerate(begun):
        if not opening[-1].strip():
            raise UsageError(f"opening {number + 1} is empty; write something")
    return begun if conversations is None else [begun[i % len(begun)] for i in range(conversations)]


def _changed(sampling: Sampling, words: str) -> Sampling:
    """A sampling with what `temperature=1 top_k=10` says."""
    try:
        changes = settings_of(words)
    except ValueError as error:
        raise UsageError(f"--other-sampling: {str(error).replace('/settings', 'give')}") from None
    for name in {"seed", "max_new_tokens"} & set(changes):
        raise UsageError(f"--other-sampling: {name} is that of both bots; give --{name.replace('_', '-')}")
    for name in set(OF_BEAMS) & set(changes):
        raise UsageError(f"--other-sampling: {name} is of a search, and here replies are drawn; leave it out")
    return dataclasses.replace(sampling, **changes)


def _load_other(name: str, model: ModelFlags) -> Any:
    return load_bot(dataclasses.replace(model, model=name, revision=None))


def _check_new(out: str | None, plot: str | None) -> None:
    """Nothing that is there is written over, and what could not be written is told before the work."""
    for name in filter(None, (out, plot)):
        if os.path.lexists(name) and name == out:
            raise ValueError(f"{name} is there already; name another file, or delete it")
        folder = Path(name).parent
        if not folder.is_dir():
            raise FileNotFoundError(2, "no such folder", str(folder))
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib; `pip install matplotlib`, or leave --plot out")


def _save(path: Path, talks: Sequence[Any], seed: int) -> None:
    """A conversation a line, as `dialogpt data` and `train` read them; the file is whole or not there."""
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        for index, talk in enumerate(talks):
            figures = {
                "finished": [answer.finished for answer in talk.answers],
                "logprobs": [round(answer.logprob, 6) for answer in talk.answers],
            }
            place = {"opening": len(talk.opening), "index": index, "seed": seed}
            line = {"turns": talk.turns, "speakers": talk.speakers} | figures | place
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
