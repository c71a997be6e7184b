"""`dialogpt bench --topology`: what a step of the compiled loop takes, on this CPU as if it were a topology's device.

The TPU compiler itself is asked in `run/test_dry_run.py`.
"""

import dataclasses
import json

import fakes
import jax
import pytest

from dialogpt_jax.bench import ahead, benchmark
from dialogpt_jax.bench.cases import Case
from dialogpt_jax.cli.main import main
from dialogpt_jax.parallel.chips import Chip
from dialogpt_jax.run import dry_run as dryrun

CONFIG = dataclasses.replace(fakes.TINY, n_layer=1)
CHIP = Chip("a chip", 2**30, 1e12, 1e9, 1e9)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(ahead, "topology_devices", lambda topology: jax.devices())
    monkeypatch.setattr(ahead, "chip_of", lambda devices: CHIP)


def test_a_step_reads_the_weights_and_the_cache_once_and_moves_none(here):
    step = ahead.compile_step(CONFIG, Case("decode", 3, 16, 24), "float32", *ahead.device_of("here"))
    assert step.needed < step.read < 2 * step.needed  # a CPU writes more of what lies between
    assert (step.moves, step.other_loops, step.held) == ({}, 0, 0)
    assert 0.9 < step.program.xla_flops / (step.program.flops + step.flops) < 1.3
    assert step.times["memory"] == (step.read + step.written) / 1e9
    assert step.times["compute"] == 6 * step.flops / 1e12
    assert (step.bound_by, step.seconds) == ("memory", step.times["memory"])
    text = ahead.as_text([step])
    assert text.splitlines()[0] == "decode, 3 rows, 16 tokens + 24 new"
    assert f"{3 / step.seconds:,.0f}" in text
    told = ahead.describe("tiny", CONFIG, "here", [step])
    assert "one a chip of here" in told
    assert max(map(len, f"{told}\n{text}".splitlines())) <= 124
    (values,) = json.loads(json.dumps(ahead.as_values("tiny", CONFIG, "here", [step])))["results"]
    assert values["tokens_a_second"] == 3 / step.seconds


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["prefill", "--topology", "v5e:2x2"], 2, "--topology goes with the line decode alone"),
        (["all", "--topology", "v5e:2x2"], 2, "--topology goes with the line decode alone"),
        (["--topology", "v5e:2x2", "--profile"], 2, "--topology measures nothing: leave --profile out"),
        (["--topology", "v5e:2x2", "--peers", "none"], 2, "--topology measures nothing: leave --peers out"),
        (["--topology", "v5e:2x2", "--plot", "x.png"], 2, "--topology measures nothing: leave --plot out"),
        (["--topology", "v5e:2x2"], 1, "pip install -e '.[tpu]', in an environment of its own"),
    ],
)
def test_what_it_does_not_go_with_is_one_line(words, status, said, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "run_benchmark", None)
    monkeypatch.setattr(dryrun.importlib.util, "find_spec", lambda name: None)
    assert main(["bench", *words]) == status
    out, told = capsys.readouterr()
    assert out == ""
    assert said in told.splitlines()[-1]
