"""Several processes as one: what a cluster's launcher says in, jax's coordination out; a process's rows in, a batch out.

Under SLURM, Kubernetes, Open MPI or on a TPU VM jax finds out by itself who the others are. By hand, each process is told:

    JAX_COORDINATOR_ADDRESS=host:1234 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0 dialogpt train …
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

COORDINATOR, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


class ClusterError(ValueError):
    """What the environment says about the other processes is incomplete; one line."""


def initialize(
    coordinator: str | None = None, *, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes, if there are any; call it before anything else of jax. Alone, it does nothing.

    Nor does it do anything where jax has started already and no other process was named, as in a notebook or a test.

    Args:
      coordinator: `host:port` of process 0; by default what JAX_COORDINATOR_ADDRESS says, or the cluster's launcher.
      num_processes, process_id: by default what JAX_NUM_PROCESSES and JAX_PROCESS_ID say, or the launcher.

    Raises:
      ClusterError: a coordinator is given, and how many processes there are or which one this is, is not.
    """
    coordinator = coordinator or os.environ.get(COORDINATOR)
    num_processes = _whole(COUNT) if num_processes is None else num_processes
    process_id = _whole(NUMBER) if process_id is None else process_id
    if (num_processes is None) != (process_id is None) or (num_processes is not None and coordinator is None):
        raise ClusterError(f"several processes by hand need all of {COORDINATOR}=host:port, {COUNT} and {NUMBER}")
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except RuntimeError as error:
        if "must be called before" not in str(error):
            raise
        if coordinator is not None:
            raise ClusterError(f"cannot join the processes at {coordinator}: jax has begun without them") from error
    except ValueError as error:
        # Where jax finds no launcher it says that something "should be defined": then this process is alone.
        if "defined" not in str(error):
            raise ClusterError(f"cannot join the other processes: {error}") from error
        if coordinator is not None:
            raise ClusterError(
                f"{COORDINATOR} is {coordinator}, and no launcher says which process this is: set {COUNT} and {NUMBER}"
            ) from error


def rows_here(rows: int, sharding: NamedSharding) -> np.ndarray:
    """Which rows of a batch of `rows` lie on this process's devices, ascending: all, where there is one process."""
    places = sharding.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[place] for place in places if place is not None]))


def global_batch(read: Callable[[np.ndarray], Any], rows: int, sharding: NamedSharding) -> Any:
    """A batch of `rows` rows, of which each process reads its own.

    Args:
      read: the numbers of some rows, ascending, to a pytree of NumPy arrays with these rows first; their other axes are
        the same in every process.
      rows: of the whole batch.
      sharding: of its rows: `rules.batch_sharding(mesh)`.

    Returns:
      The pytree, of arrays over all devices of the mesh.
    """
    here = rows_here(rows, sharding)

    def place(local: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            return local[np.searchsorted(here, np.arange(rows)[index[0]])]

        return jax.make_array_from_callback((rows, *local.shape[1:]), sharding, part)

    return jax.tree.map(place, read(here))


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process; all of them must ask, at the same step, and all get the same answer."""
    if jax.process_count() == 1:
        return bool(flag)
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def first_process_says(flag: bool) -> bool:
    """What `flag` is in process 0, the one that keeps a run's history; all must ask, at the same step."""
    return any_process(flag and jax.process_index() == 0)


def gather(params: Any) -> Any:
    """Parameters, however they are divided, as whole NumPy arrays in every process; one leaf at a time, to save memory."""

    def each(leaf: Any) -> np.ndarray:
        if not leaf.is_fully_addressable:
            leaf = jax.jit(lambda x: x, out_shardings=NamedSharding(leaf.sharding.mesh, PartitionSpec()))(leaf)
        return np.asarray(leaf)

    return jax.tree.map(each, params)


def _whole(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdigit():
        raise ClusterError(f"{name} is {text!r}; expected a whole number")
    return int(text)
