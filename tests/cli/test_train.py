"""`dialogpt train` from its words to the directory that it exports; what it refuses; a run that is stopped and goes on."""

import dataclasses
import json
from pathlib import Path

import fakes
import jax
import numpy as np
import pytest

import dialogpt_jax as dg
from dialogpt_jax.chat.bot import Bot
from dialogpt_jax.cli.main import main
from dialogpt_jax.text.tokenizer import Tokenizer
from dialogpt_jax.training import loop, validation
from dialogpt_jax.training.validation import make_evaluation

# Eight devices against one: sums of a few hundred float32 terms of about 8, in another order.
TOLERANCE = 1e-5
PATIENCE = 240  # seconds that a process gets on a busy machine

WORDS = ["Hello", "how", "are", "you", "I", "am", "fine", "thanks", "What", "is", "this", "Nothing", "much", "And", "the", "rain", "No", "not", "for", "me"]
# One program for almost every test here: what decides the compiled step is the same.
SIZES = ("--steps", "6", "--batch-size", "8", "--buckets", "1", "--learning-rate", "1e-2", "--max-length", "32")
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
    return [
        [" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in range(rng.integers(2, 4))] for _ in range(count)
    ]


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
    write(folder / "valid.jsonl", dialogues(36)[30:])
    return folder


def call(capfd, *words):
    """`dialogpt train WORDS…` in this process: (status, stdout, stderr, what `fit` gave)."""
    fitted: list[loop.Fitted] = []
    fit = loop.fit
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DIALOGPT_NO_COMPILATION_CACHE", "1")
        patched.setattr(loop, "fit", lambda *args, **named: fitted.append(fit(*args, **named)) or fitted[-1])
        # Its programs take longer to compile than all the others; one test below has the real one.
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
    out, fitted, export = good("--valid", place / "valid.jsonl", "--log-every", "1", "--evaluate-every", "3")
    base = dg.load(place / "model")

    assert "39 lines: 30 dialogues, 9 dropped" in out
    table = out[out.index("dropped because") :].splitlines()[1:9]
    numbers = [line.split("  ")[-2].strip() for line in table]
    dropped = [json.loads(line) for line in (tmp_path / "run/data/dropped.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in dropped] == [2 * n + 2 for n in range(len(BROKEN))]
    reasons = [entry["reason"] for entry in dropped]
    for reason, said in zip(
        reasons,
        (
            "not JSON",
            "one turn",
            "turn 2 is empty",
            "1 weights for 2 turns",
            "weight 2 is -1",
            "weight 2 is nan",
            "byte 16 (0xe9) is not UTF-8",
            "`turns` is no list",
            "the line is blank",
        ),
        strict=True,
    ):
        assert said in reason
        assert sum(said in line for line in table) == 1, (said, table)
    assert len(numbers) == 8  # two lines share a kind: weights out of range

    held_out = dialogues(36)[30:]
    evaluate = make_evaluation(base.config, base.tokenizer, held_out)
    seen = [entry for entry in fitted.history if "valid_loss" in entry]
    assert [entry["step"] for entry in seen] == [0, 3, 6]
    assert seen[0]["valid_loss"] == pytest.approx(evaluate(base.params)["valid_loss"], abs=TOLERANCE)
    assert seen[2]["valid_loss"] < seen[0]["valid_loss"] - 0.1
    assert "30 examples, 6 steps on 8 cpu devices" in out
    assert [line.split()[1] for line in out.splitlines() if "tokens/s  " in line] == [f"{n}/6" for n in range(1, 7)]

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
    out, fitted, export = good(*words, init=False)
    assert fitted.config == dg.load(place / "model").config  # the vocabulary and its end are the tokenizer's
    drawn = dg.init_params(fitted.config, jax.random.key(0))
    assert not same(fitted.params["h_0"], drawn["h_0"])
    first = np.abs(jax.device_get(fitted.params["wpe"]["embedding"]) - jax.device_get(drawn["wpe"]["embedding"]))
    assert first.max() < 0.1  # six steps from where `init_params` begins
    assert dg.load(export).reply("Hello", max_new_tokens=2) is not None


def test_a_tokenizer_that_extends_the_model_s(good, train, place, tmp_path):
    base = dg.load(place / "model")
    backend = base.tokenizer._backend.__copy__() if hasattr(base.tokenizer._backend, "__copy__") else None
    folder = tmp_path / "more"
    folder.mkdir()
    (backend or Tokenizer.load(place / "model")._backend).add_tokens(["☕☕", "rainy"])
    Tokenizer(backend).save(folder)
    out, fitted, export = good("--tokenizer", folder)
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
