"""Checkpoints: what comes back equals what went in, bit for bit, or it is an error; a kill or a full disk loses none.

No tolerance: everything is compared as bytes. The arrays are random bits, NaNs and −0 among them.
"""

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dialogpt_jax.run import checkpoints as checkpoints_module
from dialogpt_jax.run import named_arrays
from dialogpt_jax.run.checkpoints import CheckpointError, CheckpointMismatch, Checkpoints, DamagedCheckpoint
from dialogpt_jax.run.orbax import without_orphans
from dialogpt_jax.run.same_run import differences
from dialogpt_jax.training.optim import make_optimizer
from dialogpt_jax.training.step import TrainState

PLAN = {"seed": 0, "batch_size": 32, "data": {"rows": 5, "lengths": [64, 128]}}
SHAPES = {
    "wte": {"embedding": ((16, 8), np.float32)},
    "h_0": {"attn": {"c_attn": {"kernel": ((3, 2, 4, 8), np.float32), "bias": ((3, 2, 4), np.float32)}}},
    "half": ((8, 8), ml_dtypes.bfloat16),
    "whole": ((5,), np.int32),
}


def random_bits(shape, dtype, seed) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(np.random.default_rng(seed).bytes(size), dtype).reshape(shape)


def make_state(step: int, optimizer=None, shapes=None) -> TrainState:
    """A state whose every array is random bits, others at each step."""
    params = jax.tree.map(
        lambda leaf: jnp.zeros(*leaf), shapes or SHAPES, is_leaf=lambda x: isinstance(x, tuple) and len(x) == 2
    )
    opt_state = (optimizer or optax.adam(1e-3)).init(params)
    drawn = [
        jnp.asarray(random_bits(leaf.shape, leaf.dtype, [step, index]))
        for index, leaf in enumerate(jax.tree.leaves((params, opt_state)))
    ]
    params, opt_state = jax.tree.unflatten(jax.tree.structure((params, opt_state)), drawn)
    return TrainState(jnp.asarray(np.int32(step)), params, opt_state, jax.random.key(7 + step))


def as_bytes(state) -> dict[str, tuple]:
    arrays = {name: np.asarray(named_arrays.data(leaf)) for name, leaf in named_arrays.named(state).items()}
    return {name: (x.tobytes(), x.shape, str(x.dtype)) for name, x in arrays.items()}


def assert_same(state, other):
    assert jax.tree.structure(state) == jax.tree.structure(other)
    assert as_bytes(state) == as_bytes(other)
    assert state.key.dtype == other.key.dtype


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def save_steps(folder, *steps, keep=9):
    with Checkpoints(folder, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(make_state(step), identity=PLAN, metrics={"loss": 1.0})


OPTIMIZERS = {
    "muon": make_optimizer("muon", optax.constant_schedule(0.1), weight_decay=0.0),
    "masked adamw": optax.adamw(1e-3, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_comes_back_bit_for_bit(folder, optimizer):
    state = make_state(3, optimizer)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state, identity=PLAN | {"shape": (1, 2)})
    with Checkpoints(folder) as checkpoints:
        restored, identity = checkpoints.restore(jax.eval_shape(lambda: make_state(4, optimizer)))
    assert_same(restored, state)
    assert identity == PLAN | {"shape": [1, 2]}
    draw = [jax.random.bits(jax.random.fold_in(s.key, s.step)) for s in (restored, state)]
    assert draw[0] == draw[1]


def test_comes_back_onto_another_mesh(folder):
    def on_mesh(state, spec_of, **axes):
        mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))
        return jax.tree.map(lambda x: NamedSharding(mesh, spec_of(x) if x.ndim > 1 else PartitionSpec()), state)

    state = make_state(2)
    shardings = on_mesh(
        state,
        lambda x: PartitionSpec(*[None] * (x.ndim - 2), *(("data", "fsdp") if x.shape[-1] == 8 else ())),
        data=2,
        fsdp=4,
    )
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(jax.device_put(state, shardings), identity=PLAN)
        whole = jax.eval_shape(lambda: state)
        one = jax.tree.map(lambda x: jax.sharding.SingleDeviceSharding(jax.devices()[5]), state)
        by_rows = on_mesh(state, lambda x: PartitionSpec("d" if x.shape[0] % 8 == 0 else None), d=8)
        for target in (shardings, by_rows, one):
            like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), whole, target)
            restored, _ = checkpoints.restore(like)
            assert_same(restored, state)
            assert jax.tree.map(lambda x: x.sharding, restored) == target


def test_save_returns_before_the_write_ends(folder):
    shapes = {"large": ((3_000_000,), np.float32)}
    with Checkpoints(folder, keep=1) as checkpoints:
        ahead = []
        for step in range(
            1, 6
        ):  # a busy machine may finish one write before it looks; a synchronous save is never ahead
            checkpoints.save(make_state(step, optax.identity(), shapes), identity=PLAN)
            ahead.append(not (folder / str(step)).exists())
            checkpoints.wait()
            assert (folder / str(step)).exists()
    assert any(ahead)


def test_the_state_may_be_donated_right_after_save(folder):
    @jax.jit
    def spoil(state):
        return jax.tree.map(lambda x: x if named_arrays.is_key(x) else (x * 0).astype(x.dtype), state)

    spoil = jax.jit(spoil, donate_argnums=0)
    shapes = {"large": ((500_000,), np.float32), "whole": ((1000,), np.int32)}
    like = jax.eval_shape(lambda: make_state(0, shapes=shapes))
    donated = jax.tree.map(jnp.copy, make_state(0, shapes=shapes))
    spoil(donated)
    assert donated.params["large"].is_deleted()
    with Checkpoints(folder) as checkpoints:
        for step in range(1, 5):
            state = jax.tree.map(jnp.copy, make_state(step, shapes=shapes))
            expected = as_bytes(make_state(step, shapes=shapes))  # not of `state`: that would hold its buffers
            checkpoints.save(state, identity=PLAN)
            spoiled = spoil(spoil(state))
            assert not np.asarray(spoiled.params["whole"]).any()
            assert as_bytes(checkpoints.restore(like)[0]) == expected


def test_the_newest_and_the_best_stay(folder):
    losses = {1: 3.0, 2: 1.0, 3: float("nan"), 4: 2.0, 5: 1.5, 6: None}
    with Checkpoints(folder, keep=2, best="valid_loss") as checkpoints:
        assert checkpoints.latest_step() is checkpoints.best_step() is None
        for step, loss in losses.items():
            checkpoints.save(make_state(step), identity=PLAN, metrics=None if loss is None else {"valid_loss": loss})
        assert (checkpoints.steps(), checkpoints.latest_step(), checkpoints.best_step()) == ([2, 5, 6], 6, 2)
    with Checkpoints(folder, keep=1, best="valid_loss") as checkpoints:  # what is best is known from the disk
        assert (checkpoints.latest_step(), checkpoints.best_step()) == (6, 2)
        assert_same(checkpoints.restore(make_state(0), step=2)[0], make_state(2))
        checkpoints.save(make_state(7), identity=PLAN, metrics={"valid_loss": 1.0})
        assert (checkpoints.steps(), checkpoints.best_step()) == ([7], 7)
    assert sorted(os.listdir(folder)) == ["7"]
    with Checkpoints(folder, best=None) as checkpoints:
        assert checkpoints.best_step() is None


def test_what_is_not_this_runs_is_not_overwritten(folder):
    save_steps(folder, 2, 5)
    with Checkpoints(folder) as checkpoints:
        for step in (1, 5):
            with pytest.raises(ValueError, match=f"holds a checkpoint of step 5, and step {step} was to be written"):
                checkpoints.save(make_state(step), identity=PLAN)
        checkpoints.restore(make_state(0))
        checkpoints.save(make_state(5), identity={"other": 1})  # resumed from it: nothing to do
        assert checkpoints.restore(make_state(0))[1] == PLAN
        checkpoints.save(make_state(6), identity=PLAN)
        checkpoints.save(make_state(6), identity={"other": 1})
        assert checkpoints.restore(make_state(0))[1] == PLAN


def test_other_arrays_are_one_clear_line(folder):
    save_steps(folder, 1)
    state = make_state(1)

    def with_params(**changed):
        return dataclasses.replace(state, params={k: v for k, v in (state.params | changed).items() if v is not None})

    cases = [
        (with_params(wte={"embedding": jnp.zeros((16, 9))}), r"params.wte.embedding is float32\[16, 8\] in it, and floa"
         r"t32\[16, 9\] is wanted"),
        (with_params(half=jnp.zeros((8, 8), jnp.float16)), r"half is bfloat16\[8, 8\] in it, and float16\[8, 8\] is"),
        (with_params(half=None), r"it holds params.half, bfloat16\[8, 8\], which is not wanted$"),
        (with_params(wpe=jnp.zeros((2, 3))), r"it lacks params.wpe, float32\[2, 3\]$"),
        (dataclasses.replace(state, opt_state=optax.sgd(0.1, momentum=0.9).init(state.params)),
         r"lacks opt_state.0.trace.*and 4 more"),
        (dataclasses.replace(state, key=jax.random.key(0, impl="rbg")),
         r"key is key<fry>\[\] in it, and key<rbg>\[\] is wanted"),
    ]  # fmt: skip
    with Checkpoints(folder) as checkpoints:
        for like, message in cases:
            with pytest.raises(CheckpointMismatch, match=message) as caught:
                checkpoints.restore(like)
            assert "\n" not in str(caught.value)
            assert "step 1" in str(caught.value)
        assert_same(checkpoints.restore(state)[0], state)  # a mismatch is no damage


def test_no_checkpoint_is_one_clear_line(folder):
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(CheckpointError, match=r"holds no checkpoint$"):
            checkpoints.restore(make_state(0))
        checkpoints.save(make_state(4), identity=PLAN)
        with pytest.raises(CheckpointError, match=r"holds no checkpoint of step 3; it has those of steps 4$"):
            checkpoints.restore(make_state(0), step=3)
    with pytest.raises(ValueError, match="keep is 0"):
        Checkpoints(folder, keep=0)
    (folder / "file").write_text("")
    with pytest.raises(FileExistsError, match="file"):
        Checkpoints(folder / "file")


def _truncate_data(path):
    for file in (path / "state").glob("**/d/*"):  # most hold what a later one has in its place, and are not read
        os.truncate(file, file.stat().st_size // 2)


def _empty_files(path):
    for file in path.rglob("*"):
        if file.is_file():
            os.truncate(file, 0)


def _others_arrays(path):
    shutil.rmtree(path / "state")
    shutil.copytree(path.parent / "1" / "state", path / "state")


DAMAGES = {
    "data truncated": _truncate_data,
    "no arrays": lambda path: shutil.rmtree(path / "state"),
    "no identity": lambda path: shutil.rmtree(path / "about"),
    "identity truncated": lambda path: os.truncate(path / "about" / "metadata", 40),
    "identity of something else": lambda path: (path / "about" / "metadata").write_text("[1]"),
    "no manifest": lambda path: (path / "state" / "manifest.ocdbt").unlink(),
    "all files empty": _empty_files,
    "another step's arrays": _others_arrays,  # whole to Orbax: only the checksums tell
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_one_before_a_damaged_checkpoint_is_used(folder, damage):
    save_steps(folder, 1, 2, 3)
    damage(folder / "3")
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(CheckpointError, match=r"^the checkpoint of step 3 in .* is damaged \(.+\)$"):
            checkpoints.restore(make_state(0), step=3)
        with pytest.warns(DamagedCheckpoint, match=r"of step 3 in .* is damaged .*; reading step 2$") as caught:
            restored, identity = checkpoints.restore(make_state(0))
        assert "\n" not in str(caught[0].message)
        assert_same(restored, make_state(2))
        assert identity == PLAN
        checkpoints.save(make_state(3), identity=PLAN)
        assert_same(checkpoints.restore(make_state(0))[0], make_state(3))
    assert {"1", "2", "3", "3.damaged"} == set(os.listdir(folder))


def test_one_file_cut_short_is_an_error_or_was_not_needed(folder):
    save_steps(folder, 1)
    refused = 0
    for file in sorted((folder / "1" / "state").glob("**/d/*")):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with Checkpoints(folder) as checkpoints:
            try:
                assert_same(checkpoints.restore(make_state(0))[0], make_state(1))
            except CheckpointError:
                refused += 1
        file.write_bytes(whole)
    assert refused > 0


def test_no_whole_checkpoint_is_an_error(folder):
    save_steps(folder, 1, 2)
    for step in (1, 2):
        _truncate_data(folder / str(step))
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(CheckpointError, match=r"step 2 .* damaged .*step 1 .* damaged"),
    ):
        checkpoints.restore(make_state(0))


@contextlib.contextmanager
def files_up_to(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


LARGE = {"large": ((200_000,), np.float32)}


def test_a_write_that_fails_leaves_the_last_checkpoint(folder, caplog):
    """A limit on the size of files fails in the same call as a full disk, and needs no disk to fill."""
    states = [make_state(step, shapes=LARGE) for step in (1, 2, 3)]
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(states[0], identity=PLAN)
        checkpoints.wait()
        for finish in (checkpoints.wait, lambda: checkpoints.save(states[2], identity=PLAN)):
            with files_up_to(100_000):
                checkpoints.save(states[1], identity=PLAN)
                with pytest.raises(CheckpointError) as caught:
                    finish()
            told = f"step 2 could not be written to {folder} (File too large); that of step 1 is whole"
            assert str(caught.value) == f"the checkpoint of {told}"
            assert os.listdir(folder) == ["1"]  # nothing half-written fills the disk
            assert_same(checkpoints.restore(states[2])[0], states[0])
        checkpoints.save(states[1], identity=PLAN)  # there is room again
        assert_same(checkpoints.restore(states[2])[0], states[1])
    assert os.listdir(folder) == ["2"]
    assert not [record for record in caplog.records if "orbax" in record.pathname]


def test_what_is_still_written_into_is_removed_all_the_same(tmp_path, monkeypatch):
    """A thread of the failed write makes a file while its folder is deleted: the first two tries fail."""
    (tmp_path / "part").mkdir()
    remove, tries = shutil.rmtree, []
    monkeypatch.setattr(
        shutil, "rmtree", lambda path, **how: tries.append(path) if len(tries) < 2 else remove(path, **how)
    )
    checkpoints_module._remove(tmp_path / "part")
    assert (len(tries), os.listdir(tmp_path)) == (2, [])


def test_an_error_in_the_run_is_not_hidden_by_a_failed_write(folder):
    def run(error):
        with files_up_to(100_000), Checkpoints(folder) as checkpoints:
            checkpoints.save(make_state(1, shapes=LARGE), identity=PLAN)
            if error:
                raise error

    with pytest.warns(UserWarning, match=r"step 1 could not be written.*no earlier one is there"):  # noqa: SIM117
        with pytest.raises(KeyError, match="the run's"):
            run(KeyError("the run's"))
    with pytest.raises(CheckpointError, match="step 1 could not be written"):
        run(None)


def test_a_full_disk_is_told_before_anything_is_written(folder, monkeypatch):
    save_steps(folder, 1)
    needed = sum(named_arrays.data(x).nbytes for x in jax.tree.leaves(make_state(2)))
    with Checkpoints(folder, keep=1) as checkpoints:
        usage = shutil.disk_usage(folder)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
        with pytest.raises(
            CheckpointError, match=r"step 2 was not written to .*: it takes 0\.0 MB, and 0\.0 MB of the"
        ):
            checkpoints.save(make_state(2), identity=PLAN)
        assert checkpoints.steps() == [1]
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
        checkpoints.save(make_state(2), identity=PLAN)
        assert_same(checkpoints.restore(make_state(0))[0], make_state(2))


def test_only_what_follows_a_told_error_is_silenced():
    passed: list[object] = []
    hook = without_orphans(passed.append)
    closed, other = RuntimeError("Event loop is closed"), RuntimeError("something else")
    theirs, ours = (SimpleNamespace(cr_code=SimpleNamespace(co_filename=f"/{name}/x.py")) for name in ("orbax", "ours"))
    pairs = [(closed, None), (other, theirs), (other, None), (closed, ours), (closed, 0)]
    cases = [SimpleNamespace(exc_value=error, object=thing) for error, thing in pairs]
    for case in cases:
        hook(case)
    assert passed == cases[2:]


TINY = {"tiny": ((64,), np.float32)}

# Forks once everything is imported, so that each life begins at once. A life goes on from the newest checkpoint, and says
# `began N` when the write of step N is under way and `wrote N` when it is done.
LIVES = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from test_checkpoints import PLAN, TINY, Checkpoints, assert_same, make_state
import orbax.checkpoint
for life in range(12):
    wait_for, delay = [(2, 0.015), (3, 0.04), (3, 0.0)][life % 3]
    end, mouth = os.pipe()
    child = os.fork()
    if not child:
        with Checkpoints(sys.argv[2], keep=2) as checkpoints:
            step = checkpoints.latest_step() or 0
            if step:
                assert_same(checkpoints.restore(make_state(0, shapes=TINY))[0], make_state(step, shapes=TINY))
            while True:
                step += 1
                checkpoints.save(make_state(step, shapes=TINY), identity=PLAN)
                os.write(mouth, f"began {step}\\n".encode())
                checkpoints.wait()
                os.write(mouth, f"wrote {step}\\n".encode())
    os.close(mouth)
    heard = os.fdopen(end)
    lines = []
    while sum(line.startswith("began") for line in lines) < wait_for:
        line = heard.readline()
        if not line:
            sys.exit("a life ended early")
        lines.append(line)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    lines += heard.readlines()
    wrote = max(int(line.split()[1]) for line in lines if line.startswith("wrote"))
    names = os.listdir(sys.argv[2])
    print(wrote, *names, flush=True)
    if life >= 2 and any("tmp" in name for name in names):
        break  # three lives, and the last kill hit a write
"""


def test_a_kill_loses_no_checkpoint(folder):
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", LIVES, os.path.dirname(__file__), str(folder)]
    lives = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert lives.returncode == 0, lives.stderr[-2000:]
    seen = [line.split() for line in lives.stdout.splitlines()]
    assert len(seen) >= 3
    for wrote, *names in seen:
        assert wrote in names
    assert any("tmp" in name for name in seen[-1])
    last = int(seen[-1][0])
    with Checkpoints(folder, keep=2) as checkpoints:
        latest = checkpoints.latest_step()
        assert latest is not None
        assert latest >= last >= 5
        assert_same(checkpoints.restore(make_state(0, shapes=TINY))[0], make_state(latest, shapes=TINY))
        checkpoints.save(make_state(latest + 2, shapes=TINY), identity=PLAN)
    assert sorted(os.listdir(folder)) == sorted([str(latest), str(latest + 2)])  # what the kills left is gone


def test_differences_of_plans_are_lines():
    assert differences(PLAN, json.loads(json.dumps(PLAN))) == []
    assert differences({"shape": (1, 2)}, {"shape": [1, 2]}) == []
    new = PLAN | {"seed": 1, "data": {"rows": 6, "lengths": [64]}, "schedule": "noam"}
    del new["batch_size"]
    assert differences(PLAN, new) == [
        "seed: 0 in the checkpoint, 1 now",
        "batch_size: 32 in the checkpoint, nothing now",
        "data.rows: 5 in the checkpoint, 6 now",
        "data.lengths: [64, 128] in the checkpoint, [64] now",
        'schedule: nothing in the checkpoint, "noam" now',
    ]
    with pytest.raises(ValueError, match="must be JSON"):
        differences({"a": {1, 2}}, {})


def test_a_checksum_sees_every_bit_and_place():
    x = random_bits((6, 5), np.float32, 0)
    bits = x.view(np.uint32)
    changed = [bits ^ np.uint32(1 << bit) * (np.arange(30).reshape(6, 5) == bit % 30) for bit in range(32)]
    moved = [np.roll(bits, 1, axis) for axis in (0, 1)] + [bits[::-1]]
    arrays = {str(n): jnp.asarray(y.view(np.float32)) for n, y in enumerate([bits, *changed, *moved])}
    sums = named_arrays.checksums(arrays)
    assert len(set(sums.values())) == len(sums)
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(jnp.asarray(x), NamedSharding(mesh, PartitionSpec("d")))
    assert named_arrays.checksums({"0": sharded})["0"] == sums["0"]
    for dtype in (np.int8, np.bool_, ml_dtypes.bfloat16, np.float16):
        zeros = np.zeros(7, dtype)
        one = zeros.copy()
        one[3] = 1
        assert len(set(named_arrays.checksums({"zeros": jnp.asarray(zeros), "one": jnp.asarray(one)}).values())) == 2
