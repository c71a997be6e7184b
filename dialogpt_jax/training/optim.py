"""Optimisers, from optax: a schedule in, a gradient transformation out. AdamW; and Muon with Adam, the bundled model's.

Muon (Jordan et al. 2024; optax.contrib.muon) orthogonalises each matrix's momentum. On short runs of a small model it
needs clearly fewer tokens than AdamW does for the same loss.

Weight decay takes matrices: the blocks' kernels, the head, and the embeddings, wte and wpe. Biases and norms are left
alone: they are few, and pulling a gain to 0 is no prior. That embeddings decay is what microsoft/DialoGPT means (its
`no_decay` list holds 'bias' and 'ln'), what GPT-2's reimplementations do, and wte is the output matrix as well.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from dialogpt_jax.training.names import ADAM_SHARE, OPTIMIZERS, UnknownOptimizer

# Which axes of our kernels go in and out (model.py, "Layout"); the 3 of c_attn is a batch of three matrices.
_MATRICES = {
    "attn.c_attn": MuonDimensionNumbers(reduction_axis=(3,), output_axis=(1, 2)),
    "attn.c_proj": MuonDimensionNumbers(reduction_axis=(1, 2), output_axis=(0,)),
    "mlp.c_fc": MuonDimensionNumbers(reduction_axis=(1,), output_axis=(0,)),
    "mlp.c_proj": MuonDimensionNumbers(reduction_axis=(1,), output_axis=(0,)),
}
# The last name of a parameter's path. By name, not by rank: the bias of c_attn has three axes.
_DECAYS = {"kernel": True, "embedding": True, "bias": False, "scale": False}


def decays(params: Any) -> Any:
    """For each parameter whether weight decay takes it.

    Raises:
      ValueError: a parameter's name is neither a matrix's nor a vector's.
    """

    def of(path, _):
        name = path[-1].key
        if name not in _DECAYS:
            where = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(f"whether {where} decays is not known; the names that are: {', '.join(_DECAYS)}")
        return _DECAYS[name]

    return jax.tree_util.tree_map_with_path(of, params)


def matrix_axes(params: Any) -> Any:
    """For each parameter its axes as a matrix, or `None`: then Adam trains it."""

    def axes(path, _):
        names = [entry.key for entry in path]
        return _MATRICES.get(".".join(names[-3:-1])) if names[-1] == "kernel" else None

    return jax.tree_util.tree_map_with_path(axes, params)


def adamw(
    schedule: optax.ScalarOrSchedule,
    *,
    weight_decay: float | None = 0.01,
    embedding_decay: float | None = None,
    clip: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019): clip by the global norm, Adam, decay of matrices, times the rate.

    Args:
      schedule: the rate by step.
      weight_decay: of matrices (see the head of this file), times the rate; 0 or `None`: absent.
      embedding_decay: of the embeddings among them; `None`: the same.
      clip: greatest norm of all gradients together; 0 or `None`: absent.
    """
    parts = [optax.scale_by_adam(b1, b2, eps)]
    if clip:
        parts.insert(0, optax.clip_by_global_norm(clip))
    kernels, embeddings = _decay_of(weight_decay, embedding_decay)
    if kernels == embeddings and kernels:
        parts.append(optax.add_decayed_weights(kernels, decays))
    elif kernels or embeddings:
        parts.append(optax.add_decayed_weights(kernels, _named("kernel")))
        parts.append(optax.add_decayed_weights(embeddings, _named("embedding")))
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule))


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    weight_decay: float | None = 0.01,
    embedding_decay: float | None = None,
    adam_share: float = ADAM_SHARE,
    clip: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """The optimiser of a name; the arguments are those of `adamw`, and `adam_share`, Adam's rate over Muon's.

    `muon`: the schedule is Muon's, for the matrices inside the blocks; the rest has Adam with b1, b2, Nesterov's momentum
    and `adam_share` of the rate. Weight decay takes the same parameters as with `adamw`, at each one's own rate.

    Raises:
      UnknownOptimizer: a ValueError that names those there are.
    """
    if name == "adamw":
        decay = {"weight_decay": weight_decay, "embedding_decay": embedding_decay}
        return adamw(schedule, **decay, clip=clip, b1=b1, b2=b2, eps=eps)
    if name == "muon":
        # Rates relative to the schedule first, the schedule last: so decay, which stands between, follows it too.
        parts = [
            muon(
                1.0,
                adam_learning_rate=adam_share,
                adam_b1=b1,
                adam_b2=b2,
                eps=eps,
                muon_weight_dimension_numbers=matrix_axes,
            )
        ]
        if clip:
            parts.insert(0, optax.clip_by_global_norm(clip))
        kernels, embeddings = _decay_of(weight_decay, embedding_decay)
        if kernels:
            parts.append(optax.add_decayed_weights(-kernels, _is_muons))
            parts.append(optax.add_decayed_weights(-kernels * adam_share, _is_adams_kernel))
        if embeddings:
            parts.append(optax.add_decayed_weights(-embeddings * adam_share, _named("embedding")))
        return optax.chain(*parts, optax.scale_by_schedule(schedule))
    raise UnknownOptimizer(f"no optimiser is called {name!r}; there are {', '.join(OPTIMIZERS)}")


def _is_muons(params):
    return jax.tree.map(lambda _, axes: axes is not None, params, matrix_axes(params))


def _is_adams_kernel(params):
    return jax.tree.map(lambda kernel, muons: kernel and not muons, _named("kernel")(params), _is_muons(params))


def _decay_of(weight_decay: float | None, embedding_decay: float | None) -> tuple[float, float]:
    """Of kernels, and of embeddings."""
    kernels = weight_decay or 0.0
    return kernels, kernels if embedding_decay is None else embedding_decay


def _named(name: str):
    """The mask of the parameters of a name that decays; a name that is not known is an error, as in `decays`."""

    def mask(params):
        return jax.tree_util.tree_map_with_path(lambda path, decay: decay and path[-1].key == name, decays(params))

    return mask


def clip_each(limit: float) -> optax.GradientTransformation:
    """Clips every parameter's gradient by its own norm, as `torch.nn.utils.clip_grad_norm_` does when called on one."""

    def clip(g, _):
        return g * jnp.minimum(limit / (jnp.sqrt(jnp.square(g).sum()) + 1e-6), 1.0)  # torch's 1e-6

    return optax.stateless_with_tree_map(clip)


def scale_by_uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """m / (√v + eps) of Adam's moments as they are: optax's without the correction of their start at 0.

    The first steps are larger than Adam's: the very first by (1 − b1) / √(1 − b2), 3.2 times with 0.9 and 0.999.
    """
    adam = optax.scale_by_adam(b1, b2, eps)

    def update(grads, state, params=None):
        _, state = adam.update(grads, state, params)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), state.mu, state.nu), state

    return optax.GradientTransformation(adam.init, update)
