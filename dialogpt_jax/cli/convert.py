"""Turn a checkpoint into a model directory, or back into Microsoft's layout.

  dialogpt convert microsoft/DialoGPT-small DIR
  dialogpt convert medium_ft.pkl DIR --tokenizer microsoft/DialoGPT-medium
  dialogpt convert DIR model.pkl --to pkl

SRC may be a PyTorch file (.bin, .pt, .pkl, either format), safetensors, Flax's msgpack, the index of a sharded one, a
model directory, or a name on the Hub. What is renamed, dropped or transposed is printed. Nothing is half-written.
"""

import argparse
import warnings

import numpy as np

from dialogpt_jax.cli import streams
from dialogpt_jax.convert.mapping import NonFiniteWeights, from_params
from dialogpt_jax.convert.names import to_microsoft
from dialogpt_jax.convert.write_torch import write_torch
from dialogpt_jax.weights.directory import check_new_file, check_target, write_directory
from dialogpt_jax.weights.dtypes import DTYPES, cast, parse_dtype
from dialogpt_jax.weights.source import need_tokenizer, open_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a weight file, a model directory, or a name on the Hub")
    parser.add_argument("target", metavar="DST", help="the directory, or with --to pkl the file, to write")
    parser.add_argument("--dtype", choices=(*DTYPES, "keep"), help="of what is written; keep, or float16 for a .pkl")
    parser.add_argument("--tokenizer", metavar="DIR_OR_NAME", help="where the tokenizer is, if SRC has none")
    parser.add_argument("--config", metavar="FILE", help="a config.json, if SRC has none and the shapes do not do")
    parser.add_argument("--revision", help="a branch, tag or commit on the Hub")
    parser.add_argument("--to", choices=("directory", "pkl"), default="directory", help="what to write")
    parser.add_argument("--force", action="store_true", help="replace the model, or the file, that is at DST")


def run(args: argparse.Namespace) -> int:
    check = check_target if args.to == "directory" else check_new_file
    check(args.target, replace=args.force)
    with warnings.catch_warnings():
        warnings.simplefilter("always", NonFiniteWeights)
        warnings.showwarning = lambda message, *_, **__: streams.tell(f"warning: {message}")
        source = open_source(args.source, config=args.config, tokenizer=args.tokenizer, revision=args.revision)
        tokenizer = need_tokenizer(source, args.source) if args.to == "directory" else source.tokenizer
        dtype = args.dtype or ("float16" if args.to == "pkl" else "keep")
        params = source.params if dtype == "keep" else cast(source.params, parse_dtype(dtype), to=np.asarray)
    for line in (*source.origin, *source.report.lines()):
        streams.show(line)
    if args.to == "directory":
        assert tokenizer is not None
        write_directory(args.target, params, source.config, tokenizer)
    else:
        write_torch(args.target, to_microsoft(from_params(params, source.config), source.config))
    streams.show(
        f"wrote {args.target}: {source.config.num_parameters:,} parameters, {params['wte']['embedding'].dtype}"
    )
    return 0
