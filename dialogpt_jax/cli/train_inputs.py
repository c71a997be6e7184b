"""What `dialogpt train` begins from: its flags in; the model, its tokenizer and the prepared data out."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any


def read_model(args: argparse.Namespace) -> tuple[Any, Any, Any, Path]:
    """Parameters, config, tokenizer, and the directory that the tokenizer came from."""
    import jax

    from dialogpt_jax.chat.bot import bundled_directory, load
    from dialogpt_jax.model import init_params
    from dialogpt_jax.text.tokenizer import Tokenizer
    from dialogpt_jax.training.growth import grow
    from dialogpt_jax.training.vocabulary import check_extends, grow_vocabulary
    from dialogpt_jax.weights.hub import resolve, resolve_tokenizer

    key = jax.random.key(args.seed or 0)
    if args.config is not None and args.init is None:
        if args.tokenizer is None:
            raise ValueError("--config needs --tokenizer DIR: a model directory, or one with a tokenizer.json")
        source = resolve_tokenizer(args.tokenizer)
        tokenizer = Tokenizer.load(source)
        config = _config(args.config, tokenizer)
        return init_params(config, key), config, tokenizer, source
    source = bundled_directory() if args.init is None else resolve(args.init, revision=args.revision)
    bot = load(source)
    params, config, tokenizer = bot.params, bot.config, bot.tokenizer
    if args.tokenizer is not None:
        source = resolve_tokenizer(args.tokenizer)
        extended = Tokenizer.load(source)
        check_extends(tokenizer, extended)
        params, config = grow_vocabulary(params, config, max(extended.vocab_size, config.vocab_size), key)
        tokenizer = extended
    if args.config is not None:
        sizes = _config(args.config, tokenizer)
        params, config = grow(params, config, sizes), sizes
    return params, config, tokenizer, source


def _config(name: str, tokenizer: Any) -> Any:
    """The sizes of a name or file, with the tokenizer's vocabulary."""
    config = sizes_of(name)
    if tokenizer.end_of_text_id is None:
        raise ValueError("the tokenizer has no <|endoftext|>, which must end every turn")
    return dataclasses.replace(config, vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.end_of_text_id)


def refuse_another_run(args: argparse.Namespace) -> None:
    """Before RUN/data is written: a run that is there already needs its own."""
    from dialogpt_jax.run.fit import CHECKPOINTS

    folder = Path(args.out) / CHECKPOINTS
    held = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    if held and not args.resume:
        raise ValueError(
            f"{folder} holds a run at step {max(held)}; resume it (--resume), or choose another folder for --out"
        )


def sizes_of(name: str) -> Any:
    from dialogpt_jax.config import GPT2Config
    from dialogpt_jax.weights.directory import read_config_file

    known = {"small": GPT2Config.small, "medium": GPT2Config.medium, "large": GPT2Config.large}
    return known[name]() if name in known else read_config_file(name)


def read_examples(args, config, tokenizer, source: Path, report) -> Any:
    """The prepared data, or that of a file, prepared once into RUN/data."""
    import jax

    from dialogpt_jax.data.example_options import tokenizer_sha256
    from dialogpt_jax.data.prepare import options_for_file
    from dialogpt_jax.data.shards import open_shards
    from dialogpt_jax.parallel.distributed import any_process

    folder = Path(args.data)
    wanted = {"train_on": args.train_on, "reverse": args.reverse or None, "joined": args.joined}
    if not folder.is_dir():
        folder, failure = Path(args.out) / "data", None
        chosen = {**wanted, "max_length": args.max_length, "reverse": args.reverse}
        if jax.process_index() == 0 and not (args.resume and (folder / "data.json").exists()):
            try:
                options = options_for_file(args.data, config.eos_token_id, config.n_positions, **chosen)
                _prepare(args.data, folder, source, options, report)
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
    if folder != Path(args.data) and Path(args.data).exists() and Path(args.data).stat().st_size != size:
        raise ValueError(
            f"{args.data} is not the file that {folder} was prepared from, which had {size:,} bytes; "
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
    for line in summary(found, options):
        report(line)
    for kind, (count, first) in found.dropped.items():
        numbers = ", ".join(str(number) for _, number, _ in first) + ", …" * (count > len(first))
        report(f"dropped {count:,}: {kind}; line{'s' * (count > 1)} {numbers}: {first[0][2]}")
    if found.dropped:
        report(f"dropped lines and their reasons: {folder / DROPPED_FILE}")
