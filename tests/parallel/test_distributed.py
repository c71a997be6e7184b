import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dialogpt_jax.parallel import distributed
from dialogpt_jax.parallel.distributed import ClusterError, any_process, global_batch, initialize, rows_here
from dialogpt_jax.parallel.mesh import make_mesh
from dialogpt_jax.parallel.rules import batch_sharding

# The same sums over the same eight devices, in another order: 1e-7 a step.
LOSS = {"rtol": 0, "atol": 1e-5}
PROCESS = Path(__file__).with_name("process.py")
LAUNCHERS = ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "KUBERNETES_SERVICE_HOST", "TPU_WORKER_HOSTNAMES")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def nobody_else(monkeypatch):
    for name in (distributed.COORDINATOR, distributed.COUNT, distributed.NUMBER, *LAUNCHERS):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.long
def test_two_processes_train_as_one_each_reads_its_rows_only_and_a_resumed_run_ends(tmp_path):
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    told = {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_PROCESSES": "2",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
    }
    running = [
        subprocess.Popen(
            [sys.executable, str(PROCESS), str(tmp_path)],
            env=os.environ | told | {"JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    try:
        printed = [process.communicate(timeout=500)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], printed
    found = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2)]
    spec = importlib.util.spec_from_file_location("process", PROCESS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    alone = module.train()
    assert alone["processes"] == 1
    assert alone["read"] == list(range(module.ROWS))
    for i, one in enumerate(found):
        assert one["processes"] == 2
        np.testing.assert_allclose(one["losses"], alone["losses"], **LOSS)
        assert one["read"] == one["rows_here"] == list(range(8 * i, 8 * i + 8))
        assert one["agreed"] == [False, True, True]
        # That of step 4 was not better, so nobody saved it; it is process 0 that knows what was best before.
        assert one["checkpoints"] == [2, 6]
    assert found[0]["losses"] == found[1]["losses"]
    assert alone["losses"][-1] < alone["losses"][0]


def test_a_batch_lies_where_it_should_and_is_read_once():
    placed, calls = batch_sharding(make_mesh({"data": 2, "fsdp": 2, "tensor": 2})), []

    def read(rows):
        calls.append(rows.tolist())
        return {"a": np.arange(24).reshape(8, 3)[rows], "b": np.arange(8.0)[rows], "none": None}

    batch = global_batch(read, 8, placed)
    assert calls == [list(range(8))]
    assert batch["a"].tolist() == np.arange(24).reshape(8, 3).tolist()
    assert batch["b"].tolist() == list(range(8))
    assert batch["none"] is None
    assert batch["a"].sharding.shard_shape((8, 3)) == (2, 3)
    assert rows_here(8, placed).tolist() == list(range(8))


def test_alone_nothing_is_initialised(nobody_else):
    initialize()
    assert not jax.distributed.is_initialized()
    assert [any_process(False), any_process(True)] == [False, True]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1234"}, "set JAX_NUM_PROCESSES and JAX_PROCESS_ID"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "need all of JAX_COORDINATOR_ADDRESS=host:port"),
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1234", "JAX_NUM_PROCESSES": "2"}, "need all of"),
        (
            {"JAX_COORDINATOR_ADDRESS": "localhost:1234", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
            "JAX_NUM_PROCESSES is 'two'",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "localhost:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "process_id < num_processes",
        ),
    ],
)
def test_half_a_description_of_a_cluster_is_one_line(nobody_else, told, words):
    for name, value in told.items():
        nobody_else.setenv(name, value)
    # As in a process that has done nothing yet; each of these is refused before anything would be joined.
    nobody_else.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    with pytest.raises(ClusterError) as refused:
        initialize()
    assert "\n" not in str(refused.value)
    assert words in str(refused.value)
    assert not jax.distributed.is_initialized()


def test_who_comes_too_late_is_told(nobody_else):
    with pytest.raises(ClusterError, match="jax has begun without them"):
        initialize("localhost:1234", num_processes=2, process_id=0)
