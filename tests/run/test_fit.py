"""The loop: a run that is stopped and goes on ends bit for bit where an unbroken one does; what it tells and refuses."""

import dataclasses
import json
import os
import signal
import types

import fakes
import jax
import numpy as np
import pytest

from dialogpt_jax.data.examples import Example, examples
from dialogpt_jax.parallel.mesh import make_mesh
from dialogpt_jax.run import fit as module
from dialogpt_jax.run import journal
from dialogpt_jax.run.fit import CHECKPOINTS, Fitted, TrainingError, fit
from dialogpt_jax.run.journal import BOARD, METRICS
from dialogpt_jax.run.options import TrainOptions
from dialogpt_jax.training.recipes import Recipe

# Eight devices against one: sums of a few hundred float32 terms of about 4, in another order.
TOLERANCE = 1e-5

CONFIG = dataclasses.replace(
    fakes.TINY, n_layer=1, n_embd=16, n_head=2, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.0
)
OPTIONS = TrainOptions(
    steps=11, batch_size=8, learning_rate=1e-2, warmup=2, buckets=1, log_every=3, save_every=4, evaluate_every=5, seed=7
)
PARAMS = fakes.draw_params(CONFIG, scale=2.0)


def drawn(count=30) -> list[Example]:
    rng = np.random.default_rng(0)
    dialogues = [
        [rng.integers(0, 60, rng.integers(1, 6)).tolist() for _ in range(rng.integers(2, 5))] for _ in range(count)
    ]
    return examples(dialogues, eos=CONFIG.eos_token_id, max_length=24)


EXAMPLES = drawn()
ONE = make_mesh(devices=jax.devices()[:1])


def run(options=OPTIONS, *, data=EXAMPLES, params=PARAMS, mesh=ONE, **named) -> Fitted:
    return fit(params, CONFIG, data, options, mesh=mesh, **({"report": lambda line: None} | named))


def values(fitted: Fitted):
    state = fitted.state
    return jax.device_get((state.step, state.params, state.opt_state, jax.random.key_data(state.key)))


def same(one, other) -> bool:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in leaves)


def falling(params) -> dict[str, float]:
    """A made-up measure that another step always changes."""
    return {"valid_loss": float(np.square(params["ln_f"]["scale"]).sum())}


@pytest.fixture(scope="module")
def unbroken():
    return values(run())


def test_epochs_pass_within_the_run():
    assert 1 < len(EXAMPLES) // OPTIONS.batch_size < OPTIONS.steps // 2


def test_without_a_folder_nothing_is_written_and_the_parameters_given_stay(unbroken, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = jax.device_get(PARAMS)
    params = jax.device_put(PARAMS)
    fitted = run(params=params)
    assert list(tmp_path.iterdir()) == []
    assert same(jax.device_get(params), before)  # not consumed by the steps
    assert same(values(fitted), unbroken)
    assert not same(jax.device_get(fitted.params), before)
    assert [entry["step"] for entry in fitted.history if "loss" in entry] == [3, 6, 9, 11]
    assert fitted.stopped == ""


def test_a_run_that_was_stopped_ends_where_an_unbroken_one_does(unbroken, tmp_path):
    told = []

    def stop(line):
        told.append(line)
        if line.startswith("step 6/"):  # told while step 7 runs
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = run(out=tmp_path, report=stop)
    assert stopped.stopped == "SIGTERM"
    assert 6 < int(stopped.state.step) < 11
    assert told[-1] == f"stopped by SIGTERM after step {int(stopped.state.step)} of 11"
    told.clear()
    other = fakes.draw_params(CONFIG, 3)  # what it is given does not count, the checkpoint does
    again = run(out=tmp_path, resume=True, params=other, report=told.append)
    assert told[0] == f"going on from step {int(stopped.state.step)}"
    assert same(values(again), unbroken)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_average_is_evaluated_given_back_and_resumed(tmp_path):
    options = dataclasses.replace(OPTIONS, average=0.9)
    seen = []

    def evaluate(params):
        seen.append(jax.device_get(params["ln_f"]["scale"]))
        return falling(params)

    def stop(line):
        if line.startswith("step 3/"):
            os.kill(os.getpid(), signal.SIGTERM)

    whole = run(options, evaluate=evaluate)
    assert same(whole.params, whole.state.opt_state.average)
    assert not same(whole.params, whole.state.params)
    assert same(seen[-1], whole.params["ln_f"]["scale"])
    assert run(options, out=tmp_path, report=stop).stopped
    again = run(options, out=tmp_path, resume=True)
    assert same(values(again), values(whole))
    assert same(again.params, whole.params)
    assert same(whole.state.params, run().state.params)  # it only looks on


def test_ctrl_c_stops_after_the_step_and_a_second_one_at_once():
    def once(line):
        if line.startswith("step 3/"):
            os.kill(os.getpid(), signal.SIGINT)

    assert run(report=once).stopped == "SIGINT"

    def twice(line):
        if line.startswith("step 3/"):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(report=twice)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_that_died_goes_on_from_its_last_checkpoint(unbroken, tmp_path):
    class Killed(BaseException):
        pass

    def die(line):
        if line.startswith("step 6/"):
            raise Killed

    with pytest.raises(Killed):
        run(out=tmp_path, report=die)
    told = []
    again = run(out=tmp_path, resume=True, report=told.append)
    assert told[0] == "going on from step 4"
    assert same(values(again), unbroken)
    steps = [json.loads(line)["step"] for line in (tmp_path / METRICS).read_text().splitlines()]
    assert steps == [3, 6, 9, 11]  # what was told of lost steps is told once


def test_resume_without_a_checkpoint_begins(unbroken, tmp_path):
    assert same(values(run(out=tmp_path, resume=True)), unbroken)


def test_a_run_that_is_done_does_nothing(unbroken, tmp_path):
    run(out=tmp_path)
    assert same(values(run(out=tmp_path, resume=True)), unbroken)


def test_another_seed_is_another_run(unbroken):
    assert not same(values(run(dataclasses.replace(OPTIONS, seed=8)))[1], unbroken[1])


def test_a_folder_with_a_run_is_not_overwritten_nor_gone_on_with_otherwise(tmp_path):
    run(dataclasses.replace(OPTIONS, steps=4), out=tmp_path)
    with pytest.raises(TrainingError, match=r"holds a run at step 4; resume it \(--resume\), or choose another folder"):
        run(out=tmp_path)
    changed = dataclasses.replace(OPTIONS, learning_rate=2e-2)
    with pytest.raises(
        TrainingError, match=r"this is not the run in .*: options.learning_rate: 0.01 in the checkpoint, 0.02 now"
    ):
        run(changed, out=tmp_path, resume=True)
    with pytest.raises(TrainingError, match=r"data\.examples: "):
        run(out=tmp_path, resume=True, data=EXAMPLES[:-1])
    told = []
    longer = run(out=tmp_path, resume=True, report=told.append)  # only its end has moved
    assert told[0] == "going on from step 4; options.steps: 4 in the checkpoint, 11 now"
    assert int(longer.state.step) == 11


@pytest.mark.parametrize(
    "sizes", [pytest.param({"data": 8}, marks=pytest.mark.long), {"data": 2, "fsdp": 2, "tensor": 2}]
)
def test_a_run_goes_on_on_another_mesh(unbroken, tmp_path, sizes):
    config, options = fakes.no_dropout(CONFIG), dataclasses.replace(OPTIONS, schedule="constant")
    first, many, quiet = dataclasses.replace(options, steps=6), make_mesh(sizes), {"report": lambda line: None}
    a = fit(PARAMS, config, EXAMPLES, first, out=tmp_path, mesh=many, **quiet)
    assert len(a.params["wte"]["embedding"].sharding.device_set) == 8
    told = []
    b = fit(PARAMS, config, EXAMPLES, options, out=tmp_path, resume=True, mesh=ONE, report=told.append)
    whole = fit(PARAMS, config, EXAMPLES, options, mesh=ONE, **quiet)
    assert told[0].startswith("going on from step 6")
    losses = [[e["loss"] for e in fitted.history if "loss" in e] for fitted in (b, whole)]
    np.testing.assert_allclose(losses[0], losses[1], atol=TOLERANCE)


def test_it_is_evaluated_before_the_first_step_and_the_best_is_kept(tmp_path):
    seen = []

    def evaluate(params):
        seen.append(jax.device_get(params))
        return {"valid_loss": [5.0, 3.0, 4.0, 4.5][len(seen) - 1]}

    fitted = run(dataclasses.replace(OPTIONS, keep=1, save_every=1), out=tmp_path, evaluate=evaluate)
    assert same(seen[0], jax.device_get(PARAMS))
    assert [(e["step"], e["valid_loss"]) for e in fitted.history if "valid_loss" in e] == [
        (0, 5.0),
        (5, 3.0),
        (10, 4.0),
        (11, 4.5),
    ]
    kept = sorted(int(path.name) for path in (tmp_path / CHECKPOINTS).iterdir() if path.name.isdigit())
    assert kept == [5, 11]


def test_what_is_better_than_all_before_is_saved_and_nothing_else(tmp_path):
    """The losses before the first step and after each; the last step is saved in any case. Then the same, resumed."""
    losses = iter([5.0, 6.0, 4.0, 4.5, 3.0, 3.5, 3.2, 2.0, 2.5])
    options = dataclasses.replace(OPTIONS, schedule="constant", evaluate_every=1, save_every=0, keep=9)
    saved = []
    for steps in (5, 8):
        run(
            dataclasses.replace(options, steps=steps),
            out=tmp_path,
            resume=True,
            evaluate=lambda params: {"valid_loss": next(losses)},
        )
        saved.append(sorted(int(path.name) for path in (tmp_path / CHECKPOINTS).iterdir() if path.name.isdigit()))
    assert saved == [[2, 4, 5], [2, 4, 5, 7, 8]]


def test_figures_are_told_and_written(tmp_path):
    told = []
    fitted = run(out=tmp_path, report=told.append, evaluate=falling, sample=lambda params: ["Hi! → Hello."])
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert lines == json.loads(json.dumps(fitted.history))
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [3, 6, 9, 11]
    assert all(
        {"targets", "grad_norm", "learning_rate", "tokens_per_second", "flops_per_second"} <= set(x) for x in steps
    )
    assert steps[-1]["learning_rate"] == pytest.approx(1e-2 * (11 - 10) / (11 - 2))
    assert [line["step"] for line in lines if "samples" in line] == [0, 5, 10, 11]
    assert any(line.startswith("step 11/11  loss ") and "tokens/s" in line for line in told)
    assert "    Hi! → Hello." in told
    (board,) = (tmp_path / BOARD).iterdir()
    data = board.read_bytes()
    assert all(name in data for name in (b"loss", b"valid_loss", b"learning_rate", b"samples"))


def test_what_is_compiled_is_told_and_is_no_part_of_the_rate_or_of_the_time_left(monkeypatch):
    """By a clock on which the first step takes 1000 s, and every other one 10."""
    clock, told = [0.0], []
    clocks = types.SimpleNamespace(perf_counter=lambda: clock[0])
    make_program = module.make_program

    def make_slow(*args):
        program = make_program(*args)

        def step(*given, **named):
            clock[0] += 10 if clock[0] else 1000
            return program.step(*given, **named)

        return program._replace(step=step, compiled=set())

    monkeypatch.setattr(module, "make_program", make_slow)
    monkeypatch.setattr(module, "time", clocks)
    monkeypatch.setattr(journal, "time", clocks)
    fitted = run(dataclasses.replace(OPTIONS, log_every=5), report=told.append, sample=lambda params: ["Hi! → Ho."])
    assert told[:4] == [
        "before the first step, replies",
        "    Hi! → Ho.",
        "compiling the step for 8 rows of 24 tokens …",
        "compiled and done once in 1000.0 s",
    ]
    assert told[4].endswith("  60 s left")  # 6 more of 10 s
    assert told[5:7] == ["step 5, replies", "    Hi! → Ho."]
    assert sum(line.startswith("compil") for line in told) == 2
    (first, second, _) = [entry["tokens_per_second"] for entry in fitted.history if "loss" in entry]
    assert first == pytest.approx(second, rel=0.3)  # of 4 steps in 40 s, and of 5 in 50, with other texts


def test_the_device_has_its_next_step_before_the_host_reads_the_last(monkeypatch):
    events = []
    given, settled = module.global_batch, module._Run._settle

    def place(*args):
        events.append("step")
        return given(*args)

    def settle(self, done, *args):
        events.append(f"read {done}")
        return settled(self, done, *args)

    monkeypatch.setattr(module, "global_batch", place)
    monkeypatch.setattr(module._Run, "_settle", settle)
    run(dataclasses.replace(OPTIONS, steps=3, evaluate_every=0, save_every=0))
    assert events == ["step", "step", "read 1", "step", "read 2", "read 3"]


def poisoned(every: bool) -> list[Example]:
    """Data with a weight that is not a number, which no example is made with: in one, or in all."""
    bad = np.array([0, np.nan], np.float32)
    return [
        e._replace(weights_T=np.concatenate([bad, e.weights_T[2:]])) if every or i == 3 else e
        for i, e in enumerate(EXAMPLES)
    ]


def test_a_step_that_is_not_finite_changes_nothing_and_its_batch_is_kept(tmp_path):
    told = []
    options = dataclasses.replace(OPTIONS, steps=len(EXAMPLES) // 8, log_every=1, save_every=1, keep=100)
    fitted = run(options, data=poisoned(False), out=tmp_path, report=told.append)
    (kept,) = (tmp_path / "not_finite").iterdir()
    (line,) = [line for line in told if "was not finite" in line]
    step = int(kept.stem.split("_")[1])
    assert line == f"step {step} was not finite (loss nan, gradient nan) and changed nothing; its batch is in {kept}"
    arrays = np.load(kept)
    assert np.isnan(arrays["weights_BT"]).sum() == 1
    assert arrays["tokens_BT"].shape == (8, 24)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(values(fitted)))


def test_several_in_a_row_stop_the_run(tmp_path):
    with pytest.raises(TrainingError, match="5 steps in a row were not finite, the last 5; lower the learning rate"):
        run(data=poisoned(True), out=tmp_path)
    assert len(list((tmp_path / "not_finite").iterdir())) == 5


def test_what_does_not_fit_is_one_line():
    with pytest.raises(TrainingError, match="examples have up to 64 tokens; the model's context is 48"):
        run(dataclasses.replace(OPTIONS, max_length=64))
    with pytest.raises(TrainingError, match="an example has 21 tokens, more than max_length 16"):
        run(dataclasses.replace(OPTIONS, max_length=16))
    with pytest.raises(TrainingError, match="there are no examples"):
        run(data=[])
    with pytest.raises(
        TrainingError, match=r"an example is \['Hi!', 'Hello.'\]; `make_examples` makes examples of dialogues"
    ):
        run(data=[["Hi!", "Hello."]])
    with pytest.raises(TrainingError, match=r"examples is .*; give the list of `make_examples`"):
        run(data=iter(EXAMPLES))
    with pytest.raises(TrainingError, match=r"options is {'steps': 3}; give a TrainOptions, such as"):
        run({"steps": 3})
    with pytest.raises(ValueError, match="a batch of 8 examples is not divided by 3 parts"):
        run(dataclasses.replace(OPTIONS, accumulate=3))
    with pytest.raises(ValueError, match="steps is 0; it must be a whole number from 1"):
        TrainOptions(steps=0)
    with pytest.raises(ValueError, match="no optimiser is called 'sgd'; there are adamw, muon"):
        run(dataclasses.replace(OPTIONS, optimizer="sgd"))


def test_figures_of_jax_and_numpy_are_noted_as_numbers():
    assert module.as_figures({"valid_loss": jax.numpy.float32(3), "b": np.float64(2)}) == {"valid_loss": 3.0, "b": 2.0}


def test_few_examples_train_and_a_resumed_run_is_the_unbroken_one(tmp_path):
    """Fewer than a batch: each step takes them all."""
    few, told, options = EXAMPLES[:3], [], dataclasses.replace(OPTIONS, schedule="constant", steps=6)
    whole = run(options, data=few, report=told.append)
    assert told[0] == "3 examples fill no more than one batch: every step takes all of them, in 8 rows"
    run(dataclasses.replace(options, steps=3), data=few, out=tmp_path)
    assert same(values(run(options, data=few, out=tmp_path, resume=True)), values(whole))
    first, *_, last = [entry["loss"] for entry in whole.history if "loss" in entry]
    assert last < first


@pytest.mark.long
def test_the_paper_s_recipe_trains():
    options = dataclasses.replace(
        OPTIONS, recipe=Recipe.paper(), accumulate=2, schedule="noam", learning_rate=1e-4, warmup=4
    )
    fitted = run(options)
    losses = [entry["loss"] for entry in fitted.history if "loss" in entry]
    assert losses[-1] < losses[0]
    fixed = run(dataclasses.replace(options, recipe=Recipe.paper().fixed()))
    assert [e["loss"] for e in fixed.history if "loss" in e] != losses


def test_utilisation_is_told_where_the_peak_is_known(monkeypatch):
    monkeypatch.setattr(module, "peak_flops", lambda kind: 1e12)
    told = []
    fitted = run(dataclasses.replace(OPTIONS, dtype="bfloat16"), report=told.append)
    for entry in (e for e in fitted.history if "loss" in e):
        assert entry["mfu"] == pytest.approx(entry["flops_per_second"] / 1e12)
        assert 0 < entry["mfu"] < 1
    assert any("  MFU 0%  " in line for line in told)
    assert all("mfu" not in entry for entry in run().history)  # float32 has another peak
