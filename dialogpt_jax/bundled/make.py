"""Makes the bundled model: a folder of dialogues in, a training run and at its end a model directory out.

    python -m dialogpt_jax.bundled.make --corpus DIR --run DIR

`DIR` of the corpus holds `train.jsonl.gz` and `valid.jsonl.gz`, a dialogue a line: `{"turns": [text, …]}`. A run that was
stopped goes on when the command is given again. The numbers below are the model's: change them and it is another one.
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import Batches
from dialogpt_jax.data.examples import examples
from dialogpt_jax.data.formats import read_dialogues
from dialogpt_jax.evaluation.perplexity import bits_per_byte
from dialogpt_jax.model import init_params
from dialogpt_jax.text.tokenizer import JSON_FILE, Tokenizer
from dialogpt_jax.training.loop import fit
from dialogpt_jax.training.optim import muon_and_adam
from dialogpt_jax.training.step import init_state

VOCAB_SIZE = 8192
SIZES = {"n_positions": 256, "n_embd": 256, "n_layer": 4, "n_head": 4}
NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}  # hardly more than an epoch: nothing to overfit
BUCKETS, TOKENS_PER_BATCH = (64, 128, 192, 256), 8192
RATES = {"warmup": 60, "muon_rate": 0.02, "adam_rate": 0.004, "clip": 1.0}
VALID_WHILE_TRAINING = 100  # dialogues


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dialogpt_jax.bundled.make", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--decay", type=int, default=600, help="the rates fall to 0 over the last DECAY steps")
    parser.add_argument("--stop", type=int, help="end after this step; a later call goes on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--muon-rate", type=float, default=RATES["muon_rate"])
    parser.add_argument("--adam-rate", type=float, default=RATES["adam_rate"])
    args = parser.parse_args(argv)
    args.run.mkdir(parents=True, exist_ok=True)

    train = list(read_dialogues(args.corpus / "train.jsonl.gz"))
    valid = list(read_dialogues(args.corpus / "valid.jsonl.gz"))
    if not (args.run / JSON_FILE).exists():
        Tokenizer.train((turn for turns in train for turn in turns), VOCAB_SIZE).save(args.run)
    tokenizer = Tokenizer.load(args.run)
    eos = tokenizer.end_of_text_id
    assert eos == VOCAB_SIZE - 1
    config = GPT2Config(vocab_size=VOCAB_SIZE, eos_token_id=eos, **SIZES, **NO_DROPOUT)

    encoded = (tokenizer.encode_batch(turns) for turns in train)
    batches = Batches(
        examples(encoded, eos=eos, max_length=config.n_positions),
        lengths=BUCKETS,
        tokens_per_batch=TOKENS_PER_BATCH,
        seed=args.seed,
    )
    print(f"{config.num_parameters:,} parameters; {batches.per_epoch} batches in an epoch", flush=True)
    rates = RATES | {"muon_rate": args.muon_rate, "adam_rate": args.adam_rate}
    optimizer = muon_and_adam(steps=args.steps, decay=args.decay, **rates)
    key = jax.random.key(args.seed)
    state = init_state(init_params(config, key), optimizer, key)
    state = fit(
        state,
        batches,
        config=config,
        optimizer=optimizer,
        steps=min(args.steps, args.stop or args.steps),
        out=args.run,
        compute_dtype=jnp.bfloat16,
        evaluate=lambda params: bits_per_byte(params, config, tokenizer, valid[:VALID_WHILE_TRAINING]),
        report=lambda line: print(line, flush=True),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
