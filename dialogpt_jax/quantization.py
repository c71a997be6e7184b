"""Weights as 8-bit integers: float parameters in; parameters for decoding, a quarter of the bytes to a step, out.

    params ─quantize→ params whose kernels are `Int8Weight`s ─dequantize→ params

A weight has one scale for each output, and its input is rounded to 8 bits too, with one scale for each row, when the
product is computed (`matmul`). A few channels of GPT-2 are fifty times as large as the rest, and would leave those no more
than two or three steps of 127. So the inputs of a weight are first multiplied by `factors`, one for each channel, and the
weight is divided by them: large channels become smaller, and their columns larger, until both are alike (Xiao et al. 2022,
SmoothQuant, with α = ½). How large a channel is, is estimated from the weights that make it: no data is needed.

Embeddings, biases and norms stay as they are. The head has a weight of its own, also where it is the token embedding.

Letters: O outputs (merged), I inside, what a product sums over (merged), D model, H heads, K head dim, F mlp, V vocabulary.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialogpt_jax.arguments import shown
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.int8 import LEVELS, Int8Weight, is_int8
from dialogpt_jax.token_arrays import array_library, is_traced

Params = dict[str, Any]


def _is_weight(leaf: Any) -> bool:
    return isinstance(leaf, Int8Weight)


def quantize(params: Params) -> Params:
    """The same model with every kernel an `Int8Weight`; what is not quantised is as it was.

    Args:
      params: float parameters, as `load_params` and `init_params` give them; under `jit` too.

    Raises:
      TypeError: they are no parameters, but a `Bot`, say.
      ValueError: they are int8 already, or a part of a model alone.

    Example:
      >>> small = dg.quantize(bot.params)
      >>> small["h_0"]["mlp"]["c_fc"]["kernel"].values.dtype
      dtype('int8')
      >>> dg.Bot(small, bot.config, bot.tokenizer).reply("Does money buy happiness?")
      '...'
    """
    _check_params(params)
    if is_int8(params):
        raise ValueError("the parameters are int8 already; `dequantize` makes float ones of them")
    out = {name: _quantize_block(part) if name.startswith("h_") else part for name, part in params.items()}
    head_VD = params["lm_head"]["kernel"] if "lm_head" in params else params["wte"]["embedding"]
    out["lm_head"] = {"kernel": _quantize_weight(head_VD, 1, _size_after_norm(params["ln_f"]))}
    return out


def dequantize(params: Params, config: GPT2Config) -> Params:
    """Float parameters, in the dtype of what was not quantised; a tied head is the token embedding again.

    Raises:
      TypeError: they are no parameters, or `config` is no `GPT2Config`.
      ValueError: the parameters are no int8 ones, or a part of a model alone.

    Example:
      >>> again = dg.dequantize(dg.quantize(bot.params), bot.config)
      >>> jax.tree.structure(again) == jax.tree.structure(bot.params)
      True
    """
    _check_params(params)
    if not isinstance(config, GPT2Config):
        raise TypeError(f"config is {shown(config)}; give the GPT2Config of the parameters")
    if not is_int8(params):
        raise ValueError("the parameters are float already; `quantize` makes int8 ones of them")
    dtype = params["wte"]["embedding"].dtype
    kept = {name: part for name, part in params.items() if name != "lm_head" or not config.tie_word_embeddings}
    return jax.tree.map(lambda leaf: _as_float(leaf, dtype) if _is_weight(leaf) else leaf, kept, is_leaf=_is_weight)


def _check_params(params: Any) -> None:
    if not isinstance(params, Mapping):
        raise TypeError(f"params is {shown(params)}; give the parameters, such as `bot.params`")
    lacking = [name for name in ("wte", "h_0", "ln_f") if name not in params]
    if lacking:
        raise ValueError(
            f"the parameters have no {', '.join(lacking)}; give those of the whole model, such as `bot.params`"
        )


def _as_float(weight: Int8Weight, dtype: Any) -> jax.Array:
    library = array_library(weight.values)
    values_OI = library.asarray(weight.values, np.float32).reshape(weight.scales.size, -1)
    scales_O, factors_I = (library.asarray(x, np.float32).reshape(-1) for x in (weight.scales, weight.factors))
    with np.errstate(over="ignore", invalid="ignore"):  # of scales that are not finite, who read them has told
        kernel_OI = values_OI * scales_O[:, None] * factors_I[None]
    return jnp.asarray(kernel_OI.reshape(weight.values.shape), dtype)


def _quantize_block(block: Params) -> Params:
    attn, mlp = block["attn"], block["mlp"]
    x_D, x2_D = _size_after_norm(block["ln_1"]), _size_after_norm(block["ln_2"])
    v_HK = _size_of_outputs(attn["c_attn"]["kernel"][2], attn["c_attn"]["bias"][2], x_D)
    x_F = _size_of_outputs(mlp["c_fc"]["kernel"], mlp["c_fc"]["bias"], x2_D)
    return block | {
        "attn": {"c_attn": _quantize_linear(attn["c_attn"], x_D), "c_proj": _quantize_linear(attn["c_proj"], v_HK)},
        "mlp": {"c_fc": _quantize_linear(mlp["c_fc"], x2_D), "c_proj": _quantize_linear(mlp["c_proj"], x_F)},
    }


def _quantize_linear(linear: Params, sizes: Any) -> Params:
    return linear | {"kernel": _quantize_weight(linear["kernel"], linear["bias"].ndim, sizes)}


def _quantize_weight(kernel: Any, outputs: int, sizes: Any) -> Int8Weight:
    """A weight whose first so many axes are outputs; `sizes` (*inside) says how large its inputs are."""
    library = array_library(kernel)
    out, inside = kernel.shape[:outputs], kernel.shape[outputs:]
    w_OI = _as_matrix(kernel, math.prod(out))
    columns_I = abs(w_OI).max(axis=0)
    factors_I = library.sqrt(_or_one(columns_I, library) / _or_one(sizes.reshape(-1), library))
    w_OI = w_OI / factors_I[None]
    scales_O = abs(w_OI).max(axis=1) / np.float32(LEVELS)
    values_OI = library.rint(w_OI / _or_one(scales_O, library)[:, None]).astype(np.int8)
    values, scales, factors = values_OI.reshape(kernel.shape), scales_O.reshape(out), factors_I.reshape(inside)
    return Int8Weight(*map(jnp.asarray, (values, scales, factors)))


def _as_matrix(kernel: Any, outputs: int) -> Any:
    """Float32 (O, I). In memory as its axes say, whatever a file had: so sums run in one order, and bits are the same."""
    w = array_library(kernel).asarray(kernel, np.float32)
    return (w if is_traced(w) else np.ascontiguousarray(w)).reshape(outputs, -1)


def _or_one(x: Any, library: Any) -> Any:
    """1 instead of 0, in what is divided by."""
    return library.where(x > 0, x, np.float32(1))


def _size_after_norm(norm: Params) -> Any:
    """The root mean square of each channel of gain · n + bias, n of variance one."""
    library = array_library(norm["scale"])
    return library.hypot(*(library.asarray(norm[name], np.float32) for name in ("scale", "bias")))


def _size_of_outputs(kernel: Any, bias: Any, sizes_D: Any) -> Any:
    """The root mean square of each output (*out) of a weight (*out, D), its inputs of these sizes and independent."""
    library = array_library(kernel)
    w_OD = _as_matrix(kernel, bias.size)
    b_O = library.asarray(bias, np.float32).reshape(-1)
    return library.sqrt(library.square(w_OD * sizes_D[None]).sum(axis=1) + library.square(b_O)).reshape(bias.shape)
