"""What one of several processes runs: `python process.py DIRECTORY`, with the environment that says which one it is.

It trains some steps on all processes' devices, then a run that is resumed, and writes what it saw to
DIRECTORY/<process>.json.
"""

import functools
import json
import sys
from pathlib import Path

from dialogpt_jax.parallel.distributed import any_process, global_batch, initialize, rows_here

initialize()  # before anything of jax, what an import does included

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from dialogpt_jax.config import GPT2Config  # noqa: E402
from dialogpt_jax.data.batches import Batch  # noqa: E402
from dialogpt_jax.data.examples import examples  # noqa: E402
from dialogpt_jax.model import init_params  # noqa: E402
from dialogpt_jax.parallel.mesh import make_mesh  # noqa: E402
from dialogpt_jax.parallel.rules import batch_sharding, shardings  # noqa: E402
from dialogpt_jax.run.fit import CHECKPOINTS, fit  # noqa: E402
from dialogpt_jax.run.options import TrainOptions  # noqa: E402
from dialogpt_jax.training.step import init_state, train_step  # noqa: E402

CONFIG = GPT2Config(
    vocab_size=61, n_positions=16, n_embd=16, n_layer=1, n_head=2, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
    eos_token_id=60,
)  # fmt: skip
ROWS, LENGTH, STEPS = 16, 12, 6


def read(step: int, rows: np.ndarray) -> Batch:
    """Some rows of the batch of a step."""
    rng = np.random.default_rng(step % 2)
    tokens_BT = rng.integers(0, 61, (ROWS, LENGTH)).astype(np.int32)
    weights_BT = rng.random((ROWS, LENGTH)).astype(np.float32)
    weights_BT[:5] = 0  # what the processes have to learn from differs
    return Batch(tokens_BT[rows], weights_BT[rows])


def train() -> dict:
    mesh = make_mesh({"data": 2, "fsdp": 4})
    optimizer = optax.adam(1e-2)
    fresh = functools.partial(lambda key: init_state(init_params(CONFIG, key), optimizer, key))
    places = shardings(jax.eval_shape(fresh, jax.random.key(0)), mesh)
    state = jax.jit(fresh, out_shardings=places)(jax.random.key(0))
    step_fn = jax.jit(
        functools.partial(train_step, config=CONFIG, optimizer=optimizer, mesh=mesh), out_shardings=(places, None)
    )
    seen, losses = set(), []
    for step in range(STEPS):

        def note(rows, step=step):
            seen.update(rows.tolist())
            return read(step, rows)

        state, metrics = step_fn(state, global_batch(note, ROWS, batch_sharding(mesh)))
        losses.append(float(metrics["loss"]))
    here = jax.process_index()
    return {
        "processes": jax.process_count(),
        "losses": losses,
        "read": sorted(seen),
        "rows_here": rows_here(ROWS, batch_sharding(mesh)).tolist(),
        "agreed": [any_process(False), any_process(here == 1), any_process(True)],
    }


def resume(folder: Path) -> list[int]:
    """The checkpoints of a run that is resumed, and whose held-out loss is then no better than before."""
    dialogues = [[[i, i + 1], [i + 2], [7, i]] for i in range(30)]
    losses = iter([5.0, 3.0, 4.0, 4.5])  # before the first step, after steps 2, 4 and 6

    def run(steps: int) -> None:
        fit(
            init_params(CONFIG, jax.random.key(1)),
            CONFIG,
            examples(dialogues, eos=CONFIG.eos_token_id, max_length=LENGTH),
            TrainOptions(
                steps=steps, batch_size=8, buckets=1, schedule="constant", evaluate_every=2, save_every=0, keep=9
            ),
            out=folder,
            resume=True,
            evaluate=lambda params: {"valid_loss": next(losses)},
            report=lambda line: None,
        )

    run(2)
    run(6)
    return sorted(int(path.name) for path in (folder / CHECKPOINTS).iterdir() if path.name.isdigit())


if __name__ == "__main__":
    found = train()
    found["checkpoints"] = resume(Path(sys.argv[1]) / "run")
    (Path(sys.argv[1]) / f"{jax.process_index()}.json").write_text(json.dumps(found))
