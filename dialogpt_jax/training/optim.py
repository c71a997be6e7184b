"""The optimiser, from optax: Muon for the matrices inside the blocks, Adam for embeddings, norms and biases.

Muon (Jordan et al. 2024; optax.contrib.muon) orthogonalises each matrix's momentum. On short runs of a small model it
needs clearly fewer tokens than AdamW does for the same loss.
"""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

# Which axes of our kernels go in and out (model.py, "Layout"); the 3 of c_attn is a batch of three matrices.
_MATRICES = {
    "attn.c_attn": MuonDimensionNumbers(reduction_axis=(3,), output_axis=(1, 2)),
    "attn.c_proj": MuonDimensionNumbers(reduction_axis=(1, 2), output_axis=(0,)),
    "mlp.c_fc": MuonDimensionNumbers(reduction_axis=(1,), output_axis=(0,)),
    "mlp.c_proj": MuonDimensionNumbers(reduction_axis=(1,), output_axis=(0,)),
}


def matrix_axes(params: Any) -> Any:
    """For each parameter its axes as a matrix, or `None`: then Adam trains it."""

    def axes(path, _):
        names = [entry.key for entry in path]
        return _MATRICES.get(".".join(names[-3:-1])) if names[-1] == "kernel" else None

    return jax.tree_util.tree_map_with_path(axes, params)


def trapezoid(peak: float, *, steps: int, warmup: int, decay: int) -> optax.Schedule:
    """Up over `warmup` steps, level, and down to 0 over the last `decay` of `steps`."""
    return optax.join_schedules(
        [
            optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1)),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.0, decay),
        ],
        boundaries=[warmup, steps - decay],
    )


def muon_and_adam(
    *, steps: int, warmup: int, decay: int, muon_rate: float, adam_rate: float, clip: float
) -> optax.GradientTransformation:
    """The bundled model's optimiser: both rates follow one trapezoid; gradients are clipped by their global norm."""
    shape = {"steps": steps, "warmup": warmup, "decay": decay}
    return optax.chain(
        optax.clip_by_global_norm(clip),
        muon(
            trapezoid(muon_rate, **shape),
            adam_learning_rate=trapezoid(adam_rate, **shape),
            adam_b2=0.99,  # Adam sees a few hundred effective steps here; 0.999 would average over most of the run
            muon_weight_dimension_numbers=matrix_axes,
        ),
    )
