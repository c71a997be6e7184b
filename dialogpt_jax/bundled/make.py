"""Makes the bundled model by the package's own commands: a folder of dialogues in; a run, a model directory, its card out.

    python -m dialogpt_jax.bundled.make --corpus CORPUS --run RUN --export MODEL

CORPUS holds `train.jsonl.gz` and `valid.jsonl.gz`, a dialogue a line. Each command is printed before it runs; only the
tokenizer and the card have none. A run that was stopped goes on when the command is given again. The numbers below are
the model's: change them and it is another one.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

from dialogpt_jax.bundled.card import read_curve, write_card
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
    n_positions=256,
    n_embd=256,
    n_layer=4,
    n_head=4,
    embd_pdrop=0.0,  # two epochs: nothing to overfit
    attn_pdrop=0.0,
    resid_pdrop=0.0,
)
STEPS, DECAY = 1700, 500
# Short runs of a small model: Muon, level and then falling rates (Hägele et al. 2024), Adam's averages short.
HOW = (
    "--batch-size 32 --optimizer muon --schedule trapezoid --learning-rate 0.02 --warmup 60 --weight-decay 0 --b2 0.99 "
    "--dtype bfloat16 --valid-dialogues 100 --evaluate-every 200 --save-every 100 --log-every 20"
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dialogpt_jax.bundled.make",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="tokenizer, data, checkpoints and metrics")
    parser.add_argument("--export", type=Path, required=True, help="where the model directory goes")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--decay", type=int, default=DECAY, help="the rates fall to 0 over the last DECAY steps")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    train, valid = args.corpus / "train.jsonl.gz", args.corpus / "valid.jsonl.gz"
    start, data, trained = args.run / "start", args.run / "data", args.run / "trained"

    if not (start / JSON_FILE).exists():
        start.mkdir(parents=True, exist_ok=True)
        (start / CONFIG_FILE).write_text(json.dumps(CONFIG.to_hf(), indent=2), encoding="utf-8")
        Tokenizer.train((turn for turns in read_dialogues(train) for turn in turns), VOCAB_SIZE).save(start)
    commands = []
    if not data.exists():
        commands.append(f"data prepare {train} {data} --tokenizer {start} --max-length {CONFIG.n_positions}")
    if not trained.exists():
        commands.append(
            f"train --config {start / CONFIG_FILE} --tokenizer {start} --data {data} --valid {valid} --out {args.run} "
            f"--steps {args.steps} --decay {args.decay} --seed {args.seed} {HOW} --resume --export {trained}"
        )
    commands.append(f"convert {trained} {args.export} --dtype float16 --force")
    for command in commands:
        print(f"$ dialogpt {command}", flush=True)
        status = dialogpt(shlex.split(command))
        if status or (command.startswith("train") and not trained.exists()):  # it failed, or was asked to stop
            return status
    command = f"python -m dialogpt_jax.bundled.make --corpus CORPUS --run RUN --export MODEL --steps {args.steps} "
    write_card(
        args.export,
        load(args.export),
        list(read_dialogues(valid)),
        curve=read_curve(args.run / METRICS),
        command=f"{command}--decay {args.decay} --seed {args.seed}",
        how=HOW,
    )
    print(f"wrote {args.export}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
