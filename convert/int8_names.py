"""How an int8 weight is called in a file: {name: array} in, its three parts joined under one name, and back.

    h.0.mlp.c_fc.weight  ↔  h.0.mlp.c_fc.int8_values, .int8_scales, .int8_factors

No GPT-2 has such names. `config.json` has a `quantization_config` without a `quant_method`, which transformers refuses; if
it only does not know the method, it warns, and goes on with random weights. What the parts are, `dialogpt_jax.int8` says.
The values lie as the table of `mapping.py` has the weight; scales and factors lie as ours.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dialogpt_jax.convert.names import MappingError
from dialogpt_jax.errors import escape_controls

QUANTIZATION = {"made_by": "dialogpt_jax", "weights": "int8, a scale an output", "inputs": "int8, a scale a row"}
_VALUES, _SCALES, _FACTORS = ".int8_values", ".int8_scales", ".int8_factors"


class Scaling(NamedTuple):
    """What makes weights of an int8 tensor: one scale an output (*out), one factor for each of its inputs (*inside)."""

    scales: np.ndarray
    factors: np.ndarray


def take_apart(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Scaling]]:
    """Int8 values under the names that weights have, and the scaling of each; a file without any comes back as it is.

    Raises:
      MappingError: one of three parts is missing, or of another dtype.
    """
    plain = {name: array for name, array in tensors.items() if not name.endswith((_VALUES, _SCALES, _FACTORS))}
    stems = [name.rpartition(".")[0] for name in tensors if name.endswith((_VALUES, _SCALES, _FACTORS))]
    scaling = {}
    for stem in dict.fromkeys(stems):
        parts = {part: tensors[stem + part] for part in (_VALUES, _SCALES, _FACTORS) if stem + part in tensors}
        found = [parts[part].dtype.name if part in parts else "none" for part in (_VALUES, _SCALES, _FACTORS)]
        if found != ["int8", "float32", "float32"] or f"{stem}.weight" in plain:
            raise MappingError(
                f"{escape_controls(stem, keep='')} has int8_values of dtype {found[0]}, int8_scales {found[1]} and "
                f"int8_factors {found[2]}; they must be int8, float32 and float32, and no weight beside them"
            )
        plain[f"{stem}.weight"] = parts[_VALUES]
        scaling[f"{stem}.weight"] = Scaling(parts[_SCALES], parts[_FACTORS])
    return plain, scaling


def put_together(name: str, values: np.ndarray, scaling: Scaling) -> dict[str, np.ndarray]:
    """The three tensors of a weight that is called `name`."""
    stem = name.removesuffix(".weight")
    return {stem + _VALUES: values, stem + _SCALES: scaling.scales, stem + _FACTORS: scaling.factors}
