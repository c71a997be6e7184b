"""Talk with a model: type a line, get a reply. In the chat, /help lists what else can be typed.

dialogpt chat
dialogpt chat --model microsoft/DialoGPT-medium --dtype bfloat16
printf 'Hi!\\nHow are you?\\n' | dialogpt chat         a reply a line
"""

import argparse

from dialogpt_jax.cli.common import add_model_flags, load_bot, sampling_of, seed_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--load", metavar="FILE", help="go on with a chat that /save wrote")
    add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    sampling, seed = sampling_of(args), seed_of(args)
    bot = load_bot(args)
    from dialogpt_jax.chat.session import Chat
    from dialogpt_jax.chat.terminal import Terminal

    if args.load:
        chat = Chat.load(args.load, bot)
    else:
        chat = bot.chat(seed=seed, sampling=sampling, max_new_tokens=args.max_new_tokens)
    return Terminal(bot, chat, name=args.model or "the bundled model").run()
