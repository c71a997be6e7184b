"""What `dialogpt train` begins from: its flags in; the model, its tokenizer and the prepared data out."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from dialogpt_jax.cli.flags import WHAT, WHOLE
from dialogpt_jax.run.options import VALID_DIALOGUES


@Parameter(name="*", group=WHAT)
@dataclasses.dataclass(frozen=True)
class TrainInputs:
    """What a run begins from and where it goes."""

    data: Annotated[
        str,
        Parameter(
            metavar="DIR_OR_FILE",
            help="a folder of `dialogpt data prepare`, or a file of dialogues, in a form that `dialogpt data check --help` "
            "shows",
        ),
    ] = ""
    pairs: Annotated[
        str | None,
        Parameter(
            metavar="FILE",
            help='in place of --data: train a ranker of replies on {"turns": […], "better": "…", "worse": "…"} a line; '
            "--valid then holds pairs too",
        ),
    ] = None
    valid: Annotated[
        str | None,
        Parameter(metavar="FILE", help="held-out dialogues: evaluated at step 0, at intervals, at the end"),
    ] = None
    valid_dialogues: Annotated[int, WHOLE, Parameter(metavar="N", help="evaluate on the first N")] = VALID_DIALOGUES
    out: Annotated[str, Parameter(metavar="RUN", help="the folder of the run")] = ""
    export: Annotated[
        str | None, Parameter(metavar="DIR", help="write the trained model there, as a model directory")
    ] = None
    init: Annotated[
        str | None,
        Parameter(metavar="MODEL", help="begin from this directory or Hub name (default: the model in the package)"),
    ] = None
    revision: Annotated[str | None, Parameter(metavar="NAME", help="branch, tag or commit of a Hub model")] = None
    config: Annotated[
        str | None,
        Parameter(
            metavar="small|medium|large|FILE",
            help="begin from nothing, with these sizes; with --init: grow the model to these blocks and positions",
        ),
    ] = None
    tokenizer: Annotated[
        str | None,
        Parameter(metavar="DIR", help="with --config: the tokenizer; with --init: one that extends the model's"),
    ] = None
    train_on: Annotated[
        str | None,
        Parameter(
            metavar="replies|all|last|NAME",
            help="which turns are learned, of a file: what `assistant` says where messages have roles, else every turn "
            "after the first (replies); every turn after the first; the last; or one speaker's",
        ),
    ] = None
    joined: Annotated[
        int | None,
        WHOLE,
        Parameter(
            metavar="N",
            help="of a file: each dialogue also stands N times among others as one long dialogue (3 where all are single "
            "exchanges, at most 10,000; else 0)",
        ),
    ] = None
    reverse: Annotated[bool, Parameter(help="a backward (MMI) model, of a file")] = False
    teacher: Annotated[
        list[str] | None,
        Parameter(
            metavar="MODEL",
            help="learn also what this model, of the same tokenizer, expects at each place; repeatable: their mean",
        ),
    ] = None


def read_model(inputs: TrainInputs, *, seed: int) -> tuple[Any, Any, Any, Path]:
    """Parameters, config, tokenizer, and the directory that the tokenizer came from."""
    import jax

    from dialogpt_jax.chat.loading import bundled_directory, load
    from dialogpt_jax.int8 import check_trainable
    from dialogpt_jax.model import init_params
    from dialogpt_jax.text.tokenizer import Tokenizer
    from dialogpt_jax.training.growth import grow
    from dialogpt_jax.training.vocabulary import check_extends, grow_vocabulary
    from dialogpt_jax.weights.hub import resolve, resolve_tokenizer

    key = jax.random.key(seed)
    if inputs.config is not None and inputs.init is None:
        if inputs.tokenizer is None:
            raise ValueError("--config needs --tokenizer DIR: a model directory, or one with a tokenizer.json")
        source = resolve_tokenizer(inputs.tokenizer)
        tokenizer = Tokenizer.load(source)
        config = _config(inputs.config, tokenizer)
        return init_params(config, key), config, tokenizer, source
    source = bundled_directory() if inputs.init is None else resolve(inputs.init, revision=inputs.revision)
    bot = load(source)
    check_trainable(bot.params)
    params, config, tokenizer = bot.params, bot.config, bot.tokenizer
    if inputs.tokenizer is not None:
        source = resolve_tokenizer(inputs.tokenizer)
        extended = Tokenizer.load(source)
        check_extends(tokenizer, extended)
        params, config = grow_vocabulary(params, config, max(extended.vocab_size, config.vocab_size), key)
        tokenizer = extended
    if inputs.config is not None:
        sizes = _config(inputs.config, tokenizer)
        params, config = grow(params, config, sizes), sizes
    return params, config, tokenizer, source


def read_teachers(inputs: TrainInputs, tokenizer: Any) -> list[Any]:
    """The models to learn from."""
    from dialogpt_jax.chat.loading import load
    from dialogpt_jax.data.example_options import tokenizer_sha256
    from dialogpt_jax.training.distillation import Teacher

    teachers = []
    for name in inputs.teacher or ():
        bot = load(name)
        if tokenizer_sha256(bot.tokenizer) != tokenizer_sha256(tokenizer):
            raise ValueError(f"the teacher {name} has another tokenizer; it must share that of the model")
        teachers.append(Teacher(bot.params, bot.config))
    return teachers


def _config(name: str, tokenizer: Any) -> Any:
    """The sizes of a name or file, with the tokenizer's vocabulary."""
    config = sizes_of(name)
    if tokenizer.end_of_text_id is None:
        raise ValueError("the tokenizer has no <|endoftext|>, which must end every turn")
    return dataclasses.replace(config, vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.end_of_text_id)


def refuse_another_run(out: str, *, resume: bool) -> None:
    """Before RUN/data is written: a run that is there already needs its own."""
    from dialogpt_jax.run.fit import CHECKPOINTS

    folder = Path(out) / CHECKPOINTS
    held = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    if held and not resume:
        raise ValueError(
            f"{folder} holds a run at step {max(held)}; resume it (--resume), or choose another folder for --out"
        )


def sizes_of(name: str) -> Any:
    from dialogpt_jax.config import GPT2Config
    from dialogpt_jax.weights.directory import read_config_file

    known = {"small": GPT2Config.small, "medium": GPT2Config.medium, "large": GPT2Config.large}
    return known[name]() if name in known else read_config_file(name)


def read_examples(
    inputs: TrainInputs, config, tokenizer, source: Path, report, *, max_length: int | None, resume: bool
) -> Any:
    """The prepared data, or that of a file, prepared once into RUN/data."""
    import jax

    from dialogpt_jax.data.example_options import tokenizer_sha256
    from dialogpt_jax.data.prepare import options_for_file
    from dialogpt_jax.data.shards import open_shards
    from dialogpt_jax.parallel.distributed import any_process

    folder = Path(inputs.data)
    wanted = {"train_on": inputs.train_on, "reverse": inputs.reverse or None, "joined": inputs.joined}
    if not folder.is_dir():
        folder, failure = Path(inputs.out) / "data", None
        chosen: dict[str, Any] = {**wanted, "max_length": max_length, "reverse": inputs.reverse}
        if jax.process_index() == 0 and not (resume and (folder / "data.json").exists()):
            try:
                options = options_for_file(inputs.data, config.eos_token_id, config.n_positions, **chosen)
                _prepare(inputs.data, folder, source, options, report)
            except (ValueError, OSError) as error:
                failure = error
        if any_process(failure is not None):  # or the others would wait for it
            raise failure or ValueError("process 0 could not prepare the data; its own line says why")
        wanted = chosen
    data = open_shards(folder)
    if data.info["tokenizer_sha256"] != tokenizer_sha256(tokenizer):
        raise ValueError(f"{folder} was prepared with another tokenizer; prepare it again with this model's")
    for name, value in wanted.items():
        if value is not None and data.info.get(name) != value:
            raise ValueError(f"{folder} was prepared with {name} {data.info.get(name)}, and {value} is asked for now")
    (size, *_) = [source["bytes"] for source in data.info["sources"]]
    if folder != Path(inputs.data) and Path(inputs.data).exists() and Path(inputs.data).stat().st_size != size:
        raise ValueError(
            f"{inputs.data} is not the file that {folder} was prepared from, which had {size:,} bytes; "
            "a run goes on with its own data"
        )
    return data


def _prepare(file: str, folder: Path, tokenizer: Path, options: Any, report) -> None:
    from dialogpt_jax.cli.progress import show_progress
    from dialogpt_jax.data.check import summary
    from dialogpt_jax.data.prepare import prepare
    from dialogpt_jax.data.shards import DROPPED_FILE

    with show_progress("kB", "tokens") as progress:
        _, found = prepare([file], folder, tokenizer, options, replace=True, progress=progress)
    for line in summary(found, options, [file]):
        report(line)
    for kind, (count, first) in found.dropped.items():
        numbers = ", ".join(str(number) for _, number, _ in first) + ", …" * (count > len(first))
        report(f"dropped {count:,}: {kind}; line{'s' * (count > 1)} {numbers}: {first[0][2]}")
    if found.dropped:
        report(f"dropped lines and their reasons: {folder / DROPPED_FILE}")
