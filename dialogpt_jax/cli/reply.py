"""Prints one reply to a dialogue.

dialogpt reply "Does money buy happiness?"
dialogpt reply "Hi!" "Hello." "Any plans for today?"     three turns, the last is replied to
echo "Hi!" | dialogpt reply -                            turns from standard input, one a line
dialogpt reply --json --candidates 4 "Hi!"               everything, for a program
"""

import argparse
import json
import sys

from dialogpt_jax.cli import streams
from dialogpt_jax.cli.common import add_model_flags, load_bot, sampling_of, seed_of
from dialogpt_jax.text.lines import written_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("turns", nargs="+", metavar="TEXT", help="a turn of the dialogue; `-` reads them, one a line")
    parser.add_argument("--candidates", type=int, default=1, metavar="N", help="N replies instead of one")
    parser.add_argument("--json", action="store_true", help="one JSON object: turns, seed, and each reply's figures")
    add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    turns = args.turns
    if turns == ["-"]:
        turns = list(written_lines(sys.stdin))
    sampling, seed = sampling_of(args), seed_of(args)
    # What can be found wrong without a model is, before one is loaded.
    from dialogpt_jax.chat.settings import seed_or_drawn
    from dialogpt_jax.text.dialogue import as_turns

    turns, seed = as_turns(turns), seed_or_drawn(seed)
    bot = load_bot(args)
    found = bot.candidates(turns, n=args.candidates, sampling=sampling, seed=seed, max_new_tokens=args.max_new_tokens)
    if not args.json:
        streams.show("\n".join(candidate.text for candidate in found))
        return 0
    replies = [
        {
            "text": c.text,
            "tokens": c.tokens.tolist(),
            "logprobs": [round(float(p), 6) for p in c.logprobs],
            "logprob": round(c.logprob, 6),
            "finished": c.finished,
        }
        for c in found
    ]
    everything = {"turns": turns, "seed": seed, "reply": found[0].text, "candidates": replies}
    streams.print_json(json.dumps(everything, ensure_ascii=False))
    return 0
