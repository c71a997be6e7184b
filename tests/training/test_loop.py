"""The loop: a run that is stopped and goes on ends bit for bit where an unbroken one does, and a checkpoint is whole."""

import dataclasses
import json

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dialogpt_jax.data.batches import Batches
from dialogpt_jax.data.examples import examples
from dialogpt_jax.training import loop
from dialogpt_jax.training.loop import CHECKPOINT, METRICS, fit, restore, save
from dialogpt_jax.training.step import init_state

CONFIG = dataclasses.replace(
    fakes.TINY, n_layer=1, n_embd=16, n_head=2, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.0
)
OPTIMIZER = optax.adam(1e-2)
STEPS = 11


def batches(seed=0) -> Batches:
    rng = np.random.default_rng(seed)
    dialogues = [
        [rng.integers(0, 60, rng.integers(1, 6)).tolist() for _ in range(rng.integers(2, 5))] for _ in range(30)
    ]
    found = examples(dialogues, eos=CONFIG.eos_token_id, max_length=24)
    return Batches(found, lengths=(12, 24), tokens_per_batch=96, seed=seed)


def begin(seed=0):
    """A fresh state: the loop takes the buffers of the one it is given."""
    return init_state(fakes.draw_params(CONFIG, seed, scale=2.0), OPTIMIZER, jax.random.key(7))


def run(state, out, steps, **named):
    named = {"report": lambda line: None, "save_every": 4, "log_every": 3} | named
    return fit(
        state,
        batches(),
        config=CONFIG,
        optimizer=OPTIMIZER,
        steps=steps,
        out=out,
        compute_dtype=jnp.float32,
        **named,
    )


def values(state):
    return jax.device_get((state.step, state.params, state.opt_state, jax.random.key_data(state.key)))


def same(one, other) -> bool:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in leaves)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return values(run(begin(), folder, STEPS)), folder


def test_epochs_pass_within_the_run():
    assert 1 < batches().per_epoch < STEPS


def test_a_run_that_was_stopped_ends_where_an_unbroken_one_does(unbroken, tmp_path):
    told = []
    run(begin(), tmp_path, 5)
    run(begin(seed=3), tmp_path, 9, report=told.append)  # what it is given does not count, the checkpoint does
    state = run(begin(), tmp_path, STEPS)
    assert same(values(state), unbroken[0])
    assert (tmp_path / CHECKPOINT).read_bytes() == (unbroken[1] / CHECKPOINT).read_bytes()
    assert told[0] == "going on from step 5"


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(unbroken, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    data = batches()
    real = type(data).__getitem__

    def killed(self, step):
        if step == 7:  # the last checkpoint is step 4's
            raise Killed
        return real(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__getitem__", killed)
        with pytest.raises(Killed):
            run(begin(), tmp_path, STEPS)
    told = []
    state = run(begin(), tmp_path, STEPS, report=told.append)
    assert told[0] == "going on from step 4"
    assert same(values(state), unbroken[0])


def test_another_seed_of_the_batches_or_another_key_is_another_run(unbroken, tmp_path):
    state = dataclasses.replace(begin(), key=jax.random.key(8))
    assert not same(values(run(state, tmp_path, STEPS))[1], unbroken[0][1])


def test_a_run_that_is_done_does_nothing(unbroken):
    folder = unbroken[1]
    before = (folder / CHECKPOINT).read_bytes()
    state = run(begin(), folder, STEPS)
    assert same(values(state), unbroken[0])
    assert (folder / CHECKPOINT).read_bytes() == before


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    first, second = begin(), begin(seed=1)
    save(first, tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()

    def torn(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Path, "write_bytes", torn)
        with pytest.raises(OSError, match="No space"):
            save(second, tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert same(values(restore(begin(seed=2), tmp_path))[1], values(first)[1])
    save(second, tmp_path)  # the torn file is no obstacle
    assert same(values(restore(begin(seed=2), tmp_path))[1], values(second)[1])
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


def test_restore_keeps_the_key_and_without_a_checkpoint_the_state(tmp_path):
    state = begin()
    assert restore(state, tmp_path) is state
    save(dataclasses.replace(begin(seed=1), step=jnp.int32(5)), tmp_path)
    restored = restore(state, tmp_path)
    assert int(restored.step) == 5
    assert same(jax.random.key_data(restored.key), jax.random.key_data(state.key))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored.params))


def test_figures_are_written_and_reported(tmp_path):
    told, seen = [], []

    def evaluate(params):
        seen.append(float(params["ln_f"]["scale"][0]))
        return {"bits": 1.25}

    run(begin(), tmp_path, 7, report=told.append, evaluate=evaluate, evaluate_every=5)
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [3, 6, 7]
    assert [line["step"] for line in lines if "bits" in line] == [5, 7]
    assert len(set(seen)) == 2
    assert all({"loss", "targets", "grad_norm", "finite", "tokens_per_second"} <= set(x) for x in lines if "loss" in x)
    assert any(line.startswith("step 7/7  loss ") for line in told)
    assert "step 5  bits 1.25" in told
