"""Makes the bundled models by the package's own commands: a folder of dialogues in; a run, a model directory, its card out.

    python -m dialogpt_jax.bundled.make --corpus CORPUS --run RUN --export MODEL
    python -m dialogpt_jax.bundled.make --corpus CORPUS --run RUN --export MODEL --init OLDER      from settling on
    python -m dialogpt_jax.bundled.make --corpus CORPUS --run RUN --export MODEL --reverse --init OLDER

    corpus ─tokenizer→ start ─train→ teacher ─teaches→ student ─settle, everyday talk→ settled ─mean with student→ mean
    mean ─marked replies→ preferred, in float16: MODEL ─marked replies→ sense_head.safetensors, beside it

The teacher is wider than what may be shipped; the student learns the corpus and what the teacher expects of it, in many
passes; then it settles on everyday talk at a low rate, and the mean of the weights before and after that keeps what each
has learned; last it learns which of its own replies were marked sensible (`prefer.py`). The last command goes on with a
backward model. CORPUS holds `train`, `valid`, `everyday` and `everyday-valid`, each `.jsonl.gz`, a dialogue a line with
its `source`. Each command is printed before it runs; only the tokenizer, the sample and the card have none. A run that was
stopped goes on when the command is given again. The numbers below are the models': change them and they are others. On a
GPU all of it takes minutes, on two CPU cores days. A step of the teacher takes 40 GB at once; `--accumulate 8` an eighth.
"""

import argparse
import dataclasses
import gzip
import json
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from dialogpt_jax.bundled.card import read_by_source, read_curve, write_card
from dialogpt_jax.bundled.prefer import main as prefer
from dialogpt_jax.bundled.tell_sense import main as tell_sense
from dialogpt_jax.chat.loading import load
from dialogpt_jax.cli.main import main as dialogpt
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.formats import read_dialogues
from dialogpt_jax.ranking.sense import BUNDLED
from dialogpt_jax.run.journal import METRICS
from dialogpt_jax.text.tokenizer import JSON_FILE, Tokenizer
from dialogpt_jax.training.average import mean_of
from dialogpt_jax.weights.directory import write_directory

VOCAB_SIZE = 8192
CONFIG = GPT2Config(
    vocab_size=VOCAB_SIZE,
    eos_token_id=VOCAB_SIZE - 1,
    n_positions=512,
    n_embd=256,
    n_layer=12,
    n_head=4,
    embd_pdrop=0.05,
    attn_pdrop=0.0,
    resid_pdrop=0.05,
)
TEACHER = dataclasses.replace(CONFIG, n_embd=512, n_head=8, embd_pdrop=0.15, resid_pdrop=0.15)


class Stage(NamedTuple):
    """One training: how often everyday talk stands in its mix, how many steps, the last of them falling, and the rest."""

    everyday: int
    steps: int
    decay: int
    how: str


# Muon, level and then falling rates (Hägele et al. 2024), Adam's averages short, decay high for what is read often.
SAME = "--optimizer muon --schedule trapezoid --b2 0.99 --average 0.99 --dtype bfloat16 --buckets 1 --resume"
TAUGHT = "--batch-size 64 --learning-rate 0.02 --warmup 60 --weight-decay 0.1 --embedding-decay 0.05"
STAGES = {
    "teacher": Stage(
        1, 824, 743, "--batch-size 64 --learning-rate 0.02 --warmup 60 --weight-decay 0.15 --embedding-decay 0.1"
    ),
    "student": Stage(2, 3879, 1298, f"{TAUGHT} --teacher-share 0.7"),
    "settled": Stage(
        2,
        480,
        390,
        "--batch-size 8 --learning-rate 0.004 --warmup 20 --weight-decay 0.1 --embedding-decay 0.05 --seed 2",
    ),
    "reverse": Stage(2, 7035, 1094, f"{TAUGHT} --dropout 0.05"),
}
SAMPLE = 12  # the last stage reads every so manieth dialogue, and all of PERSONAL
PERSONAL = "personality"
REVERSE_POSITIONS = 256


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    run, export = args.run, args.export
    if args.reverse and args.init is None:
        sys.exit("--reverse needs --init: the backward model to go on with, such as the bundled one")
    if args.init is None:
        _begin(args.corpus, run / "start")
        names, latest = ["teacher", "student", "settled"], run / "start"
    else:
        names, latest = ["reverse" if args.reverse else "settled"], args.init
    for name in names:
        status = _run_all(_commands(args, name, latest))
        if status or not (run / name).exists():  # it failed, or was asked to stop
            return status
        latest = run / name
    if not args.reverse:
        _write_mean(args.init or run / "student", latest, run / "mean")
        latest = _prefer(args)
    status = _run_all([f"convert {latest} {export} --dtype float16 --force"])
    if status or args.reverse:
        return status
    head = export.parent / BUNDLED.name
    status = tell_sense(["--model", str(export), "--export", str(head)])
    if status:
        return status
    write_card(
        export,
        load(export, sense=head),
        read_by_source(args.corpus / "valid.jsonl.gz"),
        read_by_source(args.corpus / "everyday-valid.jsonl.gz"),
        curve=read_curve(run / "run-student" / METRICS) if args.init is None else [],
        command="python -m dialogpt_jax.bundled.make --corpus CORPUS --run RUN --export MODEL",
        how=_shown(),
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
    parser.add_argument(
        "--accumulate", type=int, default=1, metavar="N", help="parts of a batch, where memory is short"
    )
    parser.add_argument("--reverse", action="store_true", help="the backward model, with the bundled model's tokenizer")
    return parser


def _commands(args: argparse.Namespace, name: str, before: Path) -> list[str]:
    """What is still to be run for a stage: its data, its training. `before` has the tokenizer, or the weights too."""
    if (args.run / name).exists():
        return []
    data = args.run / f"data-{name}"
    prepare = [] if data.exists() else [_prepare(args, name, before, data)]
    return [*prepare, _train(args, name, before)]


def _train(args: argparse.Namespace, name: str, before: Path) -> str:
    """The command that trains a stage."""
    stage, run = STAGES[name], args.run
    if name in ("teacher", "student"):
        begin = f"--config {run / f'{name}.json'} --tokenizer {before}"
    else:
        begin = f"--init {before}"
    teacher = f" --teacher {run / 'teacher'}" if name == "student" else ""
    parts = f" --accumulate {args.accumulate}" if args.accumulate != 1 else ""
    valid = args.corpus / ("everyday-valid.jsonl.gz" if name == "settled" else "valid.jsonl.gz")
    return (
        f"train {begin}{teacher} --data {run / f'data-{name}'} --valid {valid} --out {run / f'run-{name}'} "
        f"--steps {stage.steps} --decay {stage.decay} {stage.how} {SAME}{parts} --export {run / name}"
    )


def _write_mean(before: Path, after: Path, mean: Path) -> None:
    """A model directory with the mean of the weights of two."""
    one, other = load(before), load(after)
    write_directory(mean, mean_of(one.params, other.params), other.config, other.tokenizer)
    print(f"wrote {mean}: the mean of {before} and {after}", flush=True)


def _prefer(args: argparse.Namespace) -> Path:
    """The model directory after the stage on marked replies."""
    command, preferred = _preferences(args), args.run / "preferred"
    if not preferred.exists():
        print(f"$ {command}", flush=True)
        prefer(shlex.split(command)[3:])
    return preferred


def _preferences(args: argparse.Namespace) -> str:
    run = args.run
    return (
        f"python -m dialogpt_jax.bundled.prefer --init {run / 'mean'} --export {run / 'preferred'} "
        f"--dialogues {run / 'sample.jsonl.gz'} {args.corpus / 'everyday.jsonl.gz'}"
    )


def _shown() -> dict[str, str]:
    """The command of each training, as the card shows it."""
    args = argparse.Namespace(corpus=Path("CORPUS"), run=Path("RUN"), accumulate=1)
    before = Path("RUN/start")
    shown = {}
    for name in ("teacher", "student", "settled"):
        shown[name], before = f"dialogpt {_train(args, name, before)}", Path("RUN") / name
    return {**shown, "preferred": _preferences(args)}


def _prepare(args: argparse.Namespace, name: str, tokenizer: Path, data: Path) -> str:
    """The command that prepares the mix of a stage."""
    large = args.corpus / "train.jsonl.gz"
    if name == "settled":
        large = _sample(large, args.run / "sample.jsonl.gz")
    files = " ".join(map(str, [large, *[args.corpus / "everyday.jsonl.gz"] * STAGES[name].everyday]))
    backwards = name == "reverse"
    length = REVERSE_POSITIONS if backwards else CONFIG.n_positions
    return f"data prepare {files} {data} --tokenizer {tokenizer} --max-length {length} --pack{' --reverse' * backwards}"


def _sample(corpus: Path, sample: Path) -> Path:
    """Every twelfth dialogue, and all that are about who it is."""
    sample.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(corpus, "rt", encoding="utf-8") as lines, gzip.open(sample, "wt", encoding="utf-8") as out:
        out.writelines(
            line for number, line in enumerate(lines) if number % SAMPLE == 0 or json.loads(line)["source"] == PERSONAL
        )
    return sample


def _begin(corpus: Path, start: Path) -> None:
    """A directory with a tokenizer made of the corpus, and beside it the sizes of teacher and student."""
    if not (start / JSON_FILE).exists():
        start.mkdir(parents=True, exist_ok=True)
        turns = (turn for turns in read_dialogues(corpus / "train.jsonl.gz") for turn in turns)
        Tokenizer.train(turns, VOCAB_SIZE).save(start)
    for name, config in {"teacher": TEACHER, "student": CONFIG}.items():
        (start.parent / f"{name}.json").write_text(json.dumps(config.to_hf(), indent=2), encoding="utf-8")


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
