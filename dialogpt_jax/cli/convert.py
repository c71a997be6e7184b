"""Turn a checkpoint into a model directory, or back into Microsoft's layout.

  dialogpt convert microsoft/DialoGPT-small DIR
  dialogpt convert medium_ft.pkl DIR --tokenizer microsoft/DialoGPT-medium
  dialogpt convert DIR model.pkl --to pkl
  dialogpt convert DIR model.gguf --to gguf

SRC may be a PyTorch file (.bin, .pt, .pkl, either format), safetensors, Flax's msgpack, the index of a sharded one, a
model directory, or a name on the Hub. What is renamed, dropped or transposed is printed. Nothing is half-written.
"""

import argparse
import warnings

from dialogpt_jax.cli import streams
from dialogpt_jax.convert.names import WeightsWarning
from dialogpt_jax.weights.conversion import convert
from dialogpt_jax.weights.dtypes import DTYPES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a weight file, a model directory, or a name on the Hub")
    parser.add_argument("target", metavar="DST", help="the directory, or with another --to the file, to write")
    parser.add_argument("--dtype", choices=(*DTYPES, "keep"), help="of what is written; keep, or float16 for a .pkl")
    parser.add_argument("--tokenizer", metavar="DIR_OR_NAME", help="where the tokenizer is, if SRC has none")
    parser.add_argument("--config", metavar="FILE", help="a config.json, if SRC has none and the shapes do not do")
    parser.add_argument("--heads", type=int, metavar="N", help="attention heads, if SRC has no config: no shape tells")
    parser.add_argument("--revision", help="a branch, tag or commit on the Hub")
    parser.add_argument("--to", choices=("directory", "pkl", "gguf"), default="directory", help="what to write")
    parser.add_argument("--force", action="store_true", help="replace the model, or the file, that is at DST")


def run(args: argparse.Namespace) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("always", WeightsWarning)
        warnings.showwarning = lambda message, *_, **__: streams.tell(f"warning: {message}")
        lines = convert(
            args.source,
            args.target,
            to=args.to,
            dtype=args.dtype,
            config=args.config,
            heads=args.heads,
            tokenizer=args.tokenizer,
            revision=args.revision,
            force=args.force,
        )
    for line in lines:
        streams.show(line)
    return 0
