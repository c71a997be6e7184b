"""The words of the command line: what is misspelt, what is asked for help, and where a flag's default comes from."""

import dataclasses
import importlib
import inspect
import os
import re
import subprocess
import sys
from typing import Literal

import pytest

import dialogpt_jax as dg
from dialogpt_jax.chat.setting_words import SETTINGS, settings_of
from dialogpt_jax.cli import common, flags
from dialogpt_jax.cli.main import COMMANDS, main, make_dialogpt
from dialogpt_jax.replies.settings import DEFAULT_MAX_NEW_TOKENS, DEFAULT_SAMPLING
from dialogpt_jax.run.options import TrainOptions


@pytest.mark.parametrize(
    ("words", "usage", "said"),
    [
        (["rply", "Hi"], "Usage: dialogpt COMMAND", "dialogpt: no command is called 'rply'; did you mean reply?"),
        (["zzz"], "Usage: dialogpt COMMAND", "dialogpt: no command is called 'zzz'; there are chat, reply, selfchat"),
        (
            ["reply", "--temprature", "1", "Hi"],
            "Usage: dialogpt reply [OPTIONS] TEXT...",
            "Did you mean --temperature?",
        ),
        (["train", "--bach-size", "1"], "Usage: dialogpt train --data DIR_OR_FILE", "Did you mean --batch-size?"),
        (["train", "--dry-run", "--data", "x"], "Usage: dialogpt train", "--dry-run. A dry run is --compile-only: it"),
        (["data", "chek", "x"], "Usage: dialogpt data COMMAND", 'Unknown command "chek". Did you mean "check"?'),
        (["data", "prepare", "x"], "Usage: dialogpt data prepare [OPTIONS] FILE... DIR", "the folder DIR to write"),
        (
            ["reply"],
            "Usage: dialogpt reply [OPTIONS] TEXT...",
            "dialogpt reply: no text to reply to; give a turn, or `-`",
        ),
        (["reply", "--candidates", "1.5", "Hi"], "Usage: dialogpt reply", "'1.5' is no whole number"),
        (["reply", "--top-p", "high", "Hi"], "Usage: dialogpt reply", "'high' is no number"),
        (
            ["convert", "a", "b", "--to", "pt"],
            "Usage: dialogpt convert [OPTIONS] SRC DST",
            'Choose from: "directory", "pkl"',
        ),
        (["eval", "--raw", "--clean", "--hypotheses", "h"], "Usage: dialogpt eval", "give one of --raw and --clean"),
        (["chat", "\x1b]0;x\x07"], "Usage: dialogpt chat [OPTIONS]", "x1b]0;x"),
        (["reply", "--candidates", "-", "Hi"], "Usage: dialogpt reply", "'-' is no whole number"),
        (["reply", "--top-p", "-", "Hi"], "Usage: dialogpt reply", "'-' is no number"),
        (["reply", "--dtype", "-", "Hi"], "Usage: dialogpt reply", 'Invalid value "-" for --dtype.'),
        (["reply", "--model", "-", "Hi"], "Usage: dialogpt reply", "`-` stands for turns from standard input, and"),
        (["reply", "--seed", "-", "Hi"], "Usage: dialogpt reply", "`-` stands for turns from standard input, and"),
        (["reply", "--data", "-"], "Usage: dialogpt reply", "`-` stands for turns from standard input, and"),
        (["data", "check", "-"], "Usage: dialogpt data check", "Unknown option: -."),
        (["inspect", "-"], "Usage: dialogpt inspect", "Unknown option: -."),
        (["-"], "Usage: dialogpt COMMAND", "no command is called '-'; there are chat"),
        (["reply", "-x", "-", "Hi"], "Usage: dialogpt reply", "Unknown option: -x."),
    ],
)
def test_a_mistake_is_told_behind_the_usage_of_the_command(words, usage, said, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(usage)
    assert lines[1].startswith("Try `dialogpt")
    assert said in lines[2]
    assert err.isprintable() or all(c == "\n" or c.isprintable() for c in err)


def test_without_a_command_there_is_help_and_status_2(capsys):
    for words in ([], ["data"]):
        assert main(words) == 2
        assert "Commands" in capsys.readouterr().out


def test_the_version_is_the_package_s(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{dg.__version__}\n"


WITHOUT_JAX = """
import sys
from dialogpt_jax.cli.main import main
for words in {}:
    main(words)
    if "jax" in sys.modules:
        sys.exit(" ".join(words))
"""
EVERY = [*([name] for name in COMMANDS), ["data", "check"], ["data", "prepare"], ["data", "pairs"], ["data", "reddit"]]


def test_help_and_wrong_words_import_no_jax():
    """It takes most of a start, and a person who asks for help waits."""
    asked = [["--help"], ["--version"], ["rply"], ["reply"], *([*words, "--help"] for words in EVERY)]
    done = subprocess.run([sys.executable, "-c", WITHOUT_JAX.format(asked)], capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"Examples:") == len(EVERY) + 1


NOT_FOR_A_REPLY = {"optax", "orbax", "grain", "huggingface_hub", "matplotlib", "pandas", "torch"}


def test_a_bot_is_loaded_without_what_training_and_other_models_need():
    modules = "sys, dialogpt_jax.cli.reply, dialogpt_jax.chat.loading, dialogpt_jax.decoding.generate"
    code = f"import {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=240)
    found = set(done.stdout.decode().split())
    assert "jax" in found, done.stderr
    assert NOT_FOR_A_REPLY.isdisjoint(found)


COLLECTIONS = """
import atexit, gc
from dialogpt_jax.cli import main
before, found = gc.get_threshold(), []
gc.callbacks.append(lambda phase, info: found.append(phase))
def start():
    made = [[] for _ in range(main.OBJECTS_OF_A_START - 50_000)]
    begun = len(found)
    made += [[] for _ in range(100_000)]
    print(begun, found[:2], gc.get_threshold() == before, len(gc.callbacks))
main.main = start
atexit.register(lambda: print(gc.get_freeze_count() > 0))
main.run_process()
"""


def test_a_start_and_an_end_are_not_searched_for_garbage_and_what_comes_between_is():
    done = subprocess.run([sys.executable, "-c", COLLECTIONS], capture_output=True, timeout=60)
    assert done.stdout.decode() == "0 ['start', 'stop'] True 1\nTrue\n", done.stderr


@pytest.mark.parametrize("words", EVERY)
def test_help_stands_in_panels_with_examples(words, capsys):
    assert main([*words, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: dialogpt {' '.join(words)}")
    assert "╭─" in out
    _, _, examples = out.partition("\nExamples:\n")
    lines = examples.splitlines()
    assert any(line.startswith("  dialogpt ") for line in lines)
    assert all(not line or line.startswith("  ") for line in lines), lines  # none is wrapped
    assert re.findall(r"--[\w-]+ +((?:STR|CHOICE|INT|FLOAT|BOOL)\b.*)", out) == []
    assert "None]" not in out
    assert "[default: ]" not in out


def test_completion_knows_commands_flags_and_choices():
    script = make_dialogpt().generate_completion(shell="bash")
    for word in (*COMMANDS, "--max-new-tokens", "prepare", "bfloat16", "--checkpoint-blocks"):
        assert word in script
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_completion_is_installed_for_the_shell(tmp_path):
    env = os.environ | {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "SHELL": "/bin/bash"}
    command = [sys.executable, "-m", "dialogpt_jax.cli.main", "--install-completion", "--shell", "bash"]
    done = subprocess.run(command, env=env, capture_output=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, b"")
    assert any("prepare" in path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def test_a_flag_that_is_not_said_changes_nothing():
    assert set(vars(common.SamplingFlags()).values()) == {None}
    assert common.sampling_of(common.SamplingFlags()) == DEFAULT_SAMPLING
    assert common.ReplyFlags().max_new_tokens == DEFAULT_MAX_NEW_TOKENS
    assert common.seed_of(common.ReplyFlags().seed) == inspect.signature(dg.Bot.reply).parameters["seed"].default
    changed = common.sampling_of(common.SamplingFlags(temperature=0.5, top_k=0, top_p=1, no_repeat_ngram=0))
    off = {"top_k": None, "top_p": None, "no_repeat_ngram": None}
    assert changed == dataclasses.replace(DEFAULT_SAMPLING, temperature=0.5, **off)


ALL_FLAGS = """
    --temperature 0.5 --top-k 5 --top-p 0.6 --min-p 0.1 --top-n-sigma 2 --typical-p 0.7 --epsilon-cutoff 0.01
    --eta-cutoff 0.02 --xtc-probability 0.5 --xtc-threshold 0.2 --repetition-penalty 1.2 --presence-penalty 0.3
    --frequency-penalty 0.4 --penalty-scope own --no-repeat-ngram 4 --ngram-scope context --dry-multiplier 0.8 --dry-base 2
    --dry-allowed-length 3 --dry-range 64 --dry-scope reply --dry-breakers . --dry-breakers , --min-new-tokens 2
    --decay-start 5 --decay-factor 1.1 --logit-bias well=-2.5 --logit-bias a=b=1 --bad-words ass --bad-words -
    --suppress-tokens 3 --suppress-tokens 4 --begin-suppress-tokens 5 --forced-tokens 6 --forced-tokens 7 --forced-end
    --stop bye
""".split()  # noqa: SIM905
ALL_SAID = dg.Sampling(
    temperature=0.5, top_k=5, top_p=0.6, min_p=0.1, top_n_sigma=2, typical_p=0.7, epsilon_cutoff=0.01, eta_cutoff=0.02,
    xtc_probability=0.5, xtc_threshold=0.2, repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.4,
    penalty_scope="own", no_repeat_ngram=4, ngram_scope="context", dry_multiplier=0.8, dry_base=2, dry_allowed_length=3,
    dry_range=64, dry_scope="reply", dry_breakers=[".", ","], min_new_tokens=2, decay_start=5, decay_factor=1.1,
    logit_bias={"well": -2.5, "a=b": 1}, bad_words=["ass", "-"], suppress_tokens=[3, 4], begin_suppress_tokens=[5],
    forced_tokens=[6, 7], forced_end=True, stop_strings=["bye", "see you"],
)  # fmt: skip


@pytest.mark.parametrize("command", ["reply", "chat", "eval"])
def test_every_field_of_a_sampling_is_a_flag_and_a_setting_but_functions(command):
    app = importlib.import_module(f"dialogpt_jax.cli.{command}").app
    words = [flags.HYPHEN if word == "-" else word for word in [*ALL_FLAGS, "--stop", "see you"]]
    _, bound, _ = app.parse_args(words, exit_on_error=False)
    assert common.sampling_of(bound.arguments["sampling"]) == ALL_SAID
    fields = {field.name for field in dataclasses.fields(dg.Sampling)} - {"processors"}
    assert fields == {field.name for field in dataclasses.fields(type(bound.arguments["sampling"]))} == set(SETTINGS)
    unset = [name for name in fields if getattr(ALL_SAID, name) == getattr(DEFAULT_SAMPLING, name)]
    assert unset == []


def test_settings_of_a_chat_are_words():
    said = """temperature 0.5 decay_start 5 decay_factor 1.1 forced_end yes dry_scope own"""
    values = {"temperature": 0.5, "decay_start": 5.0, "decay_factor": 1.1, "forced_end": True}
    assert settings_of(said) == {**values, "dry_scope": "own"}
    assert settings_of("xtc_probability none decay_start none") == dict.fromkeys(
        ("xtc_probability", "xtc_threshold", "decay_start", "decay_factor")
    )
    assert settings_of('top_k=4 stop_strings "see you" bye') == {"top_k": 4.0, "stop_strings": ["see you", "bye"]}
    assert settings_of("suppress_tokens 3 4") == {"suppress_tokens": [3, 4]}
    assert settings_of("logit_bias well=-2 a=b=1") == {"logit_bias": {"well": -2.0, "a=b": 1.0}}
    assert settings_of("bad_words none") == {"bad_words": []}
    assert settings_of("seed random top_k 3") == {"seed": None, "top_k": 3.0}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("bad_words", "bad_words has no value; /settings NAME VALUE, or NAME=VALUE"),
        ("temprature 1", "temprature is no setting; did you mean temperature?"),
        ("forced_end maybe", "forced_end: 'maybe' is not `yes` or `no`"),
        ("suppress_tokens 3 x", "suppress_tokens: 'x' is not a whole number"),
        ("logit_bias well", "logit_bias is 'well'; give TEXT=N, such as well=-2"),
        ("logit_bias =3", "logit_bias is '=3'; give TEXT=N"),
        (
            "stop_strings don't",
            "stop_strings don't: a quotation has no end; a text with an apostrophe stands in double",
        ),
        ("processors f", "processors is no setting; there are temperature, "),
    ],
)
def test_a_setting_that_is_none_is_one_line(words, said):
    with pytest.raises(ValueError, match="^" + re.escape(said)):
        settings_of(words)


def test_every_field_of_the_training_options_is_a_flag(capsys):
    main(["train", "--help"])
    out = capsys.readouterr().out
    shown = set(re.findall(r"--([\w-]+)", out))
    assert {field.name.replace("_", "-") for field in dataclasses.fields(TrainOptions)} <= shown


def test_flags_of_a_dataclass_have_its_words_and_defaults():
    @dataclasses.dataclass(frozen=True)
    class Options:
        """Some.

        Attributes:
          rows: of a batch, which
            one device takes.
          share, rest: between 0 and 1.
          name: of somebody (Ann).
          loud: in capitals.
          kind: one of two.
        """

        rows: int = 3
        share: float | None = None
        rest: float = 0.5
        name: str | None = None
        loud: bool = False
        kind: str = "a"

    made = flags.flags_of(Options, flags.OPTIONS, without=("loud",), types={"kind": Literal["a", "b"]})
    assert [field.name for field in dataclasses.fields(made)] == ["rows", "share", "rest", "name", "kind"]
    assert flags.said(made(rows=4, name="Bob")) == {"rows": 4, "name": "Bob"}
    help_of = {field.name: field.type.__metadata__[0].help for field in dataclasses.fields(made)}
    assert help_of == {
        "rows": "of a batch, which one device takes (3)",
        "share": "between 0 and 1",
        "rest": "between 0 and 1 (0.5)",
        "name": "of somebody (Ann)",
        "kind": "one of two (a)",
    }


def test_a_flag_that_is_said_twice_has_the_last_value_and_a_list_both():
    from dialogpt_jax.cli import eval, train

    _, bound, _ = train.app.parse_args(
        [
            "--steps",
            "2",
            "--steps",
            "5",
            "--prompt",
            "a",
            "--prompt",
            "b",
            "--learning-rate",
            "1",
            "--learning-rate",
            "0",
        ]
    )
    assert flags.said(bound.arguments["how"]) == {"steps": 5, "learning_rate": 0}
    assert bound.arguments["where"].prompt == ["a", "b"]
    _, bound, _ = eval.app.parse_args(["--hypotheses", "h", "--references", "a", "b", "--compare", "c"])
    assert (bound.arguments["files"].references, bound.arguments["files"].compare) == (["a", "b"], "c")
