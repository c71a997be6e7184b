"""What the commands that reply share: their flags, and the bot that they name."""

import argparse
import dataclasses
from typing import TYPE_CHECKING

from dialogpt_jax.cli.program_cache import OFF_VARIABLE, keep_compiled_programs

if TYPE_CHECKING:
    from dialogpt_jax.chat.bot import Bot
    from dialogpt_jax.decoding.logits import Sampling


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """`--model`, the sampling, `--seed` and the compilation cache."""
    parser.add_argument(
        "--model",
        metavar="M",
        help="a model directory, or a name on the Hub such as microsoft/DialoGPT-medium; "
        "without it, the small model that ships with the package",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a Hub model")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="compute in this (float32); bfloat16 halves the memory",
    )
    parser.add_argument(
        "--seed", default="0", metavar="N", help="the same seed repeats a conversation (0); `random` draws one"
    )
    parser.add_argument("--temperature", type=float, metavar="T", help="0.7; lower is safer, 0 is greedy")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw among the K best tokens (50); 0: among all")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw among the best that hold P (0.9); 1: among all")
    parser.add_argument("--min-p", type=float, metavar="P", help="only tokens P times as probable as the best")
    parser.add_argument("--repetition-penalty", type=float, metavar="R", help="over 1: say a word less often again")
    parser.add_argument("--max-new-tokens", type=int, default=40, metavar="N", help="the longest reply (40)")
    parser.add_argument(
        "--no-compilation-cache",
        action="store_true",
        help=f"do not keep compiled programs in the user's cache folder (also: {OFF_VARIABLE}=1)",
    )


def load_bot(args: argparse.Namespace) -> "Bot":
    """The bot that the flags name, behind a compilation cache unless that is turned off."""
    if not args.no_compilation_cache:
        keep_compiled_programs()
    from dialogpt_jax.chat.bot import load

    return load(args.model, dtype=args.dtype, revision=args.revision)


def sampling_of(args: argparse.Namespace) -> "Sampling":
    """The default sampling with what the flags change."""
    from dialogpt_jax.chat.settings import DEFAULT_SAMPLING

    changes = {
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "repetition_penalty": args.repetition_penalty,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    if changes.get("top_k") == 0:
        changes["top_k"] = None
    if changes.get("top_p") == 1:
        changes["top_p"] = None
    return dataclasses.replace(DEFAULT_SAMPLING, **changes)


def seed_of(args: argparse.Namespace) -> int | None:
    """The number given, or `None` for `random`."""
    if args.seed == "random":
        return None
    if not args.seed.isascii() or not args.seed.isdigit():
        raise ValueError(f"--seed is {args.seed!r}; give a whole number from 0, or `random`")
    return int(args.seed)
