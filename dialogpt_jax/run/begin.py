"""Where a run begins: its options, model and data in; its identity, and the state of step 0 or of a checkpoint, out.

The identity is all that decides which numbers come out. A run that goes on must have that of its checkpoint, but for what
`MAY_CHANGE` names.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dialogpt_jax.arguments import shown
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import examples_hash, lengths_of, rows_multiple
from dialogpt_jax.data.examples import Example
from dialogpt_jax.model import Params
from dialogpt_jax.run.checkpoints import Checkpoints
from dialogpt_jax.run.options import TrainOptions
from dialogpt_jax.run.program import TrainProgram, shardings_of
from dialogpt_jax.run.same_run import differences, json_round_trip
from dialogpt_jax.training.distillation import Teacher
from dialogpt_jax.training.objective import LANGUAGE_MODEL, Objective
from dialogpt_jax.training.step import TrainState

MAY_CHANGE = (
    "steps",
    "decay",
)  # parts of the identity that may differ when a run is resumed: it may end later, or sooner


class TrainingError(ValueError):
    """A run that cannot begin, go on or end well: one line."""


def identity_of(
    options: TrainOptions,
    config: GPT2Config,
    examples: Sequence[Example],
    mesh: Mesh,
    teachers: Sequence[Teacher] = (),
    objective: Objective = LANGUAGE_MODEL,
) -> dict[str, Any]:
    """All that decides which numbers come out, as JSON.

    Raises:
      TrainingError: there are no examples, or they do not fit the model or `max_length`.
      ValueError: the batch is not divided by its parts and the mesh.
    """
    if not isinstance(options, TrainOptions):
        raise TrainingError(f"options is {shown(options)}; give a TrainOptions, such as TrainOptions(steps=200)")
    if not isinstance(examples, Sequence):
        raise TrainingError(
            f"examples is {shown(examples)}; give the list of `make_examples`, or `open_shards(folder)`"
        )
    if not len(examples):
        raise TrainingError("there are no examples to train on")
    if not isinstance(examples[0], Example):
        raise TrainingError(f"an example is {shown(examples[0])}; `make_examples` makes examples of dialogues")
    _check_ids(examples, config)
    sizes = lengths_of(examples)
    longest, context = int(sizes.max()), config.n_positions
    prepared = getattr(examples, "info", {}).get("max_length")
    length = options.max_length or prepared or min(-(-longest // 8) * 8, context)
    if max(length, longest) > context:
        raise TrainingError(f"examples have up to {max(length, longest)} tokens; the model's context is {context}")
    if longest > length:
        raise TrainingError(f"an example has {longest} tokens, more than max_length {length}")
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    return json_round_trip(
        {
            "options": options.identity(),
            "model": dataclasses.asdict(config),
            "data": {"examples": len(sizes), "fingerprint": examples_hash(examples)},
            "length": length,
            "multiple": rows_multiple(options.batch_size, accumulate=options.accumulate, shards=shards),
        }
        | _identity_of_teachers(teachers, options.teacher_share)
        | ({} if objective is LANGUAGE_MODEL else {"objective": objective.name})
    )


def _identity_of_teachers(teachers: Sequence[Teacher], share: float) -> dict[str, Any]:
    """Who teaches, by a hash of all parameters, and how much; nothing where nobody does."""

    def fingerprint(teacher: Teacher) -> str:
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(teacher.params):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()[:16]

    return {"teachers": {"share": share, "fingerprints": list(map(fingerprint, teachers))}} if teachers else {}


def _check_ids(examples: Sequence[Example], config: GPT2Config) -> None:
    """Whether the model has a row for each token id; beyond them the embedding gives NaN, and so would the loss.

    Prepared data says how large its vocabulary is, and is read only where that is more than the model's.
    """
    info = getattr(examples, "info", {})
    if "vocab_size" in info and max(info["vocab_size"], info["eos_token_id"] + 1) <= config.vocab_size:
        return
    for number, example in enumerate(examples):
        if len(example.tokens_T) and example.tokens_T.max() >= config.vocab_size:
            raise TrainingError(
                f"example {number} has the token id {example.tokens_T.max()}, outside the model's vocabulary of "
                f"{config.vocab_size}; make the examples with this model's tokenizer"
            )


def begin_state(
    params: Params,
    program: TrainProgram,
    identity: dict[str, Any],
    checkpoints: Checkpoints | None,
    *,
    resume: bool,
    report: Callable[[str], None],
) -> tuple[TrainState, dict[str, Any]]:
    """The state of step 0, or that of the newest checkpoint, on the mesh; and the identity that the run follows.

    Raises:
      TrainingError: there are checkpoints and `resume` is false, or they are of another run.
    """
    latest = None if checkpoints is None else checkpoints.latest_step()
    if checkpoints is None or latest is None:
        masters = jax.tree.map(lambda x: np.array(x, np.float32), params)  # a copy: the state's buffers are donated
        return program.begin(jax.device_put(masters, shardings_of(program.layout.params))), identity
    if not resume:
        raise TrainingError(
            f"{checkpoints.folder} holds a run at step {latest}; resume it (--resume), or choose another folder"
        )
    state, old = checkpoints.restore(program.layout)
    identity = identity | {"multiple": old.get("multiple", identity["multiple"])}
    changed = differences(old, identity)
    refused = [line for line in changed if not line.startswith(tuple(f"options.{name}:" for name in MAY_CHANGE))]
    if refused:
        raise TrainingError(f"this is not the run in {checkpoints.folder}: {'; '.join(refused)}")
    report("; ".join([f"going on from step {int(state.step)}", *changed]))
    return state, identity
