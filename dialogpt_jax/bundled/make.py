"""Makes the bundled model by the package's own commands: a folder of dialogues in; a run, a model directory, its card out.

    python -m dialogpt_jax.bundled.make --corpus CORPUS --run RUN --export MODEL
    python -m dialogpt_jax.bundled.make --corpus CORPUS --run RUN --export MODEL --init OLDER      go on from a model
    python -m dialogpt_jax.bundled.make --corpus CORPUS --run RUN --export MODEL --reverse --init FIRST

    corpus ─tokenizer→ start ─train, 4 blocks→ first ─grow, train, 8 blocks, everyday talk→ trained ─float16→ MODEL

The last makes the backward model: its start is the first, small model of the forward run (RUN/first there), which knows
the words and has only to turn the order round. CORPUS holds `train`, `valid`, `everyday` and `everyday-valid`, each
`.jsonl.gz`, a dialogue a line with its `source`. Each command is printed before it runs; only the tokenizer and the card
have none. A run that was stopped goes on when the command is given again. The numbers below are the model's: change them
and it is another one.
"""

import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path

from dialogpt_jax.bundled.card import read_by_source, read_curve, write_card
from dialogpt_jax.chat.bot import load
from dialogpt_jax.cli.main import main as dialogpt
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.formats import read_dialogues
from dialogpt_jax.run.journal import METRICS
from dialogpt_jax.text.tokenizer import JSON_FILE, Tokenizer
from dialogpt_jax.weights.directory import CONFIG_FILE

VOCAB_SIZE = 8192
CONFIG = GPT2Config(
    vocab_size=VOCAB_SIZE,
    eos_token_id=VOCAB_SIZE - 1,
    n_positions=512,
    n_embd=256,
    n_layer=8,
    n_head=4,
    embd_pdrop=0.0,  # less than four epochs of each source: nothing to overfit
    attn_pdrop=0.0,
    resid_pdrop=0.0,
)
FIRST = dataclasses.replace(CONFIG, n_positions=256, n_layer=4)
EVERYDAY_TIMES = 5  # everyday talk is 3 % of the words; so often, 15 % of the tokens
STEPS, DECAY = 2450, 1600  # more passes over everyday talk are learned by heart: see the card
FIRST_STEPS, FIRST_DECAY = 1700, 500
REVERSE_STEPS, REVERSE_DECAY, REVERSE_TIMES = 600, 520, 6
# Short runs of a small model: Muon, level and then falling rates (Hägele et al. 2024), Adam's averages short.
SAME = "--optimizer muon --schedule trapezoid --b2 0.99 --dtype bfloat16 --valid-dialogues 100 --resume"
FIRST_HOW = f"--batch-size 32 --learning-rate 0.02 --warmup 60 --weight-decay 0 --evaluate-every 200 {SAME}"
REVERSE_HOW = (
    "--batch-size 32 --learning-rate 0.01 --warmup 20 --weight-decay 0.05 --embedding-decay 0 --average 0.98 "
    f"--evaluate-every 200 --save-every 100 --log-every 25 {SAME}"
)
HOW = (
    "--batch-size 8 --learning-rate 0.012 --warmup 40 --weight-decay 0.05 --embedding-decay 0 --average 0.99 "
    f"--evaluate-every 300 --save-every 150 --log-every 25 {SAME}"
)


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    run, export = args.run, args.export
    if args.reverse:
        if args.init is None:
            sys.exit("--reverse needs --init: the first model of the forward run, RUN/first")
        return _run_all([*_reverse_commands(args), f"convert {run / 'trained'} {export} --dtype float16 --force"])
    if args.init is None and not (run / "first").exists():
        _begin(args.corpus, run / "start-first", FIRST)
        status = _run_all(_first_commands(args))
        if status or not (run / "first").exists():  # it failed, or was asked to stop
            return status
    first = run / "first" if args.init is None else args.init
    _begin_from(first, run / "start")
    status = _run_all([*_commands(args, first), f"convert {run / 'trained'} {export} --dtype float16 --force"])
    if status or not (run / "trained").exists():
        return status
    command = f"python -m dialogpt_jax.bundled.make --corpus CORPUS --run RUN --export MODEL --steps {args.steps} "
    write_card(
        export,
        load(export),
        read_by_source(args.corpus / "valid.jsonl.gz"),
        read_by_source(args.corpus / "everyday-valid.jsonl.gz"),
        curve=read_curve(run / METRICS),
        command=f"{command}--decay {args.decay} --seed {args.seed}",
        how=HOW,
    )
    print(f"wrote {export}", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dialogpt_jax.bundled.make",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="tokenizer, data, checkpoints and metrics")
    parser.add_argument("--export", type=Path, required=True, help="where the model directory goes")
    parser.add_argument("--init", type=Path, help="begin from this model and not from nothing")
    parser.add_argument("--reverse", action="store_true", help="the backward model, with the bundled model's tokenizer")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--decay", type=int, default=DECAY, help="the rates fall to 0 over the last DECAY steps")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _first_commands(args: argparse.Namespace) -> list[str]:
    """The small model, from nothing, on the large corpus alone."""
    corpus, run, out = args.corpus, args.run / "start-first", args.run / "run-first"
    data = args.run / "data-first"
    train = (
        f"train --config {run / CONFIG_FILE} --tokenizer {run} --data {data} --valid {corpus / 'valid.jsonl.gz'} "
        f"--out {out} --steps {FIRST_STEPS} --decay {FIRST_DECAY} --seed {args.seed} {FIRST_HOW} "
        f"--export {args.run / 'first'}"
    )
    return [*_prepare(args, data, run, FIRST, times=0), train]


def _commands(args: argparse.Namespace, first: Path) -> list[str]:
    """That model grown, on everything."""
    start, data, trained = args.run / "start", args.run / "data", args.run / "trained"
    train = (
        f"train --init {first} --config {start / CONFIG_FILE} --data {data} --valid {args.corpus / 'valid.jsonl.gz'} "
        f"--out {args.run} --steps {args.steps} --decay {args.decay} --seed {args.seed} {HOW} --export {trained}"
    )
    return _prepare(args, data, start, CONFIG, times=EVERYDAY_TIMES) + [train] * (not trained.exists())


def _reverse_commands(args: argparse.Namespace) -> list[str]:
    """p(what was said before | a reply), from the small forward model of half the size."""
    data, trained = args.run / "data", args.run / "trained"
    train = (
        f"train --init {args.init} --data {data} --reverse --valid {args.corpus / 'valid.jsonl.gz'} --out {args.run} "
        f"--steps {REVERSE_STEPS} --decay {REVERSE_DECAY} --seed {args.seed} {REVERSE_HOW} --export {trained}"
    )
    return [
        *_prepare(args, data, args.init, FIRST, times=REVERSE_TIMES, more=" --reverse"),
        *[train] * (not trained.exists()),
    ]


def _prepare(args, data: Path, tokenizer: Path, config: GPT2Config, *, times: int, more: str = "") -> list[str]:
    """The command that prepares the mix, where that is not done."""
    files = [args.corpus / "train.jsonl.gz", *[args.corpus / "everyday.jsonl.gz"] * times]
    named = " ".join(map(str, files))
    command = f"data prepare {named} {data} --tokenizer {tokenizer} --max-length {config.n_positions}{more}"
    return [] if data.exists() else [command]


def _begin(corpus: Path, start: Path, config: GPT2Config) -> None:
    """A directory with the sizes and a tokenizer made of the corpus."""
    if not (start / JSON_FILE).exists():
        start.mkdir(parents=True, exist_ok=True)
        (start / CONFIG_FILE).write_text(json.dumps(config.to_hf(), indent=2), encoding="utf-8")
        turns = (turn for turns in read_dialogues(corpus / "train.jsonl.gz") for turn in turns)
        Tokenizer.train(turns, config.vocab_size).save(start)


def _begin_from(model: Path, start: Path) -> None:
    """A directory with the sizes to grow to and the tokenizer of a model."""
    start.mkdir(parents=True, exist_ok=True)
    (start / CONFIG_FILE).write_text(json.dumps(CONFIG.to_hf(), indent=2), encoding="utf-8")
    Tokenizer.load(model).save(start)


def _run_all(commands: list[str]) -> int:
    """Each command, printed before it runs; stops at the first that fails, or at a training that was asked to stop."""
    for command in commands:
        print(f"$ dialogpt {command}", flush=True)
        words = shlex.split(command)
        status = dialogpt(words)
        if status or (words[0] == "train" and not Path(words[words.index("--export") + 1]).exists()):
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
