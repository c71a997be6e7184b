"""`dialogpt train --pairs`: a model and files of pairs in; what the run of a ranker takes out.

It is the loop, the checkpoints and the flags of any other run; only what it begins from, what it reads and what it measures
is a ranker's, and that is made here.
"""

import dataclasses
from typing import Any

from dialogpt_jax.cli.train_inputs import TrainInputs, read_model
from dialogpt_jax.cli.train_run import TrainRun
from dialogpt_jax.errors import counted
from dialogpt_jax.run.options import TrainOptions

# Flags that say how dialogues are read or shown: those of `TrainInputs` that a ranker has no use for.
NOT_FOR_PAIRS = ("data", "train_on", "joined", "reverse", "teacher")


def begin_pairs(inputs: TrainInputs, options: TrainOptions, *, seed: int) -> TrainRun:
    """A ranker, and the pairs that it learns from.

    A language model becomes a ranker whose scoring row is the head's row of EOS; a ranker goes on as it is.

    Raises:
      ValueError: a flag that does not go with --pairs, files that are none of pairs, or a model that is none.
    """
    from dialogpt_jax.data.pairs import MAX_LENGTH, make_pairs, read_pairs
    from dialogpt_jax.evaluation.pair_accuracy import make_pair_evaluation
    from dialogpt_jax.training.objective import PAIRWISE

    for name in NOT_FOR_PAIRS:
        if getattr(inputs, name):
            raise ValueError(f"--{name.replace('_', '-')} does not go with --pairs: leave out one of them")
    if options.recipe is not None:
        raise ValueError("--recipe is DialoGPT's and does not go with --pairs: leave out one of them")
    params, config, tokenizer = _read_ranker(inputs, seed)
    length = min(options.max_length or MAX_LENGTH, config.n_positions // 2)
    how: dict[str, Any] = {"eos": config.eos_token_id, "max_length": length}
    examples = make_pairs(read_pairs(inputs.pairs or ""), tokenizer, **how)
    evaluate, told = None, ""
    if inputs.valid is not None:
        held_out = read_pairs(inputs.valid)[: inputs.valid_dialogues]
        evaluate = make_pair_evaluation(config, make_pairs(held_out, tokenizer, **how))
        told = f"{counted(len(held_out), 'held-out pairs')}: a coin has valid_loss 0.693 and valid_accuracy 0.5"
    return TrainRun(
        params=params,
        config=config,
        tokenizer=tokenizer,
        examples=examples,
        options=dataclasses.replace(options, max_length=None),  # of a text; a row holds two
        objective=PAIRWISE,
        evaluate=evaluate,
        told=told,
        use="load_ranker({!r}) of dialogpt_jax scores replies by it",
    )


def _read_ranker(inputs: TrainInputs, seed: int) -> tuple[Any, Any, Any]:
    from dialogpt_jax.ranking.dialogrpt import load_ranker
    from dialogpt_jax.score_row import add_score_row
    from dialogpt_jax.weights.directory import is_ranker_directory
    from dialogpt_jax.weights.hub import resolve

    if inputs.init is not None and inputs.config is None and inputs.tokenizer is None:
        folder = resolve(inputs.init, revision=inputs.revision)
        if is_ranker_directory(folder):
            ranker = load_ranker(folder)
            return ranker.params, ranker.config, ranker.tokenizer
    params, config, tokenizer, _ = read_model(inputs, seed=seed)
    return *add_score_row(params, config), tokenizer
