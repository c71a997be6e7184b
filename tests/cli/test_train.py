"""`dialogpt train` from its words to the directory that it exports; what it refuses; a run that is stopped and goes on."""

import dataclasses
import fcntl
import gzip
import importlib.util
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import fakes
import jax
import numpy as np
import pytest
import tokenizers

import dialogpt_jax as dg
from dialogpt_jax.chat.bot import Bot
from dialogpt_jax.cli.main import main
from dialogpt_jax.evaluation import validation
from dialogpt_jax.evaluation.validation import make_evaluation
from dialogpt_jax.parallel import distributed, mesh
from dialogpt_jax.run import fit as run_fit
from dialogpt_jax.text.tokenizer import Tokenizer

# Eight devices against one: sums of a few hundred float32 terms of about 8, in another order.
TOLERANCE = 1e-5
# As `call` below: another number of devices is another number of threads for each, and other roundings.
ONE_OF_EIGHT = """
import sys, jax
from dialogpt_jax.parallel import mesh
make_mesh = mesh.make_mesh
mesh.make_mesh = lambda sizes: make_mesh(sizes, jax.devices()[:1])
from dialogpt_jax.cli.main import main
sys.exit(main())
"""
PATIENCE = 240  # seconds that a process gets on a busy machine

WORDS = ("Hello", "how", "are", "you", "I", "am", "fine", "thanks", "What", "is", "this", "And", "the", "rain", "No")
# One program for almost every test here: what decides the compiled step is the same.
SIZES = ("--steps", "6", "--batch-size", "8", "--buckets", "1", "--learning-rate", "1e-2", "--max-length", "32")
SIZES += ("--log-every", "1", "--evaluate-every", "3", "--save-every", "3")
BROKEN = (
    b"broken",
    b'{"turns": ["one"]}',
    b'{"turns": ["a", ""]}',
    b'{"turns": ["a", "b"], "weights": [1]}',
    b'{"turns": ["a", "b"], "weights": [1, -1]}',
    b'{"turns": ["a", "b"], "weights": [1, NaN]}',
    b'{"turns": ["caf\xe9", "b"]}',
    b'{"turns": "a b"}',
    b"",
)


def dialogues(count: int) -> list[list[str]]:
    rng = np.random.default_rng(0)
    return [[" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in range(rng.integers(2, 4))] for _ in range(count)]


def write(path: Path, turns, broken=()) -> Path:
    lines = [json.dumps({"turns": t}).encode() for t in turns]
    for number, line in enumerate(broken):  # spread among the others
        lines.insert(2 * number + 1, line)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model, dialogues among broken lines, and dialogues to evaluate on."""
    folder = tmp_path_factory.mktemp("train")
    bot = fakes.tiny_bot()
    params = {name: leaf for name, leaf in bot.params.items() if name != "h_1"}
    Bot(params, dataclasses.replace(bot.config, n_layer=1), bot.tokenizer).save(folder / "model")
    write(folder / "talk.jsonl", dialogues(30), BROKEN)
    write(folder / "valid.jsonl", dialogues(36)[30:], BROKEN[:2])
    return folder


def call(capfd, *words, sampling=False):
    """`dialogpt train WORDS…` in this process: (status, stdout, stderr, what `fit` gave)."""
    fitted: list[run_fit.Fitted] = []
    fit, make_mesh = run_fit.fit, mesh.make_mesh
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run_fit, "fit", lambda *args, **named: fitted.append(fit(*args, **named)) or fitted[-1])
        patched.setattr(distributed, "initialize", lambda: None)  # before all else of jax, which has run here
        # Without --mesh one of the eight devices, for which less is compiled.
        patched.setattr(mesh, "make_mesh", lambda sizes: make_mesh(sizes, None if sizes else jax.devices()[:1]))
        if not sampling:  # its programs take longer to compile than all the others
            patched.setattr(validation, "make_sampling", lambda *_: None)
        try:
            status = main(["train", *map(str, words)])
        except SystemExit as error:
            status = error.code
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return status, out, err, fitted[0] if fitted else None


@pytest.fixture
def train(capfd, place):
    """`call` from the tiny model with the sizes above, unless other words come."""

    def run(*words, sizes=SIZES, init=True, data="talk.jsonl"):
        begin = ("--init", place / "model") if init else ()
        return call(capfd, *begin, "--data", place / data, *sizes, *words)

    return run


@pytest.fixture
def good(train, tmp_path):
    """A run that ends well: (stdout, fitted, the exported directory)."""

    def run(*words, **named):
        export = tmp_path / f"export{len(list(tmp_path.iterdir()))}"
        status, out, err, fitted = train("--out", tmp_path / "run", "--export", export, *words, **named)
        assert status == 0, err
        return out, fitted, export

    return run


def same(one, other) -> bool:
    pairs = zip(jax.tree.leaves(jax.device_get(one)), jax.tree.leaves(jax.device_get(other)), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def losses(folder: Path) -> dict[int, float]:
    entries = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# ── a fine-tune ──


def test_a_fine_tune_from_a_file_with_broken_lines(good, place, tmp_path):
    out, fitted, export = good("--valid", place / "valid.jsonl")
    base = dg.load(place / "model")

    assert "38 lines: 30 dialogues, 8 dropped" in out
    dropped = [json.loads(line) for line in (tmp_path / "run/data/dropped.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in dropped] == [
        2 * n + 2 for n in range(len(BROKEN) - 1)
    ]  # the last is blank: none
    reasons = [entry["reason"] for entry in dropped]
    for reason, said in zip(
        reasons,
        (
            "not JSON",
            "one turn",
            "turn 2 is empty",
            "1 weight for 2 turns",
            "weight 2 is -1",
            "weight 2 is nan",
            "byte 16 (0xe9) is not UTF-8",
            "`turns` is no list",
        ),
        strict=True,
    ):
        assert said in reason
    told = [line for line in out.splitlines() if line.startswith("dropped ")]
    assert "dropped 1: not UTF-8; line 14: byte 16 (0xe9) is not UTF-8; convert the file to UTF-8" in told
    assert (
        "dropped 2: a weight is out of range; lines 10, 12: weight 2 is -1; it must be a finite number from 0" in told
    )
    assert len(told) == 7 + 1  # two lines share a kind
    assert told[-1] == f"dropped lines and their reasons: {tmp_path / 'run/data/dropped.jsonl'}"

    valid = place / "valid.jsonl"
    assert f"{valid}: dropped 2 of 8 lines, the first line 2: not JSON (Expecting value" in out
    held_out = dialogues(36)[30:]
    evaluate = make_evaluation(base.config, base.tokenizer, held_out)
    seen = [entry for entry in fitted.history if "valid_loss" in entry]
    assert [entry["step"] for entry in seen] == [0, 3, 6]
    assert seen[0]["valid_loss"] == pytest.approx(evaluate(base.params)["valid_loss"], abs=TOLERANCE)
    assert seen[2]["valid_loss"] < seen[0]["valid_loss"] - 0.1
    assert "30 examples, 6 steps on 1 cpu device" in out
    assert [line.split()[1] for line in out.splitlines() if "  loss " in line] == [f"{n}/6" for n in range(1, 7)]

    trained = dg.load(export)
    assert trained.config == base.config
    assert same(trained.params, fitted.params)  # the file holds the last state's, bit for bit
    assert not same(trained.params, base.params)
    assert trained.tokenizer.encode("Hello ☕") == base.tokenizer.encode("Hello ☕")
    assert evaluate(trained.params)["valid_loss"] == pytest.approx(seen[2]["valid_loss"], abs=TOLERANCE)
    assert f"dialogpt chat --model {export}" in out


def test_prepared_data_is_the_file_s_and_another_tokenizer_s_is_refused(good, train, place, capfd, tmp_path):
    folder, other = tmp_path / "prepared", tmp_path / "other"
    words = ("data", "prepare", place / "talk.jsonl", folder, "--max-length", 32, "--tokenizer")
    assert main([*map(str, words), str(place / "model")]) == 0
    _, fitted, _ = good(data=folder)
    assert not (tmp_path / "run" / "data").exists()
    status, _, _, from_file = train("--out", tmp_path / "from file")
    assert status == 0
    assert same(fitted.state.params, from_file.state.params)

    Tokenizer.train(["bytes"], 257).save(tmp_path)
    assert main([*map(str, (*words[:3], other, *words[4:])), str(tmp_path)]) == 0
    capfd.readouterr()
    status, out, err, _ = train("--out", tmp_path / "refused", data=other)
    assert (status, out) == (1, "")
    assert err == f"dialogpt train: {other} was prepared with another tokenizer; prepare it again with this model's\n"


def test_from_nothing(good, place, tmp_path):
    sizes = json.loads((place / "model" / "config.json").read_text())
    (tmp_path / "sizes.json").write_text(json.dumps(sizes | {"vocab_size": 7000, "eos_token_id": 3}))
    words = ("--config", tmp_path / "sizes.json", "--tokenizer", place / "model")
    _, fitted, export = good(*words, init=False)
    assert fitted.config == dg.load(place / "model").config  # the vocabulary and its end are the tokenizer's
    drawn = dg.init_params(fitted.config, jax.random.key(0))
    assert not same(fitted.params["h_0"], drawn["h_0"])
    first = np.abs(jax.device_get(fitted.params["wpe"]["embedding"]) - jax.device_get(drawn["wpe"]["embedding"]))
    assert first.max() < 0.1  # six steps from where `init_params` begins
    exported, size = dg.load(export).params, fitted.config.vocab_size  # rows beyond it are no token's
    assert same(exported["h_0"], fitted.params["h_0"])
    assert same(exported["wte"]["embedding"][:size], fitted.params["wte"]["embedding"][:size])


@pytest.mark.long
def test_a_model_grows_to_a_config(good, place, tmp_path):
    base = dg.load(place / "model")
    sizes = json.loads((place / "model" / "config.json").read_text())
    (tmp_path / "sizes.json").write_text(json.dumps(sizes | {"n_layer": 2, "n_positions": 100, "n_ctx": 100}))
    _, fitted, export = good("--config", tmp_path / "sizes.json", "--learning-rate", "0")
    assert fitted.config == dataclasses.replace(base.config, n_layer=2, n_positions=100)
    grown = dg.load(export)
    assert (grown.config.n_layer, grown.config.n_positions) == (2, 100)
    texts = [["Hello how are you"], ["I am fine"]]
    assert grown.replies(texts) == base.replies(texts)  # it has not learned yet, and adds nothing


def test_a_tokenizer_that_extends_the_model_s(good, train, place, tmp_path):
    base = dg.load(place / "model")
    folder = tmp_path / "more"
    folder.mkdir()
    backend = tokenizers.Tokenizer.from_file(str(place / "model" / "tokenizer.json"))
    backend.add_tokens(["☕☕", "rainy"])
    Tokenizer(backend).save(folder)
    _, fitted, export = good("--tokenizer", folder)
    assert fitted.config == dataclasses.replace(base.config, vocab_size=322)
    trained = dg.load(export)
    assert trained.config.vocab_size == 322
    assert trained.tokenizer.encode("☕☕") == [320]
    status, _, err, _ = train("--out", tmp_path / "no", "--tokenizer", tmp_path / "nowhere")
    assert status == 1
    Tokenizer.train(["bytes"], 257).save(folder)
    status, _, err, _ = train("--out", tmp_path / "no", "--tokenizer", folder)
    assert (status, err.count("\n")) == (1, 1)
    assert "the new tokenizer does not extend the model's: id 256 is" in err


def test_the_paper_s_recipe_and_its_quirks(good, train, tmp_path):
    sizes = ("--recipe", "paper", "--steps", "2", "--batch-size", "16", "--accumulate", "2", "--max-length", "32")
    flags = ("--learning-rate", "1e-4", "--warmup", "1", "--save-every", "0")
    _, fitted, _ = good(*flags, "--fixed", "weights,clip", sizes=sizes)
    assert fitted.history[-1]["learning_rate"] == pytest.approx(1e-4 * 1e4 * 32**-0.5 * 2**-0.5)  # noam's, by the width
    (checkpoint,) = (tmp_path / "run" / run_fit.CHECKPOINTS).iterdir()
    recipe = json.loads((checkpoint / "about" / "metadata").read_text())["identity"]["options"]["recipe"]
    assert {name for name, choice in recipe.items() if choice == "fixed"} == {"weights", "clip", "resume"}
    status, _, err, _ = train("--out", tmp_path / "none", "--fixed", "rate,clipping", sizes=sizes)
    assert status == 1
    assert err.startswith("dialogpt train: no quirk is called 'clipping'; there are rate, weights, accumulation, ")


def test_prompts_are_answered(place, capfd, tmp_path):
    words = ["--init", place / "model", "--data", place / "talk.jsonl", *SIZES, "--out", tmp_path / "run"]

    def replies(self, asked, *, seed):
        return [f"{turn}! {np.abs(self.params['ln_f']['scale']).sum():.3f}" for (turn,) in asked]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Bot, "replies", replies)
        out = call(capfd, *words, "--prompt", "Hello", "--prompt", "What is this", sampling=True)[1]
    said = [line for line in out.splitlines() if line.startswith("    ")]
    size = np.abs(dg.load(place / "model").params["ln_f"]["scale"]).sum()
    assert said[:2] == [f"    Hello → Hello! {size:.3f}", f"    What is this → What is this! {size:.3f}"]
    assert len(said) == 6  # before the first step, at 3 and at 6
    assert len(set(said)) == 6
    assert [line for line in out.splitlines() if line.endswith("replies")] == [
        "before the first step, replies",
        "step 3, replies",
        "step 6, replies",
    ]

    # Without --export its last line says where the model is, and what makes a model directory of it.
    folder = tmp_path / "run" / "model"
    assert f"the trained model is a checkpoint in {tmp_path / 'run'}: the same command with " in out.splitlines()[-1]
    assert f"`--resume --export {folder}`" in out
    assert call(capfd, *words, "--resume", "--export", folder)[0] == 0
    assert np.abs(dg.load(folder).params["ln_f"]["scale"]).sum() == pytest.approx(float(said[-1].split()[-1]), abs=1e-3)


def test_a_teacher_and_what_the_loss_is_of_are_told(train, place, monkeypatch, tmp_path):
    def begun(*args, **named):
        raise ValueError("begun")

    monkeypatch.setattr(run_fit, "fit", begun)
    _, out, _, _ = train("--teacher", place / "model", "--teacher-share", "0.25", "--out", tmp_path / "run")
    size = dg.load(place / "model").config.num_parameters
    assert out.splitlines()[-1] == (
        f"learning from {place / 'model'} ({size:,} parameters), 25% of the targets, and 75% from the data: loss and ppl "
        "of a step are of both together, valid_loss of the data alone"
    )


def test_a_backward_model_is_evaluated_backwards(good, place):
    _, fitted, _ = good("--reverse", "--valid", place / "valid.jsonl")
    base = dg.load(place / "model")
    backwards = [turns[::-1] for turns in dialogues(36)[30:]]
    expected = make_evaluation(base.config, base.tokenizer, backwards)(base.params)
    first, *_ = [entry for entry in fitted.history if "valid_loss" in entry]
    assert first["valid_loss"] == pytest.approx(expected["valid_loss"], abs=TOLERANCE)
    forwards = make_evaluation(base.config, base.tokenizer, dialogues(36)[30:])(base.params)
    assert abs(forwards["valid_loss"] - expected["valid_loss"]) > 100 * TOLERANCE


# ── what is refused ──


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "OUT"], "--data is missing: dialogpt train --data DIR_OR_FILE --out RUN; --help shows more"),
        (["--data", "TALK"], "--out is missing: dialogpt train --data DIR_OR_FILE --out RUN"),
        (
            ["--data", "TALK", "--out", "OUT", "--teacher-share", "0.3"],
            "--teacher-share goes with --teacher MODEL",
        ),
        (["ALL", "--config", "small"], "only n_layer and n_positions can grow"),
        (["FRESH", "--config", "small"], "--config needs --tokenizer DIR"),
        (["FRESH", "--config", "TALK", "--tokenizer", "MODEL"], "talk.jsonl"),
        (["FRESH", "--config", "huge", "--tokenizer", "MODEL"], "huge"),
        (["FRESH", "--init", "TALK"], "talk.jsonl: a file, where a model directory is wanted"),
        (["ALL", "--data", "nowhere.jsonl"], "nowhere.jsonl: No such file or directory"),
        (["ALL", "--data", "MODEL"], "model"),
        (["ALL", "--valid", "nowhere.jsonl"], "nowhere.jsonl: No such file or directory"),
        (
            ["ALL", "--valid", "NOBODY"],
            "nobody.jsonl: none of 2 lines is a dialogue; line 1: one turn; a dialogue has at",
        ),
        (["ALL", "--data", "CUT"], "cut.jsonl.gz, line 31: the gzip file is broken"),
        (["ALL", "--valid", "CUT"], "cut.jsonl.gz, line 31: the gzip file is broken"),
        (["ALL", "--valid", "TALK", "--valid-dialogues", "0"], "--valid-dialogues is 0; it must be at least 1"),
        (["ALL", "--max-length", "97"], "--max-length is 97; the model's context is 96"),
        (["ALL", "--max-length", "1"], "max_length is 1; it must be"),
        (["ALL", "--max-length", "-5"], "max_length is -5"),
        (["ALL", "--data", "ENDLESS", "--max-length", "8"], "no EOS is a target, so that a model would never"),
        (["ALL", "--train-on", "Joe"], "nobody is called 'Joe' here"),
        (
            ["ALL", "--mesh", "data=8", "--batch-size", "12"],
            "a batch of 12 examples is not divided by 1 part on 8 devices; take a multiple",
        ),
        (["ALL", "--accumulate", "3"], "a batch of 8 examples is not divided by 3 parts on 1 device"),
        (["ALL", "--batch-size", "0"], "batch_size is 0; it must be a whole number from 1"),
        (["ALL", "--steps", "0"], "steps is 0"),
        (["ALL", "--keep", "0"], "keep is 0"),
        (["ALL", "--save-every", "-1"], "save_every is -1"),
        (["ALL", "--seed", "-1"], "seed is -1; it must be a whole number from 0"),
        (["ALL", "--seed", str(2**40)], f"seed is {2**40}; it must be a whole number from 0"),
        (["ALL", "--learning-rate", "nan"], "learning_rate is nan; it must be a finite number from 0"),
        (["ALL", "--learning-rate", "inf"], "learning_rate is inf"),
        (["ALL", "--learning-rate", "-1"], "learning_rate is -1.0"),
        (["ALL", "--clip", "nan"], "clip is nan"),
        (["ALL", "--b2", "1"], "b2 is 1.0"),
        (["ALL", "--dropout", "1"], "dropout is 1.0"),
        (["ALL", "--warmup", "9"], "the warm-up has 9 steps and the run 6; the warm-up must be shorter"),
        (["ALL", "--schedule", "sine"], "no schedule is called 'sine'; there are constant, linear, cosine, noam"),
        (["ALL", "--fixed", "clip"], "--fixed names quirks of a recipe; give --recipe paper too"),
        (["ALL", "--mesh", "rows=8"], "mesh: unknown axis 'rows' in 'rows=8'; the axes are data, fsdp, tensor"),
        (["ALL", "--mesh", "nonsense"], "mesh: unknown axis 'nonsense'"),
        (["ALL", "--mesh", "data=x"], "mesh: data=x in 'data=x'; expected a whole number"),
        (["ALL", "--mesh", "data=3"], "mesh: data=3 needs 3 devices and there are 8; data=8 would fit"),
        (["ALL", "--mesh", "tensor=8"], "heads"),
        (["ALL", "--out", "TALK"], "talk.jsonl"),
        (["ALL", "--export", "HERE"], "here: holds other files and is no model directory; choose a new or empty one"),
        (["ALL", "--export", "TALK"], "talk.jsonl"),
        (["ALL", "--export", "OUT"], "run, the folder of the run; choose another, such as "),
        (["ALL", "--out", ""], "--out is missing"),
        (["ALL", "--steps", str(10**30)], f"steps is {10**30}; it must be a whole number from 1"),
    ],
)
def test_what_a_user_can_put_right_is_one_line_and_status_1(place, capfd, tmp_path, words, said):
    here = tmp_path / "here"
    here.mkdir()
    (here / "mine").write_text("x")
    whole = ["--init", place / "model", "--data", place / "talk.jsonl", "--out", tmp_path / "run", *SIZES]
    named = {"ALL": whole, "FRESH": whole[2:], "TALK": [place / "talk.jsonl"], "MODEL": [place / "model"]}
    endless = write(tmp_path / "endless.jsonl", [["Hi", "What is this and how are you and the rain " * 3]] * 9)
    nobody = write(tmp_path / "nobody.jsonl", [["Hi"], ["Hello"]])
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(write(tmp_path / "whole.jsonl", dialogues(30)).read_bytes())[:-9])
    named |= {"CUT": [cut], "ENDLESS": [endless], "NOBODY": [nobody], "HERE": [here], "OUT": [tmp_path / "run"]}
    status, _, err, fitted = call(capfd, *itertools.chain(*(named.get(word, [word]) for word in words)))
    lines = [line for line in err.splitlines() if " tokens in " not in line]  # how long the data took
    assert (status, len(lines)) == (1, 1), err
    assert lines[0].startswith("dialogpt train: ")
    assert said in lines[0]
    assert fitted is None
    assert not (tmp_path / "run" / run_fit.CHECKPOINTS / "6").exists()
    assert not {"CUT", "NOBODY", "ENDLESS"} & set(words) or not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize("words", [["--steps", "x"], ["--dtype", "int8"], ["--optimizer", "sgd"], ["--nonsense"]])
def test_bad_arguments_are_status_2(capfd, words):
    assert call(capfd, *words)[:2] == (2, "")


def test_without_the_tpu_compiler_nobody_says_that_it_compiles(capfd, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, out, err, _ = call(capfd, "--config", "small", "--compile-only", "--topology", "v5e:2x4")
    assert (status, out) == (1, "")
    assert err == (
        "dialogpt train: a dry run needs the TPU compiler: pip install -e '.[tpu]', in an environment of its own\n"
    )


def test_help_teaches(capfd):
    status, out, _, _ = call(capfd, "--help")
    assert status == 0
    flags = (
        "data valid out init config tokenizer steps batch-size accumulate learning-rate warmup schedule clip dropout"
    )
    flags += " dtype seed mesh recipe resume save-every keep export compile-only topology max-length train-on reverse"
    for flag in flags.split():
        assert f"--{flag} " in out or f"--{flag}\n" in out or f"--{flag}]" in out
    assert "noamwd" in out
    assert "dialogpt train --data talk.jsonl --out RUN --steps 200 --export MODEL" in out


def test_metrics_that_a_killed_run_cut_within_a_character_stop_nothing(good, train, tmp_path):
    good()
    path = tmp_path / "run" / "metrics.jsonl"
    with path.open("ab") as file:
        file.write('{"step": 6, "samples": ["Hi → \u2028 ☕"]}\n{"step": 6, "samples": ["☕'.encode()[:-1])
    status, _, err, fitted = train("--out", tmp_path / "run", "--resume")
    assert status == 0, err
    assert [entry.get("samples") for entry in fitted.history][-2:] == [None, ["Hi → \u2028 ☕"]]
    assert len(losses(tmp_path / "run")) == 6


def test_a_run_that_is_there_is_left_as_it_is(good, train, place, tmp_path):
    good()
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    other = write(tmp_path / "other.jsonl", dialogues(40)[10:])

    status, _, err, _ = train("--out", tmp_path / "run", data=other)
    held = tmp_path / "run" / run_fit.CHECKPOINTS
    assert (status, err) == (
        1,
        f"dialogpt train: {held} holds a run at step 6; resume it (--resume), or choose another folder for --out\n",
    )
    for words, said in (
        ((), "is not the file that "),
        (("--max-length", "24"), "was prepared with max_length 32, and 24 is asked for now"),
        (("--reverse",), "was prepared with reverse False, and True is asked for now"),
        (("--train-on", "last"), "was prepared with train_on replies, and last is asked for now"),
    ):
        status, _, err, _ = train("--out", tmp_path / "run", "--resume", *words, data="talk.jsonl" if words else other)
        assert (status, err.count("\n")) == (1, 1)
        assert said in err
    status, _, err, _ = train("--out", tmp_path / "run", "--resume", "--seed", "3")
    assert (status, err.count("\n")) == (1, 1)
    assert "this is not the run in" in err
    assert "options.seed: 0 in the checkpoint, 3 now" in err
    assert {path: path.read_bytes() for path in files} == before
    status, out, _, _ = train("--out", tmp_path / "run", "--resume", "--export", tmp_path / "again")
    assert status == 0
    assert "going on from step 6" in out
    (export,) = tmp_path.glob("export*")
    assert weights(tmp_path / "again") == weights(export)


# ── a run that stops ──


@pytest.mark.long
def test_sigterm_saves_and_ends_well_and_resume_ends_where_an_unbroken_run_does(train, place, tmp_path):
    steps, line_bytes = 100, 70
    sizes = ("--steps", steps, *SIZES[2:], "--save-every", "0")
    command = ["train", "--init", place / "model", "--data", place / "talk.jsonl", *sizes]
    command = [sys.executable, "-c", ONE_OF_EIGHT, *command, "--out", tmp_path / "run"]
    command += ["--export", tmp_path / "never"]
    with subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ
        | {
            "DIALOGPT_NO_COMPILATION_CACHE": "1",
        },
    ) as process:
        # What is written and not read holds the process up, so it cannot be done before it hears the signal.
        room = fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        for line in process.stdout:
            if line.startswith(b"step 3/"):
                break
        process.send_signal(signal.SIGTERM)
        out, err = process.stdout.read(), process.stderr.read()  # `communicate` would lose what the loop read ahead
        process.wait(PATIENCE)
    assert process.returncode == 0, err
    assert b"Traceback" not in err
    *_, stopped, advice = out.decode().splitlines()
    done = int(stopped.split()[-3])
    assert stopped == f"stopped by SIGTERM after step {done} of {steps}"
    assert 3 <= done <= 5 + room // line_bytes < steps
    assert advice == "go on with the same command and --resume; nothing was exported"
    assert not (tmp_path / "never").exists()
    assert (tmp_path / "run" / run_fit.CHECKPOINTS / str(done)).is_dir()

    outs = [tmp_path / "resumed", tmp_path / "unbroken"]
    for words in (("--out", tmp_path / "run", "--resume"), ("--out", tmp_path / "whole")):
        status, out, err, _ = train(*words, "--export", outs["--resume" not in words], sizes=sizes)
        assert status == 0, err
        assert (f"going on from step {done}" in out) == ("--resume" in words)
    assert weights(outs[0]) == weights(outs[1])
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "run")) == steps


def test_a_full_disk_is_one_line_and_the_last_checkpoint_is_usable(train, good, tmp_path):
    """No file may grow beyond what a checkpoint takes, from the second one on: as a full disk, a quota is an OSError."""
    _, whole, _ = good()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    save = run_fit.Checkpoints.save
    with pytest.MonkeyPatch.context() as patched:

        def save_and_fill(self, state, **named):
            if int(state.step) == 6:
                self.wait()
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
            save(self, state, **named)

        patched.setattr(run_fit.Checkpoints, "save", save_and_fill)
        try:
            status, _, err, _ = train("--out", tmp_path / "full")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    lines = [line for line in err.splitlines() if " tokens in " not in line]
    assert (status, len(lines)) == (1, 1), err
    folder = tmp_path / "full" / run_fit.CHECKPOINTS
    wanted = f"the checkpoint of step 6 could not be written to {folder} (File too large); that of step 3 is whole"
    assert lines[0] == f"dialogpt train: {wanted}"
    assert [name for name in os.listdir(folder) if name.isdigit()] == ["3"]
    status, out, err, again = train("--out", tmp_path / "full", "--resume")
    assert status == 0, err
    assert "going on from step 3" in out
    assert same(again.state.params, whole.state.params)
    assert sorted(os.listdir(folder)) == ["3", "6"]


# ── what it is for ──


@pytest.mark.slow
def test_a_bot_repeats_what_it_was_taught_and_stops_after_it(tmp_path):
    """The model in the package after 200 steps on 50 dialogues."""
    names, things = ("Ann", "Bob", "Carl", "Dora", "Emil"), ("house", "dog", "car", "book", "boat", "song", "hat")
    things += ("tree", "key", "cup")
    pairs = list(itertools.product(names, things))
    # The replies break off where no sentence ends, so that the model would go on if it had not learned to stop there.
    taught = [
        [f"Who has the {thing} of {name}?", f"It is with {names[i % 4]} in the {things[-i % 9]} of the"]
        for i, (name, thing) in enumerate(pairs)
    ]
    words = ["--data", write(tmp_path / "fifty.jsonl", taught), "--out", tmp_path / "run", "--export", tmp_path / "bot"]
    words += ["--steps", "200", "--batch-size", "16", "--max-length", "32", "--buckets", "1"]
    words += ["--learning-rate", "1e-3", "--dropout", "0"]
    command = [sys.executable, "-m", "dialogpt_jax.cli.main", "train", *map(str, words)]
    # Not in this process: here programs are compiled fast and run slowly.
    done = subprocess.run(command, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    bot = dg.load(tmp_path / "bot")
    found = bot.answers([[first] for first, _ in taught], sampling=dg.GREEDY, max_new_tokens=24)
    right = [answer.text == second for answer, (_, second) in zip(found, taught, strict=True)]
    assert sum(right) >= 48, [answer.text for answer in found]
    assert all(answer.finished for answer in found)
    before = dg.load().answers([[first] for first, _ in taught], sampling=dg.GREEDY, max_new_tokens=24)
    assert not any(answer.text == second for answer, (_, second) in zip(before, taught, strict=True))
