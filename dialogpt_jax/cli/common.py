"""What the commands that reply share: their flags, and the persistent compilation cache."""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dialogpt_jax.chat.bot import Bot
    from dialogpt_jax.decoding.logits import Sampling

NO_CACHE_VARIABLE = "DIALOGPT_NO_COMPILATION_CACHE"
CACHE_BYTES = 1 << 30  # the oldest programs go beyond this


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
        help=f"do not keep compiled programs in the user's cache folder (also: {NO_CACHE_VARIABLE}=1)",
    )


def load_bot(args: argparse.Namespace) -> "Bot":
    """The bot that the flags name, behind a compilation cache unless that is turned off."""
    if not (args.no_compilation_cache or os.environ.get(NO_CACHE_VARIABLE)):
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


def keep_compiled_programs() -> Path | None:
    """Lets jax keep every compiled program on disk, so that the next start does not compile. `None` if it cannot.

    jax by default keeps only what took over a second to compile; ours are many and small.
    """
    import jax
    import platformdirs

    folder = Path(platformdirs.user_cache_dir("dialogpt_jax")) / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only home: go on without
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    return folder
