"""Makes the bundled model: a folder of dialogues in, a training run and at its end a model directory out.

    python -m dialogpt_jax.bundled.make --corpus CORPUS --run RUN --export MODEL

CORPUS holds `train.jsonl.gz` and `valid.jsonl.gz`, a dialogue a line: `{"turns": [text, …]}`. A run that was
stopped goes on when the command is given again. MODEL gets the model directory, its weights in float16, and its card, whose
figures are measured on what was written. The numbers below are the model's: change them and it is another one.
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from dialogpt_jax.bundled.card import read_curve, write_card
from dialogpt_jax.chat.bot import load
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import Batches
from dialogpt_jax.data.examples import examples
from dialogpt_jax.data.formats import read_dialogues
from dialogpt_jax.evaluation.perplexity import bits_per_byte
from dialogpt_jax.model import init_params
from dialogpt_jax.text.tokenizer import JSON_FILE, Tokenizer
from dialogpt_jax.training.loop import METRICS, fit
from dialogpt_jax.training.optim import muon_and_adam
from dialogpt_jax.training.step import init_state
from dialogpt_jax.weights.directory import write_directory

VOCAB_SIZE = 8192
CONFIG = GPT2Config(
    vocab_size=VOCAB_SIZE,
    eos_token_id=VOCAB_SIZE - 1,
    n_positions=256,
    n_embd=256,
    n_layer=4,
    n_head=4,
    embd_pdrop=0.0,  # less than an epoch: nothing to overfit
    attn_pdrop=0.0,
    resid_pdrop=0.0,
)
BUCKETS, TOKENS_PER_BATCH = (64, 128, 192, 256), 8192
STEPS, DECAY, WARMUP = 1100, 400, 60
MUON_RATE, ADAM_RATE, CLIP = 0.02, 0.004, 1.0
VALID_WHILE_TRAINING = 100  # dialogues


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dialogpt_jax.bundled.make",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="checkpoint and metrics")
    parser.add_argument("--export", type=Path, help="where the model directory goes when training is done")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--decay", type=int, default=DECAY, help="the rates fall to 0 over the last DECAY steps")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.run.mkdir(parents=True, exist_ok=True)

    train = list(read_dialogues(args.corpus / "train.jsonl.gz"))
    valid = list(read_dialogues(args.corpus / "valid.jsonl.gz"))
    if not (args.run / JSON_FILE).exists():
        Tokenizer.train((turn for turns in train for turn in turns), VOCAB_SIZE).save(args.run)
    tokenizer = Tokenizer.load(args.run)

    encoded = (tokenizer.encode_batch(turns) for turns in train)
    batches = Batches(
        examples(encoded, eos=CONFIG.eos_token_id, max_length=CONFIG.n_positions),
        lengths=BUCKETS,
        tokens_per_batch=TOKENS_PER_BATCH,
        seed=args.seed,
    )
    print(f"{CONFIG.num_parameters:,} parameters; {batches.per_epoch} batches in an epoch", flush=True)
    optimizer = muon_and_adam(
        steps=args.steps, warmup=WARMUP, decay=args.decay, muon_rate=MUON_RATE, adam_rate=ADAM_RATE, clip=CLIP
    )
    key = jax.random.key(args.seed)
    state = fit(
        init_state(init_params(CONFIG, key), optimizer, key),
        batches,
        config=CONFIG,
        optimizer=optimizer,
        steps=args.steps,
        out=args.run,
        compute_dtype=jnp.bfloat16,
        evaluate=lambda params: bits_per_byte(params, CONFIG, tokenizer, valid[:VALID_WHILE_TRAINING]),
        report=lambda line: print(line, flush=True),
    )
    if args.export:
        write_directory(args.export, state.params, CONFIG, tokenizer, dtype="float16")
        write_card(args.export, load(args.export), valid, curve=read_curve(args.run / METRICS), command=_command(args))
        print(f"wrote {args.export}", flush=True)
    return 0


def _command(args: argparse.Namespace) -> str:
    flags = f"--steps {args.steps} --decay {args.decay} --seed {args.seed}"
    return f"python -m dialogpt_jax.bundled.make --corpus CORPUS --run RUN --export MODEL {flags}"


if __name__ == "__main__":
    sys.exit(main())
