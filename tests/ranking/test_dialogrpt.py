"""A ranker's probabilities: those of each whole text by itself, whatever else is scored with it; the authors' own values.

Letters: T tokens, D model, N candidates.
"""

import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ranking.rankers import CONFIG, REPLIES, TOKENIZER, TURNS, draw_ranker, draw_ranker_tensors, ids_of

import dialogpt_jax as dg
from dialogpt_jax.cli.main import main
from dialogpt_jax.convert.mapping import from_params, to_params, to_ranker_params
from dialogpt_jax.model import hidden
from dialogpt_jax.ranking import dialogrpt
from dialogpt_jax.ranking.dialogrpt import probabilities, read_contexts, score_replies
from dialogpt_jax.score_row import trunk_of

# Probabilities of scores about 1 wide, in float32 and by programs of other shapes.
TOLERANCE = 2e-6
RANKER = draw_ranker()

# golsun/DialogRPT, doc/toy.tsv.ensemble.jsonl
TOY = {
    "I love NLP!": {
        "Here’s a free textbook (URL) in case anyone needs it.": (
            0.875923216342926,
            0.6866590976715088,
            0.6128572225570679,
            0.4968094825744629,
            0.3681032657623291,
            0.5319748520851135,
        ),
        "It’s super useful and more and more powerful!": (
            0.7438808679580688,
            0.6686411499977112,
            0.29050877690315247,
            0.10862986743450165,
            0.052612606436014175,
            0.22798165678977966,
        ),
        "Me too!": (
            0.630566418170929,
            0.6046908497810364,
            0.11055243015289307,
            0.031935129314661026,
            0.028544878587126732,
            0.0703396126627922,
        ),
    },
    "How are you?": {
        "pretty good! :)": (
            0.9802649021148682,
            0.3306310772895813,
            0.20513156056404114,
            0.111829474568367,
            0.08141987770795822,
            0.14587044715881348,
        ),
        "Not bad.": (
            0.962352991104126,
            0.462787926197052,
            0.17496052384376526,
            0.0771029144525528,
            0.07592014223337173,
            0.12652477622032166,
        ),
    },
}
FIVE = ("human_vs_rand", "human_vs_machine", "updown", "depth", "width")
# A folder with a model directory for each of `FIVE`, or with one of them: `dialogpt convert updown.pth FOLDER/updown
# --tokenizer microsoft/DialoGPT-medium`.
PUBLISHED = os.environ.get("DIALOGPT_TESTS_RANKERS")


@jax.jit
def hidden_of_text(tokens_BT, positions_BT):
    return hidden(trunk_of(RANKER.params), CONFIG, tokens_BT, positions_BT)[0]


def alone(turns, reply) -> float:
    """The probability of one text without a cache, a bucket or another text."""
    return probability_of(ids_of(turns, reply))


def probability_of(ids) -> float:
    tokens_BT = np.zeros((1, CONFIG.n_positions), np.int32)
    tokens_BT[0, : len(ids)] = ids
    positions_BT = np.arange(CONFIG.n_positions)[None]
    x_D = np.asarray(hidden_of_text(tokens_BT, positions_BT))[0, len(ids) - 1]
    score = x_D.astype(np.float64) @ np.asarray(RANKER.params["score"]["kernel"], np.float64)[0]
    return 1 / (1 + np.exp(-score))


def test_a_score_is_read_at_the_last_token_of_each_whole_text():
    found = RANKER.score(TURNS, REPLIES)
    assert (found.dtype, found.shape) == (np.float32, (5,))
    expected = [alone(TURNS, reply) for reply in REPLIES]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    assert np.ptp(found) > 0.2  # so that another place, order or function shows
    swapped = [alone([reply], TURNS[-1]) for reply in REPLIES if reply]
    assert np.abs(np.array(swapped) - found[np.array(REPLIES) != ""]).min() > 100 * TOLERANCE


def test_the_others_their_order_and_their_number_change_nothing(monkeypatch):
    found = RANKER.score(TURNS, REPLIES)
    np.testing.assert_allclose(RANKER.score(TURNS, REPLIES[::-1]), found[::-1], atol=TOLERANCE)
    np.testing.assert_allclose(RANKER.score(TURNS, REPLIES[1:2]), found[1:2], atol=TOLERANCE)
    monkeypatch.setattr(dialogrpt, "MOST_TOGETHER", 8)
    many = RANKER.score(TURNS, REPLIES * 8)  # more than one call's
    np.testing.assert_allclose(many, np.tile(found, 8), atol=TOLERANCE)
    assert RANKER.score(TURNS, []).shape == (0,)
    messages = [{"role": "user", "content": turn} for turn in TURNS]
    np.testing.assert_array_equal(RANKER.score(messages, [f" {reply}\n" for reply in REPLIES]), found)


def test_contexts_of_several_lengths_are_one_call_and_pads_change_nothing():
    said = [TURNS, TURNS[:1]]
    contexts = [ids_of(turns, "") for turns in said]
    replies = [[list(TOKENIZER.encode(reply.strip())) for reply in REPLIES[:4]], [[3, 4, 5], [6], [], [7, 8]]]
    lengths_B = np.array([len(context) for context in contexts], np.int32)
    counts_BN = np.array([[len(reply) for reply in row] for row in replies], np.int32)
    found = []
    for pad in (0, CONFIG.eos_token_id):
        context_BT = np.full((2, 32), pad, np.int32)
        replies_BNR = np.full((2, 4, 16), pad, np.int32)
        for row in range(2):
            context_BT[row, : lengths_B[row]] = contexts[row]
            for n, reply in enumerate(replies[row]):
                replies_BNR[row, n, : len(reply)] = reply
        empty_B, prefix = read_contexts(RANKER.params, CONFIG, context_BT, lengths_B)
        found.append(score_replies(RANKER.params, CONFIG, empty_B, prefix, lengths_B, replies_BNR, counts_BN))
    np.testing.assert_array_equal(*found)
    expected = [
        [probability_of(context + reply) for reply in row] for context, row in zip(contexts, replies, strict=True)
    ]
    np.testing.assert_allclose(probabilities(found[0]), expected, atol=TOLERANCE)


def test_what_is_too_long_is_cut_and_touches_no_other():
    found = RANKER.score(TURNS, REPLIES)
    long = "I am fine, " * 30
    with pytest.warns(dg.TruncationWarning, match="first 32 was left out"):
        with_long = RANKER.score(TURNS, [*REPLIES, long])
    np.testing.assert_allclose(with_long[:-1], found, atol=TOLERANCE)
    assert np.isfinite(with_long[-1])
    with pytest.warns(dg.TruncationWarning, match="the last turn has"):
        assert np.isfinite(RANKER.score(long, REPLIES)).all()


def test_a_probability_is_the_sigmoid_of_a_score_and_never_overflows():
    scores = np.array([-1e4, -30.0, -2.0, 0.0, 2.0, 1e4], np.float32)
    np.testing.assert_allclose(probabilities(scores), jax.nn.sigmoid(scores), rtol=1e-6, atol=1e-9)
    assert np.diff(probabilities(np.float32([-31.0, -30.0]))) > 0


def test_a_fresh_row_is_the_head_s_row_of_the_end():
    tensors = draw_ranker_tensors()
    del tensors["score.weight"]
    params, config = to_params(tensors, CONFIG)[0], CONFIG
    ranker = dg.Ranker.untrained(jax.tree.map(jnp.asarray, params), config, TOKENIZER)
    np.testing.assert_array_equal(
        ranker.params["score"]["kernel"], tensors["transformer.wte.weight"][config.eos_token_id][None]
    )
    head = np.random.default_rng(0).normal(size=params["wte"]["embedding"].shape).astype(np.float32)
    untied = dataclasses.replace(config, tie_word_embeddings=False)
    ranker = dg.Ranker.untrained({**params, "lm_head": {"kernel": head}}, untied, TOKENIZER)
    np.testing.assert_array_equal(ranker.params["score"]["kernel"], head[config.eos_token_id][None])
    assert "lm_head" not in ranker.params
    assert ranker.config == config


def test_wrong_arguments_are_one_line_each(tmp_path):
    for replies, words in (("Hi.", "replies is 'Hi.'"), ([3], "reply 0 is 3"), (None, "replies is None")):
        with pytest.raises(TypeError, match=words):
            RANKER.score(TURNS, replies)
    with pytest.raises(dg.DialogueError, match="no turn"):
        RANKER.score([], REPLIES)
    trunk = trunk_of(RANKER.params)
    with pytest.raises(ValueError, match="no scoring row"):
        dg.Ranker(trunk, CONFIG, TOKENIZER)
    with pytest.raises(ValueError, match=r"scoring row has the shape \(2, 32\)"):
        dg.Ranker({**trunk, "score": {"kernel": np.zeros((2, 32), np.float32)}}, CONFIG, TOKENIZER)
    with pytest.raises(ValueError, match="a score/kernel, against this config"):
        dg.Bot(RANKER.params, CONFIG, TOKENIZER)
    small = dg.quantize(jax.tree.map(jnp.asarray, trunk))
    with pytest.raises(ValueError, match="int8"):
        dg.Ranker({**small, "score": RANKER.params["score"]}, CONFIG, TOKENIZER)
    broken = {**RANKER.params, "score": {"kernel": np.full((1, 32), np.nan, np.float32)}}
    with pytest.raises(dg.NonFiniteLogits):
        dg.Ranker(broken, CONFIG, TOKENIZER).score(TURNS, REPLIES)


def test_the_ensemble_is_the_authors():
    for replies in TOY.values():
        columns = np.array(list(replies.values())).T
        found = dg.ensemble_score(dict(zip(FIVE, columns, strict=False)))
        np.testing.assert_allclose(found, columns[-1], atol=1e-6)
    four = {name: [0.5] for name in FIVE[:-1]}
    with pytest.raises(ValueError, match="those of human_vs_rand, human_vs_machine, updown, depth, width"):
        dg.ensemble_score(four)
    with pytest.raises(ValueError, match=r"different replies: .*width \(2,\)"):
        dg.ensemble_score({**four, "width": [0.5, 0.5]})


if PUBLISHED is not None:  # not a skip: nobody has these files by accident

    def test_the_published_rankers_give_the_published_values():
        folder = Path(PUBLISHED or "")
        there = [name for name in FIVE if (folder / name).is_dir()]
        assert there, f"{folder} has none of {', '.join(FIVE)}"
        found: dict[str, dict[str, np.ndarray]] = {turn: {} for turn in TOY}
        for name in there:
            ranker = dg.load_ranker(folder / name)
            for turn, replies in TOY.items():
                found[turn][name] = ranker.score(turn, list(replies))
                expected = [values[FIVE.index(name)] for values in replies.values()]
                np.testing.assert_allclose(found[turn][name], expected, atol=1e-4, err_msg=f"{name}: {turn}")
        if len(there) == len(FIVE):
            for turn, replies in TOY.items():
                expected = [values[-1] for values in replies.values()]
                np.testing.assert_allclose(dg.ensemble_score(found[turn]), expected, atol=1e-4)


def test_a_directory_comes_back_bit_for_bit_and_each_door_takes_its_own(tmp_path):
    RANKER.save(tmp_path / "ranker")
    again = dg.load_ranker(tmp_path / "ranker")
    jax.tree.map(np.testing.assert_array_equal, again.params, RANKER.params)
    assert again.config == CONFIG
    fields = json.loads((tmp_path / "ranker/config.json").read_text())
    assert fields["architectures"] == ["GPT2ForSequenceClassification"]
    assert fields["id2label"] == {"0": "LABEL_0"}
    assert fields.get("pad_token_id") is None
    assert repr(again).startswith(f"Ranker({CONFIG.num_parameters + 32:,} parameters in float32: 2 layers")
    assert dg.load_ranker(tmp_path / "ranker", dtype="bfloat16").params["score"]["kernel"].dtype == "bfloat16"
    with pytest.raises(dg.ModelDirectoryError, match=r"ranker: a ranker, for it has score.weight: .*load_ranker"):
        dg.load(tmp_path / "ranker")
    with pytest.raises(ValueError, match="int8"):
        dg.load_ranker(tmp_path / "ranker", dtype="int8")
    dg.write_directory(tmp_path / "plain", trunk_of(RANKER.params), CONFIG, TOKENIZER)
    with pytest.raises(dg.ModelDirectoryError, match=r"plain: a language model and no ranker, for it has no score.wei"):
        dg.load_ranker(tmp_path / "plain")


def test_a_ranker_converts_to_a_directory_alone(tmp_path, capsys):
    RANKER.save(tmp_path / "ranker")
    assert main(["inspect", str(tmp_path / "ranker")]) == 0
    said = capsys.readouterr().out
    for line in (
        "what        DialogRPT ranker",
        "head        a scoring row",
        f"parameters  {CONFIG.num_parameters + 32:,}",
    ):
        assert line in said
    assert "misfit" not in said
    assert said.count("warning") == 1  # that it is no chat model
    assert main(["convert", str(tmp_path / "ranker"), str(tmp_path / "half"), "--dtype", "float16"]) == 0
    assert "a ranker" in capsys.readouterr().out.splitlines()[-1]
    kernel = dg.load_ranker(tmp_path / "half").params["score"]["kernel"]
    np.testing.assert_array_equal(kernel, np.asarray(RANKER.params["score"]["kernel"], np.float16).astype(np.float32))
    for words in (["x.pkl", "--to", "pkl"], ["x.gguf", "--to", "gguf"], ["eight", "--dtype", "int8"]):
        assert main(["convert", str(tmp_path / "ranker"), str(tmp_path / words[0]), *words[1:]]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "is a ranker, which goes into a model directory in floating point" in line
        assert not (tmp_path / words[0]).exists()


def test_a_file_of_a_ranker_is_held_to_the_table():
    tensors = draw_ranker_tensors()
    wrapped = {f"module.{name}": array for name, array in tensors.items()}
    params, report = to_ranker_params({**wrapped, "lm_head.decoder.weight": np.ones((320, 32), np.float32)}, CONFIG)
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(RANKER.params))
    assert ("lm_head.weight", "a ranker scores, and has no head") in report.dropped
    assert ("module.score.weight", "score.weight") in report.renamed
    np.testing.assert_equal(from_params(params, CONFIG), tensors)
    with pytest.raises(
        dg.MappingError, match=r"(?s)1 tensor differs from.*- score.weight \(1, 32\)\n\+ score.weight \(3, 32\)"
    ):
        to_ranker_params({**tensors, "score.weight": np.ones((3, 32), np.float32)}, CONFIG)
    broken = {**tensors, "score.weight": np.full((1, 32), np.inf, np.float32)}
    with pytest.warns(dg.NonFiniteWeights, match="32 weights are NaN or infinite, in score.weight"):
        to_ranker_params(broken, CONFIG)
