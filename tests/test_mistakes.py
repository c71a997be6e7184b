"""Ordinary mistakes with the public functions: each is one line that says what to give, and none is taken in silence.

A call is a line of Python with a hole, `{}`. `HOLES` says what belongs there, and `MISTAKES` what a person may put
there instead, with the class and some words of the error. A new argument is one line more in `HOLES`; a new mistake is one
line more in `MISTAKES`, and is tried everywhere. What fits nowhere else is in `ODD`; what is no mistake, in `SAME`.
"""

import dataclasses
import re
import traceback
from pathlib import Path

import fakes
import jax
import numpy as np
import optax
import pytest

import dialogpt_jax as dg

pandas = pytest.importorskip("pandas")

PACKAGE = Path(dg.__file__).parent
NOT_TURNS = {
    "3": "got int",
    "None": "got NoneType",
    "b'Hi'": "got bytes",
    "{'Hi'}": "got set",
    "{'role': 'user', 'content': 'Hi'}": "got dict; put a message into a list",
    "[3]": "turn 1 is int; expected text",
    "['Hi', None]": "turn 2 is NoneType; expected text",
    "[['Hi']]": "turn 1 is list; expected text",
    "[('user', 'Hi')]": "turn 1 is tuple; expected text",
    "pandas.Series(['Hi', None])": "turn 2 is ",
    "[{'role': 'user'}]": "content of message 1 is NoneType; expected text",
    "[{'role': 'system', 'content': 'Be kind.'}]": "a system message is no turn of the dialogue; leave it out, or",
    "[{'role': 'user', 'content': 'Hi'}, {'role': 'tool', 'content': '3'}]": "message 2: a tool message is no turn",
}
NO_REPLY_TO = {"[]": "no turn; give at least one", "''": "turn 1, .*, is empty", "['Hi', ' ']": "turn 2, .*, is empty"}
NOT_DIALOGUES = {
    "3": "a list of dialogues",
    "None": "a list of dialogues",
    "''": "a list of dialogues",
    "{}": "a list of dialogues",
    "'Hi'": r"a list of dialogues, each a list of turns: \[\[text, …\], …\]",
    "['Hi']": r"a list of dialogues, each a list of turns: \[\[text, …\], …\]",
    "{'turns': ['Hi', 'Hello']}": "a list of dialogues, each a list of turns",
    "[{'turns': ['Hi', 'Hello']}]": "a list of dialogues, each a list of turns",
    "[{'role': 'user', 'content': 'Hi'}]": "a list of dialogues, each a list of turns",
    "pandas.DataFrame({'text': ['Hi']})": "a list of dialogues, each a list of turns",
    "pandas.Series(['Hi'])": "a list of dialogues, each a list of turns",
    **{
        f"[['Hi', 'Hello'], {wrong}]": f"dialogue 1: .*{words}"
        for wrong, words in NOT_TURNS.items()
        if wrong[:3] != "{'r"
    },
}
NOT_REPLIES = {
    "'Hello'": r"replies is 'Hello'; give a list of texts, \[text, …\]",
    "3": "replies is 3; give a list of texts",
    "None": "replies is None; give a list of texts",
    "{'Hello'}": "replies is {'Hello'}; give a list of texts",
    "{'text': 'Hello'}": "replies is {'text': 'Hello'}; give a list",
    "pandas.DataFrame({'text': ['Hello']})": "replies is .*; give a list of texts",
    "[3]": r"replies\[0\] is 3; give a text, or a Candidate",
    "['Hello', None]": r"replies\[1\] is None; give a text",
    "pandas.Series(['Hello', None])": r"replies\[1\] is (None|nan); give a text",
    "[['Hello']]": r"replies\[0\] is \['Hello'\]; give a text",
    "[{'role': 'assistant', 'content': 'Hello'}]": r"replies\[0\] is {.*}; give a text",
    "['Hello', '']": r"replies\[1\] is empty; write something, or leave it out",
    "[' ']": r"replies\[0\] is empty; write something",
    "['z' * 100]": r"replies\[0\] has 101 tokens and its context \d+, 96 together at most; shorten it, or give a larger",
}
NOT_REPLIES_TO_EACH = {
    "'Hello'": "replies is 'Hello'; give one reply, or one list of replies, for each dialogue",
    "3": "replies is 3; give one reply, or one list",
    "{'a': 'b', 'c': 'd'}": "replies is {.*}; give one reply, or one list",
    "['Hello']": "there are 2 dialogues and 1 replies; give one reply, or one list",
    "['Hello', ['Hello']]": r"replies\[0\] is 'Hello'; give a list of texts",
    "['Hello', 3]": r"replies\[0\] is 'Hello'; give a list of texts",
    "['Hello', '']": r"replies\[1\] is empty; write something",
    "[['Hello'], ['Hello', '']]": r"replies\[1\]\[1\] is empty; write something",
    "[['Hello'], [3]]": r"replies\[1\]\[0\] is 3; give a text",
    "['Hello', 'z' * 100]": r"replies\[1\](\[0\])? has 101 tokens and its context",
}
NOT_WHOLE = {
    wrong: re.escape(f"is {eval(wrong)!r}; it must be a whole number")
    for wrong in ("-1", "1.5", "1.0", "True", "'4'", "[4]", "np.float64(4)", "np.int64(-1)")
}
NOT_SAMPLING = dict.fromkeys(
    ("None", "0.7", "'greedy'", "{'temperature': 0.7}", "dg.Sampling"), "sampling is .*; give a Sampling, such as "
)
NOT_PATHS = dict.fromkeys(("None", "3", "b'x'", "['x']", "bot"), "is .*; give the name of a file or folder")
NOT_TOKENIZERS = dict.fromkeys(("None", "'gpt2'", "bot"), "tokenizer is .*; give (the model's|a) Tokenizer")
NOT_CONFIGS = dict.fromkeys(("None", "'small'", "{'n_layer': 2}"), "config is .*; give the GPT2Config")
NOT_PARAMETERS = dict.fromkeys(("None", "bot", "'model'"), "params (is|are) .*; give the (parameters|tree)")
NOT_TEXTS = {
    "'Hi'": "texts is one text; give a list of texts",
    "3": "texts is 3; give a list",
    "[3]": "a text is 3; give a str",
    "['Hi', None]": "a text is None; give a str",
    r"['Hi', '\ud800']": "lone surrogate",
}

# What may be wrong with an argument: the error's class, and its words for each mistake.
MISTAKES = {
    "turns": (ValueError, NOT_TURNS),
    "turns to reply to": (ValueError, NOT_TURNS | NO_REPLY_TO),
    "dialogues": (ValueError, NOT_DIALOGUES),
    "replies": (ValueError, NOT_REPLIES),
    "replies to each": (ValueError, NOT_REPLIES_TO_EACH),
    "a whole number": (ValueError, NOT_WHOLE),
    "a whole number over 0": (ValueError, NOT_WHOLE | {"0": "is 0; it must be a whole number(, at least| from) "}),
    "a sampling": (TypeError, NOT_SAMPLING),
    "a path": (TypeError, NOT_PATHS),
    "a tokenizer": (TypeError, NOT_TOKENIZERS),
    "a config": (TypeError, NOT_CONFIGS),
    "parameters": (TypeError, NOT_PARAMETERS),
    "texts": (ValueError, NOT_TEXTS),
}

HOLES = {
    "bot.reply({})": "turns to reply to",
    "bot.candidates({})": "turns to reply to",
    "bot.stream({})": "turns to reply to",
    "bot.encode({})": "turns",
    "dg.Chat(bot, turns={})": "turns",
    "dg.Dialogue({})": "turns",
    "bot.score({}, ['Hello'])": "turns to reply to",
    "bot.score('Hi', {})": "replies",
    "bot.score('Hi', ['Hello'], max_new_tokens={})": "a whole number over 0",
    "bot.scores([['Hi'], ['Hi']], {})": "replies to each",
    "bot.scores({}, ['Hello'])": "dialogues",
    "bot.scores([], [], max_new_tokens={})": "a whole number over 0",
    "bot.replies({})": "dialogues",
    "bot.answers({})": "dialogues",
    "dg.make_examples({}, tokenizer)": "dialogues",
    **{
        f"{call}, {argument}={{}})": kind
        for call in ("bot.reply('Hi'", "bot.candidates('Hi'", "bot.stream('Hi'", "bot.replies([['Hi']]", "dg.Chat(bot")
        for argument, kind in {
            "sampling": "a sampling",
            "seed": "a whole number",
            "max_new_tokens": "a whole number over 0",
        }.items()
    },
    # `None` is what a bot has by default, and with beams greedy.
    **dict.fromkeys(
        (
            "bot.reply('Hi', sampling={})",
            "bot.candidates('Hi', sampling={})",
            "bot.stream('Hi', sampling={})",
            "bot.replies([['Hi']], sampling={})",
            "bot.answers([], sampling={})",
            "dg.Chat(bot, sampling={})",
        ),
        "a sampling, None apart",
    ),
    "bot.chat(seed={})": "a whole number",
    "dg.self_chat(bot, seed={})": "a whole number",
    "dg.self_chat(bot, turns={})": "a whole number over 0",
    "dg.self_chat(bot, first={})": "a whole number",
    "dg.self_chat(bot, batch_size={})": "a whole number over 0",
    "dg.self_chat(bot, max_new_tokens={})": "a whole number over 0",
    "dg.self_chat(bot, sampling={})": "a sampling, None apart",
    "dg.self_chat(bot, other_sampling={})": "a sampling, None apart",
    "bot.encode('Hi', max_new_tokens={})": "a whole number over 0",
    "bot.candidates('Hi', n={})": "a whole number over 0",
    "bot.replies([['Hi']], batch_size={})": "a whole number over 0",
    "setattr(chat, 'sampling', {})": "a sampling",
    "setattr(chat, 'seed', {})": "a whole number",
    "setattr(chat, 'max_new_tokens', {})": "a whole number over 0",
    "dg.make_examples(two, tokenizer, max_length={})": "a whole number over 0",
    "dg.make_examples(two, tokenizer, eos={})": "a whole number",
    "dg.Tokenizer.train(['Hi'], {})": "a whole number over 0",
    "tokenizer.decode([{}])": "a whole number",
    "tokenizer.token({})": "a whole number",
    "dg.load({})": "a path, None apart",
    "bot.save({})": "a path",
    "chat.save({})": "a path",
    "dg.Chat.load({}, bot)": "a path",
    "dg.Tokenizer.load({})": "a path",
    "tokenizer.save({})": "a path",
    "dg.open_shards({})": "a path",
    "dg.load_params({})": "a path",
    "dg.write_directory({}, bot.params, bot.config, tokenizer)": "a path",
    "dg.make_examples(two, {})": "a tokenizer",
    "dg.Bot(bot.params, bot.config, {})": "a tokenizer",
    "dg.write_directory(nowhere, bot.params, bot.config, {})": "a tokenizer",
    "dg.Bot(bot.params, {}, tokenizer)": "a config",
    "dg.write_directory(nowhere, bot.params, {}, tokenizer)": "a config",
    "dg.Bot({}, bot.config, tokenizer)": "parameters",
    "dg.write_directory(nowhere, {}, bot.config, tokenizer)": "parameters",
    "tokenizer.encode_batch({})": "texts",
    "dg.Tokenizer.train({}, 300)": "texts",
}
MISTAKES["a sampling, None apart"] = (
    TypeError,
    {wrong: NOT_SAMPLING[wrong] for wrong in NOT_SAMPLING if wrong != "None"},
)
MISTAKES["a path, None apart"] = (TypeError, {wrong: words for wrong, words in NOT_PATHS.items() if wrong != "None"})

ODD = [
    ("chat.say(['Hi'])", ValueError, "turn 1 is list; expected text"),
    ("chat.say('')", ValueError, "turn 1, the one to reply to, is empty"),
    ("chat.undo()", ValueError, "nothing to undo: the chat has no reply yet; say something first"),
    (
        "dg.Chat(bot, turns=['Hi']).undo()",
        ValueError,
        "nothing to undo: the chat has no reply yet; say something first",
    ),
    (
        "dg.Chat(bot, turns=['Hi']).retry()",
        ValueError,
        "nothing to retry: the chat has no reply yet; say something first",
    ),
    ("dg.Chat('bot')", TypeError, "a chat is with a Bot; got 'bot'; `load` gives one"),
    ("bot.replies([['Hi']], progress=True)", TypeError, r"progress is True; give a function of \(done, all\)"),
    ("bot.score('Hi', ['Hello'], progress=True)", TypeError, r"progress is True; give a function of \(done, all\)"),
    (
        "dg.load(revision='main')",
        ValueError,
        "revision is 'main', and .* is here: only a model on the Hub has revisions",
    ),
    *(
        (f"dg.Sampling({name}={wrong})", ValueError, f"{name} is .*; it must be one of ")
        for name in ("penalty_scope", "ngram_scope")
        for wrong in ("'all'", "None", "np.ones((2, 4))", "pandas.Series(['a', 'b'])")
    ),
    ("dg.load(revision=3)", TypeError, "revision is 3; give the name of a branch or tag, or a commit"),
    ("dg.load(dtype='float64')", ValueError, "dtype is 'float64'; known: float32, bfloat16, float16"),
    (
        "dg.Bot(bot.params, replaced(n_layer=3), tokenizer)",
        ValueError,
        "the parameters have 2 blocks; the config's n_layer is 3",
    ),
    (
        "dg.Bot(bot.params, replaced(n_head=2), tokenizer)",
        ValueError,
        r"h_0/attn/c_attn/bias has the shape \(3, 4, 8\); this config needs \(3, 2, 16\)",
    ),
    (
        "dg.Bot(bot.params, replaced(n_positions=9), tokenizer)",
        ValueError,
        r"wpe/embedding has the shape \(96, 32\); this config needs \(9, 32\)",
    ),
    (
        "dg.Bot(bot.params, replaced(tie_word_embeddings=True), tokenizer)",
        ValueError,
        "the parameters have a lm_head/kernel, against",
    ),
    ("dg.Tokenizer('gpt2')", TypeError, "backend is 'gpt2'; give a `tokenizers.Tokenizer`, or use `load`"),
    ("tokenizer.encode(3)", ValueError, "a text is 3; give a str"),
    ("tokenizer.encode(['Hi'])", ValueError, r"a text is \['Hi'\]; give a str"),
    ("tokenizer.decode('Hi')", ValueError, "ids is 'Hi'; give a list of token ids"),
    ("tokenizer.decode(3)", ValueError, "ids is 3; give a list of token ids"),
    ("tokenizer.decode(np.zeros((2, 2), int))", ValueError, r"a token id is \[0, 0\]; it must be a whole number"),
    (
        "dg.make_examples(two, tokenizer, train_on='asistant')",
        ValueError,
        "train_on is 'asistant'; give 'replies', 'all', 'last' or",
    ),
    (
        "dg.make_examples(two, tokenizer, train_on=None)",
        TypeError,
        "train_on is None; give 'replies', 'all', 'last' or the name",
    ),
    ("dg.make_examples(two, tokenizer, reverse='yes')", TypeError, "reverse is 'yes'; give True or False"),
    ("dg.make_examples(two, tokenizer, joined=10**9)", ValueError, "joined is 1000000000; .* from 0 to 1000"),
    ("dg.make_examples([['Hi', '']], tokenizer)", ValueError, "dialogue 0: turn 2 is empty; write something, or leave"),
    (
        "dg.make_examples([['Hi']], tokenizer)",
        ValueError,
        "no example: of 1 dialogue none has a turn to learn; ",
    ),
    ("dg.Dialogue('Hi')", ValueError, "turns is one text, 'Hi'; give a list of texts"),
    ("dg.Dialogue(['Hi', 'Hello'], weights=[1])", ValueError, r"weights is \[1\]; give a list of 2, one for each turn"),
    ("dg.Dialogue(['Hi', 'Hello'], weights=[1, -1])", ValueError, "a weight is -1; it must be a finite number from 0"),
    ("dg.Dialogue(['Hi', 'Hello'], weights=[1, np.nan])", ValueError, "a weight is nan; it must be a finite number"),
    ("dg.Dialogue(['Hi', 'Hello'], speakers='ab')", ValueError, "speakers is 'ab'; give a list of 2"),
    ("dg.Dialogue(['Hi', 'Hello'], speakers=['system', 'user'])", ValueError, "a system message is no turn"),
    ("dg.Example([1.5], [1])", ValueError, "tokens_T is .*; give a list of token ids"),
    ("dg.Example([-1], [1])", ValueError, "tokens_T is .*; give a list of token ids, whole numbers from 0"),
    ("dg.Example([1, 2], [1])", ValueError, r"weights_T has the shape \(1,\); give one for each of 2 tokens"),
    ("dg.Example([1, 2], [1, -1])", ValueError, "weights_T is .*; give a finite number from 0 for each token"),
    ("dg.init_params('small', jax.random.key(0))", TypeError, "config is 'small'; give a GPT2Config, such as"),
    ("dg.init_params(bot.config, 0)", TypeError, r"key is 0; give a key, such as jax.random.key\(0\)"),
    ("dg.init_state(bot, optax.adam(1e-3), jax.random.key(0))", TypeError, r"params is Bot\(.*; give the parameters"),
    ("dg.init_state({}, optax.adam(1e-3), jax.random.key(0))", ValueError, "params holds no parameter; give the"),
    (
        "dg.init_state(bot.params, pandas.Series([1]), jax.random.key(0))",
        TypeError,
        "optimizer is .*; give one of optax",
    ),
    ("dg.init_state(bot.params, 'adam', jax.random.key(0))", TypeError, "optimizer is 'adam'; give one of optax"),
    ("dg.init_state(bot.params, optax.adam(1e-3), 0)", TypeError, "key is 0; give a key, such as"),
    (
        "dg.init_params(bot.config, jax.random.key(0), 'x')",
        TypeError,
        "dtype is 'x'; give float32, bfloat16 or float16",
    ),
    ("dg.init_params(bot.config, jax.random.key(0), 'int32')", TypeError, "dtype is 'int32'; give float32, bfloat16"),
    ("dg.init_params(bot.config, jax.random.key(0), None)", TypeError, "dtype is None; give float32, bfloat16"),
    ("dg.Example([1, 2**40], [0, 1])", ValueError, "tokens_T is .*; give a list of token ids, whole numbers from 0"),
    ("dg.Example([[1], [2, 3]], [0, 1])", ValueError, "tokens_T is .*; give a list of token ids, whole numbers from 0"),
    ("dg.Example([1, 2], [0, np.nan])", ValueError, "weights_T is .*; give a finite number from 0 for each token"),
    ("dg.Example([1, 2], [0, 1e39])", ValueError, "weights_T is .*; give a finite number from 0 for each token"),
    ("dg.Example([1, 2], [0, 'a'])", ValueError, "weights_T is .*; give a finite number from 0 for each token"),
    *(
        (f"dg.Example([1, 2], [0, 1], {wrong})", ValueError, "segments is .*; give the number of each token's example")
        for wrong in ("'x'", "np.nan", "{}", "[0, None]", "[0, -1]", "[0, 10**30]", "[0.5, 1.5]")
    ),
    ("dg.Example([1, 2], [0, 1], [0])", ValueError, r"segments has the shape \(1,\); give one for each of 2 tokens"),
    *(
        (f"loss({name}={wrong})", kind, words)
        for name, (kind, mistakes) in {
            "config": (TypeError, NOT_CONFIGS),
            "params": (TypeError, NOT_PARAMETERS),
            "chunk": (ValueError, NOT_WHOLE | {"0": "is 0; it must be a whole number, at least 1"}),
            "checkpoint_blocks": (
                TypeError,
                dict.fromkeys(("None", "0", "'no'", "object()"), "checkpoint_blocks is .*; give True or False"),
            ),
            "dropout_key": (
                TypeError,
                dict.fromkeys(
                    ("0", "'x'", "np.ones(2)", "jax.random.split(jax.random.key(0), 2)", "jax.numpy.ones(2)"),
                    r"dropout_key is .*; give a key, such as jax.random.key\(0\)",
                ),
            ),
            "segments_BT": (
                ValueError,
                {
                    "3": r"segments have the shape \(\); expected \(rows, tokens\)",
                    "[0, 0, 0]": r"segments have the shape \(3,\); expected \(rows, tokens\)",
                    "'x'": "segments have the shape",
                    "np.zeros((2, 3), int)": r"tokens are \(2, 4\) and segments \(2, 3\); give the number of",
                    "np.zeros((2, 4))": "segments are float64; expected integers",
                    "np.full((2, 4), np.nan)": "segments are float64; expected integers",
                    "np.full((2, 4), -2)": "a segment is -2; they are numbered from 0, and a pad's is -1",
                },
            ),
        }.items()
        for wrong, words in mistakes.items()
    ),
    *(
        (f"score({changes})", kind, words)
        for changes, kind, words in (
            ("config='small'", TypeError, "config is 'small'; give the GPT2Config"),
            ("params=bot", TypeError, "params are Bot.*; give the tree"),
            ("tokens_BT=[[1, 2], [3]]", ValueError, "tokens are .*; give an array or lists of one length"),
            ("tokens_BT=[[1, 999], [3, 4]]", ValueError, "token id 999 is outside the vocabulary of 320"),
            ("starts_B=[3, 1]", ValueError, "that of row 0 is 3, it must be 0 to 2"),
            ("starts_B=[1]", ValueError, "2 rows of tokens, and starts of shape"),
            ("starts_B=None", ValueError, r"starts have the shape \(\); expected one number for each row"),
            ("lengths_B=[2, 9]", ValueError, "that of row 1 is 9, it must be 1 to 2"),
            ("lengths_B=[1.5, 2]", ValueError, "lengths are float64; expected integers"),
        )
    ),
    *(
        (f"generate({name}={10**30})", ValueError, f"{name} is {10**30}; it must be a whole number from 1 to ")
        for name in ("max_new_tokens", "candidates")
    ),
    (
        f"dg.Chat(bot, max_new_tokens={10**30})",
        ValueError,
        f"max_new_tokens is {10**30}; it must be a whole number from 1",
    ),
    ("dg.make_examples(two, tokenizer, max_length=10**30)", ValueError, f"max_length is {10**30}; .* number from 2 to"),
    ("dg.Tokenizer.train(['Hi'], 10**30)", ValueError, f"vocab_size is {10**30}; it must be a whole number from 257"),
    ("bot.candidates('Hi', n=10**30)", ValueError, f"n is {10**30}; it must be a whole number from 1 to "),
    ("bot.replies(two, batch_size=10**30)", ValueError, f"batch_size is {10**30}; it must be a whole number from 1"),
    *(
        (f"replaced({name}={wrong})", ValueError, f"config: {name} is {wrong}; it must be a whole number from 1 to")
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
        for wrong in (10**30, 0, 1.5)
    ),
    *(
        (f"dg.TrainOptions({name}={wrong})", kind, words.format(name))
        for names, kind, words in (
            (("schedule",), ValueError, "no schedule is called .*; there are constant, linear"),
            (("optimizer",), ValueError, "no optimiser is called .*; there are adamw, muon"),
            (("dtype",), ValueError, "dtype is .*; known: float32, bfloat16"),
            (("checkpoint_blocks",), TypeError, "checkpoint_blocks is .*; give True or False"),
        )
        for name in names
        for wrong in ("object()", "np.ones((2, 4))", "pandas.Series([1, 2])", "np.array([None, 1])", "3")
    ),
    *(
        (f"dg.TrainOptions({name}=None)", kind, f"{name} is None; ")
        for name, kind in (("buckets", ValueError), ("log_every", ValueError), ("average", ValueError))
    ),
    ("dg.TrainOptions(max_length=10**30)", ValueError, f"max_length is {10**30}; it must be a whole number from 2 to"),
    *(
        (f"dg.load(dtype={wrong})", ValueError, "dtype is .*; known: float32, bfloat16, float16")
        for wrong in ("'uint8'", "3", "pandas.Series([1, 2])", "np.ones((2, 4))", "object()")
    ),
    *(
        (f"dg.load(revision={wrong})", TypeError, "revision is .*; give the name of a branch or tag, or a commit")
        for wrong in ("3", "pandas.Series([1, 2])", "np.ones((2, 4))", "b'main'")
    ),
    (
        "dg.Sampling(logit_bias={5: np.array([1.0, 2.0])})",
        ValueError,
        "a number of logit_bias is array.*; it must be",
    ),
    ("dg.Sampling(logit_bias={'': 1.0})", ValueError, "logit_bias holds a text of nothing; leave it out"),
    ("dg.Sampling(bad_words=[['damn']])", ValueError, "a token of bad_words is 'damn'; it must be a whole number"),
    ("dg.Sampling(stop_strings=['\\ud800'])", ValueError, "stop_strings holds '.ud800', which has a lone surrogate"),
    ("dg.Sampling(bad_words=['\\ud800'])", ValueError, "bad_words holds '.ud800', which has a lone surrogate"),
    ("dg.Sampling(forced_tokens='Hi')", ValueError, "forced_tokens is 'Hi'; give a list of token ids"),
    ("dg.Sampling(no_repeat_ngram=np.array([0, 3]))", ValueError, "no_repeat_ngram is array.*, of which 0; it must be"),
    ("dg.Sampling(dry_scope='all')", ValueError, "dry_scope is 'all'; it must be one of reply, own, context"),
    ("dg.Sampling(xtc_threshold=0.1)", ValueError, "xtc_threshold goes with xtc_probability; give both, or leave"),
    (
        "bot.reply('Hi', sampling=dg.Sampling(suppress_tokens=[10**6]))",
        ValueError,
        "token id 1000000 is outside the vocabul",
    ),
    (
        "bot.replies([['Hi']], sampling=dg.Sampling(bad_words=[10**6]))",
        ValueError,
        "token id 1000000 is outside the vocab",
    ),
    (
        "bot.chat(sampling=dg.Sampling(dry_multiplier=1, dry_breakers=['no such'])).say('Hi')",
        ValueError,
        "no token holds 'no",
    ),
    ("dg.Sampling(forced_end='yes')", TypeError, "forced_end is 'yes'; give True or False"),
    ("bot.reply('Hi', sampling=dg.Sampling(temperature=object()))", ValueError, "temperature is <object .*a number"),
    ("step(state=None)", TypeError, "state is None; give the TrainState of `init_state`"),
    ("step(batch=None)", TypeError, r"batch is None; give a Batch of arrays \(rows, tokens\)"),
    ("step(config='small')", TypeError, "config is 'small'; give the GPT2Config"),
    *(
        (f"step(optimizer={wrong})", TypeError, "optimizer is .*; give one of optax")
        for wrong in ("{}", "pandas.Series([1])")
    ),
    ("step(optimizer='adam')", TypeError, "optimizer is 'adam'; give one of optax"),
    ("step(compute_dtype='int32')", TypeError, "compute_dtype is 'int32'; give float32"),
    ("step(accumulate=0)", ValueError, "accumulate is 0; it must be a whole number, at least 1"),
    ("step(accumulate=2)", ValueError, "accumulate is 2, which does not divide a batch of 3 rows"),
    ("step(checkpoint_blocks='no')", TypeError, "checkpoint_blocks is 'no'; give True or False"),
    ("step(mesh='data=2')", TypeError, "mesh is 'data=2'; give one of `make_mesh`, or None"),
    *(
        (f"fit(params={wrong})", TypeError, "params are .*; give the tree that load_params")
        for wrong in ("None", "bot", "['Hi']")
    ),
    ("fit(config='small')", TypeError, "config is 'small'; give the GPT2Config"),
    ("fit(mesh='data=2')", TypeError, "mesh is 'data=2'; give one of `make_mesh`, or None"),
    *(
        (
            f"fit(evaluate=lambda params: {wrong})",
            TypeError,
            "evaluate gave .*; it must give a dict of names and numbers",
        )
        for wrong in ("None", "3.2", "{'valid_loss': None}", "{3: 3.2}")
    ),
    ("fit(sample=lambda params: 'Hi')", TypeError, "sample gave 'Hi'; it must give a list of texts"),
    ("fit(evaluate=3)", TypeError, "evaluate is 3; give a function"),
    ("fit(resume='yes')", TypeError, "resume is 'yes'; give True or False"),
    ("fit(out=3)", TypeError, "out is 3; give the name of a file or folder"),
    ("fit(out='')", ValueError, "out is ''; give the name of a file or folder"),
    (
        "fit(examples=[dg.Example([1, 2], [0, 1]), dg.Example([1, 999], [0, 1])])",
        ValueError,
        "example 1 has the token id 999, outside the model's vocabulary of 320; make the examples with",
    ),
    ("dg.open_shards('/no/such/folder')", ValueError, "/no/such/folder: no such folder; `dialogpt data prepare FILE"),
]

SAME = [
    ("dg.GPT2Config(n_layer=np.int64(2), resid_pdrop=np.float64(0.5))", "dg.GPT2Config(n_layer=2, resid_pdrop=0.5)"),
    ("hash(dg.GPT2Config(n_layer=np.int64(2)))", "hash(dg.GPT2Config(n_layer=2))"),
    ("bot.encode('Hi!')", "bot.encode(['Hi!'])"),
    ("bot.encode([{'role': 'user', 'content': 'Hi!'}])", "bot.encode(['Hi!'])"),
    ("bot.encode(np.array(['Hi!', 'Hello.']))", "bot.encode(['Hi!', 'Hello.'])"),
    ("bot.encode(pandas.Series(['Hi!', 'Hello.']), max_new_tokens=np.int64(9))", "bot.encode(['Hi!', 'Hello.'])"),
    ("dg.Chat(bot, seed=np.uint32(7), turns=pandas.Series(['Hi', 'Hello'])).turns", "['Hi', 'Hello']"),
    ("dg.Chat(bot, max_new_tokens=np.int64(4)).max_new_tokens", "4"),
    ("tokenizer.encode(np.str_('Hi'))", "tokenizer.encode('Hi')"),
    ("tokenizer.encode_batch(pandas.Series(['Hi', 'Hello']))", "tokenizer.encode_batch(['Hi', 'Hello'])"),
    ("tokenizer.decode(np.array([39, 40]))", "tokenizer.decode([39, 40])"),
    ("tokenizer.decode(pandas.Series([39, 40]))", "tokenizer.decode([39, 40])"),
    (
        "dg.Dialogue(np.array(['Hi', 'Hello']), weights=np.array([0, 0.5]))",
        "dg.Dialogue(('Hi', 'Hello'), None, (0, 0.5))",
    ),
    ("dg.Dialogue(messages)", "dg.Dialogue(('Hi', 'Hello'), ('user', 'assistant'))"),
    (
        "dg.make_examples(two, tokenizer, max_length=np.int64(4))[0].tokens_T.tolist()",
        "dg.make_examples(two, tokenizer, max_length=4)[0].tokens_T.tolist()",
    ),
    *(
        (f"shown(dg.make_examples({given}, tokenizer))", "shown(dg.make_examples([['Hi', 'Hello']], tokenizer))")
        for given in (
            "[messages]",
            "np.array([['Hi', 'Hello']])",
            "pandas.Series([['Hi', 'Hello']])",
            "[pandas.Series(['Hi', 'Hello'])]",
            "(turns for turns in [('Hi', 'Hello')])",
        )
    ),
]


@pytest.fixture(scope="module")
def names():
    """What the lines of Python above speak of."""
    bot = fakes.tiny_bot()
    optimizer = optax.adamw(1e-3)
    step = {
        "state": dg.init_state(bot.params, optimizer, jax.random.key(0)),
        "batch": dg.Batch(np.ones((3, 4), np.int32), np.ones((3, 4), np.float32)),
        "config": bot.config,
        "optimizer": optimizer,
    }
    fit = {
        "params": bot.params,
        "config": bot.config,
        "examples": dg.make_examples([["Hi", "Hello"]], bot.tokenizer),
        "options": dg.TrainOptions(steps=1, batch_size=8),
    }
    tokens = {"params": bot.params, "config": bot.config, "tokens_BT": [[1, 2], [3, 4]]}
    loss = {**tokens, "tokens_BT": [[1, 2, 3, 4]] * 2, "weights_BT": np.ones((2, 4))}
    scored = {**tokens, "starts_B": [1, 1], "lengths_B": [2, 2]}
    asked = {**tokens, "lengths_B": [2, 2], "sampling": dg.PAPER, "max_new_tokens": 2, "candidates": 2}
    asked["keys"] = jax.random.split(jax.random.key(0), 2)
    return {
        "loss": lambda **changes: dg.loss(**loss | changes),
        "score": lambda **changes: dg.score(**scored | changes),
        "generate": lambda **changes: dg.generate_candidates(**asked | changes),
        "dg": dg,
        "np": np,
        "jax": jax,
        "optax": optax,
        "pandas": pandas,
        "bot": bot,
        "tokenizer": bot.tokenizer,
        "two": [["Hi", "Hello"]],
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        "nowhere": "/no/such/folder",
        "replaced": lambda **changes: dataclasses.replace(bot.config, **changes),
        "step": lambda **changes: dg.train_step(**step | changes),
        "fit": lambda **changes: dg.fit(**fit | changes),
        "shown": lambda examples: [(e.tokens_T.tolist(), e.weights_T.tolist()) for e in examples],
    }


def tell(line, names, kind, words):
    """Runs a line that must raise, in one line of words, from a `raise` of ours."""
    with pytest.raises(kind) as caught:
        eval(line, {**names, "chat": names["bot"].chat()})
    message = str(caught.value)
    assert re.search(words, message), message
    assert "\n" not in message
    assert len(message) < 250
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert PACKAGE in Path(last.filename).parents, f"raised by {last.filename}"
    assert (last.line or "").startswith("raise ")


@pytest.mark.parametrize("call", HOLES)
def test_what_does_not_belong_into_a_hole_is_one_line(names, call):
    kind, mistakes = MISTAKES[HOLES[call]]
    for wrong, words in mistakes.items():
        if not (call == "dg.make_examples(two, tokenizer, eos={})" and wrong == "None"):
            tell(call.replace("{}", wrong), names, kind, words)


@pytest.mark.parametrize(("line", "kind", "words"), ODD, ids=[line for line, _, _ in ODD])
def test_other_mistakes_are_one_line(names, line, kind, words):
    tell(line, names, kind, words)


@pytest.mark.parametrize(("line", "other"), SAME, ids=[line for line, _ in SAME])
def test_numpys_and_pandas_values_and_messages_are_taken_where_pythons_and_texts_are(names, line, other):
    assert eval(line, dict(names)) == eval(other, dict(names))
