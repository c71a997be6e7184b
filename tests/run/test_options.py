"""What a run is told: numbers that are refused, what the words of the command become, what a identity says."""

import dataclasses
import json
import re

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialogpt_jax.cli import train
from dialogpt_jax.data.batches import Buckets, SortedWindows
from dialogpt_jax.run.options import TrainOptions
from dialogpt_jax.run.same_run import differences, json_round_trip
from dialogpt_jax.training.recipes import QUIRKS, Recipe

TOLERANCE = 1e-6  # of rates: float32 against Python's numbers
CONFIG = fakes.TINY  # 32 wide


def options_of(words: str = "") -> TrainOptions:
    _, bound, _ = train.app.parse_args(words.split(), exit_on_error=False, print_error=False)
    flags = {"how": train.HowFlags(), "when": train.WhenFlags(), "recipe": train.RecipeFlags()}
    return train.options_of(**{name: bound.arguments.get(name, unsaid) for name, unsaid in flags.items()})


@pytest.mark.parametrize(
    ("field", "values", "said"),
    [
        (
            ("steps", "batch_size", "accumulate", "buckets", "keep"),
            (0, -1, 1.5, True, 2**31),
            "a whole number from 1 to",
        ),
        (("warmup", "log_every", "evaluate_every", "save_every"), (-1, 0.5, "5"), "a whole number from 0 to"),
        (
            ("learning_rate", "weight_decay", "embedding_decay", "adam_share", "clip"),
            (-1, float("nan"), float("inf"), 1e39, True, "1"),
            "a finite number from 0",
        ),
        (("dropout", "b2", "average"), (-0.1, 1.0, float("nan")), "a finite number from 0 to below 1"),
        (("seed",), (-1, 2**32), f"a whole number from 0 to {2**32 - 1}"),
        (("max_length",), (1, -4), "a whole number from 2 to"),
        (("decay",), (0, -1), "a whole number from 1 to"),
    ],
)
def test_a_number_that_cannot_be_is_refused_by_its_name(field, values, said):
    for name in field:
        for value in values:
            with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}; it must be {said}")) as caught:
                TrainOptions(**({"steps": 9} | {name: value}))
            assert "\n" not in str(caught.value)


def test_names_that_are_none_are_refused_before_anything_begins():
    for name, value, said in (
        ("schedule", "sine", "no schedule is called 'sine'; there are constant, linear"),
        ("optimizer", "sgd", "no optimiser is called 'sgd'; there are adamw, muon"),
        ("dtype", "int8", "dtype is int8, through which no gradient flows"),
        ("dtype", "float16", "dtype is float16; small gradients would become 0 there, as the loss is not scaled"),
        ("recipe", "paper", "recipe is 'paper'; give Recipe.paper()"),
    ):
        with pytest.raises((ValueError, TypeError), match=re.escape(said)):
            TrainOptions(steps=9, **{name: value})
    with pytest.raises(ValueError, match="optimizer is muon; the recipe has an optimiser of its own"):
        TrainOptions(recipe=Recipe.paper(), optimizer="muon")


def test_numbers_of_numpy_are_taken_and_stand_as_python_s():
    given = TrainOptions(
        np.int64(9), np.int32(8), learning_rate=np.float32(0.5), dropout=np.float64(0.25), seed=jnp.int32(3)
    )
    assert given == TrainOptions(steps=9, batch_size=8, learning_rate=0.5, dropout=0.25, seed=3)
    assert json.loads(json.dumps(given.identity())) == given.identity()


def test_a_recipe_s_numbers_stand_unless_others_are_said():
    """In Python as in the command."""
    paper = TrainOptions(recipe=Recipe.paper())
    assert paper == options_of("--recipe paper")
    numbers = dataclasses.asdict(Recipe.paper().numbers)
    shared = [name for name in numbers if hasattr(paper, name) and name != "max_length"]
    assert len(shared) == 11
    assert {name: getattr(paper, name) for name in shared} == {name: numbers[name] for name in shared}
    own = TrainOptions(recipe=Recipe.paper().with_numbers(batch_size=64, weight_decay=0.2), batch_size=16, clip=0.0)
    assert (own.batch_size, own.weight_decay, own.clip, own.steps) == (16, 0.2, 0.0, 10_000)


def test_the_ends_of_the_ranges_are_taken():
    edge = TrainOptions(steps=1, learning_rate=0, warmup=0, clip=0, dropout=0.0, b2=0.0, seed=2**32 - 1, max_length=2)
    assert edge.with_dropout(CONFIG).resid_pdrop == 0.0


def test_the_words_become_options():
    found = options_of(
        "--steps 50 --batch-size 4 --accumulate 2 --learning-rate 3e-4 --warmup 7 --schedule cosine --clip 0"
        " --dtype bfloat16 --seed 5 --dropout 0.2 --optimizer muon --weight-decay 0.1 --b2 0.95 --buckets 3 --keep 4"
        " --save-every 6 --log-every 2 --evaluate-every 8 --max-length 64 --checkpoint-blocks"
    )
    assert found == TrainOptions(
        steps=50,
        batch_size=4,
        accumulate=2,
        learning_rate=3e-4,
        warmup=7,
        schedule="cosine",
        clip=0.0,
        dtype="bfloat16",
        seed=5,
        dropout=0.2,
        optimizer="muon",
        weight_decay=0.1,
        b2=0.95,
        buckets=3,
        keep=4,
        save_every=6,
        log_every=2,
        evaluate_every=8,
        max_length=64,
        checkpoint_blocks=True,
    )


def test_what_is_not_said_follows_the_steps():
    plain = options_of()
    assert plain == TrainOptions(steps=1000, warmup=100, evaluate_every=100, save_every=100)
    assert options_of("--steps 100000").warmup == 1000
    # A run of a few steps is looked at before and after it, not at each.
    assert options_of("--steps 1") == TrainOptions(steps=1, warmup=0, evaluate_every=10, save_every=1)
    assert options_of("--steps 5 --schedule noam").warmup == 1  # it has no run without one
    for schedule in ("constant", "linear", "cosine", "noam", "noamwd", "trapezoid"):
        rate = options_of(f"--steps 1 --schedule {schedule}").rate(CONFIG)
        assert np.isfinite(rate(0))


def test_the_paper_s_recipe_brings_its_numbers_and_words_override_them():
    paper = options_of("--recipe paper")
    assert paper.recipe == Recipe.paper()
    numbers = {"batch_size": 512, "accumulate": 8, "steps": 10_000, "schedule": "noam", "learning_rate": 1e-5}
    numbers |= {"warmup": 4000, "seed": 42, "evaluate_every": 5000, "max_length": None}
    assert {name: getattr(paper, name) for name in numbers} == numbers
    peak = 1e-5 * 1e4 * 32**-0.5 * 4000**-0.5
    assert float(paper.rate(CONFIG)(3999)) == pytest.approx(peak, rel=1e-5)
    mine = options_of("--recipe paper --batch-size 16 --accumulate 2 --steps 40 --warmup 9 --seed 3")
    assert (mine.batch_size, mine.accumulate, mine.steps, mine.warmup, mine.seed) == (16, 2, 40, 9, 3)
    assert float(mine.rate(CONFIG)(8)) == pytest.approx(1e-5 * 1e4 * 32**-0.5 * 9**-0.5, rel=1e-5)


def test_quirks_are_put_right_by_name_or_all():
    def fixed(words=""):
        return {name for name in QUIRKS if getattr(options_of(f"--recipe paper {words}").recipe, name) == "fixed"}

    assert fixed() == {"resume"}
    assert fixed("--fixed rate,clip") == {"resume", "rate", "clip"}
    assert fixed("--fixed all") == set(QUIRKS)
    with pytest.raises(ValueError, match="no quirk is called 'clipping'; there are rate, "):
        fixed("--fixed rate,clipping")
    with pytest.raises(ValueError, match="--fixed names quirks of a recipe; give --recipe paper too"):
        options_of("--fixed rate")
    rate = options_of("--recipe paper --fixed rate").rate(CONFIG)
    assert float(rate(3999)) == pytest.approx(1e-5, rel=TOLERANCE)


def test_the_recipe_decides_batches_weights_and_dropout():
    config = dataclasses.replace(CONFIG, resid_pdrop=0.3)
    plain = TrainOptions(steps=9, batch_size=16)
    paper = dataclasses.replace(plain, recipe=Recipe.paper())
    right = dataclasses.replace(plain, recipe=Recipe.paper().fixed())
    assert plain.planner(24, 8) == Buckets(16, 24, 8, 8) == right.planner(24, 8)
    assert isinstance(paper.planner(24, 8), SortedWindows)
    assert plain.with_dropout(config) is config
    assert paper.with_dropout(config).resid_pdrop == 0.0
    assert right.with_dropout(config).resid_pdrop == 0.1
    assert dataclasses.replace(paper, dropout=0.4).with_dropout(config).resid_pdrop == 0.4
    weights_BT = jnp.array([[0, 0.3, 1], [0, 2, 0]], jnp.float32)
    for options, expected_BT in (
        (plain, weights_BT),
        (right, weights_BT),
        (paper, (weights_BT != 0).astype(jnp.float32)),
    ):
        np.testing.assert_array_equal(options.weigh(weights_BT), expected_BT)


def test_a_clip_of_0_is_none():
    params = {"kernel": jnp.ones((2, 2))}
    huge = {"kernel": jnp.full((2, 2), 1e6)}

    def moments(clip):
        transformation = TrainOptions(steps=3, clip=clip, weight_decay=0).transformation(CONFIG)
        state = transformation.update(huge, transformation.init(params), params)[1]
        return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(state))

    assert moments(0.0) > 1e4
    assert moments(1.0) < 10


def test_a_plan_says_what_changes_numbers_and_nothing_else():
    base = TrainOptions(steps=9)
    assert json_round_trip(base.identity()) == json.loads(json.dumps(base.identity()))
    quiet = {"log_every": 3, "evaluate_every": 3, "save_every": 3, "keep": 9, "checkpoint_blocks": True}
    quiet["teacher_share"] = 0.3  # a run that has teachers notes it beside them
    loud = {"steps": 8, "batch_size": 3, "accumulate": 3, "learning_rate": 0.5, "warmup": 1, "schedule": "cosine"}
    loud |= {"decay": 3, "optimizer": "muon", "weight_decay": 0.5, "b2": 0.5, "clip": 0.5, "dropout": 0.5, "seed": 1}
    loud |= {
        "dtype": "bfloat16",
        "max_length": 8,
        "buckets": 2,
        "embedding_decay": 0.5,
        "adam_share": 0.5,
        "average": 0.5,
    }
    paper = dataclasses.replace(base, recipe=Recipe.paper())
    assert {field.name for field in dataclasses.fields(TrainOptions)} == set(quiet) | set(loud) | {"recipe"}
    for name, value in quiet.items():
        assert differences(base.identity(), dataclasses.replace(base, **{name: value}).identity()) == []
    for name, value in loud.items():
        (line,) = differences(base.identity(), dataclasses.replace(base, **{name: value}).identity())
        assert line.startswith(f"{name}: ")
    (line,) = differences(paper.identity(), dataclasses.replace(paper, recipe=Recipe.paper().fixed("clip")).identity())
    assert line.startswith("recipe.clip: ")
