"""The sense head: what it reads of a cache, by hand; the same score wherever a reply is made; and what ranks by default."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import draw_head, tiny_bot

import dialogpt_jax as dg
from dialogpt_jax.bundled import tell_sense
from dialogpt_jax.bundled.marked import DRAWN, MARKED, MARKS, Marked, read_marked
from dialogpt_jax.bundled.prompts import read_prompts
from dialogpt_jax.cache import KVCache, ReplyCache, init_cache, init_reply
from dialogpt_jax.cli.main import main
from dialogpt_jax.matmul import as_int8
from dialogpt_jax.model import hidden
from dialogpt_jax.ranking import propose
from dialogpt_jax.ranking.rank_options import SENSE_SAMPLING
from dialogpt_jax.ranking.sense import SenseHead, bundled_sense, read_replies, reply_features, sense_of
from dialogpt_jax.replies.settings import DEFAULT_SAMPLING

ATOL = 1e-5  # of a score from 0 to 1: float32, computed in batches of other shapes
DIALOGUES = [["Hello, how are you today?"], ["Hi", "I am fine, thanks.", "And you?"]]
HOW = {"max_new_tokens": 12, "seed": 2}


@pytest.fixture(scope="module")
def bot():
    plain = tiny_bot(end=4.0)
    return dataclasses.replace(plain, sense=draw_head(plain.config))


def test_features_are_the_mean_of_the_values_of_all_but_the_last_token(bot):
    """Against the values of one row computed alone, without a cache in two parts."""
    params, config = bot.params, bot.config
    contexts, replies = [[5, 6, 7], [9, 4]], [[[3, 4, 5, 6], [7, 8, 2]], [[1, 2], [11]]]
    context_BT, lengths_B = np.array([[5, 6, 7], [9, 4, 0]], np.int32), np.array([3, 2], np.int32)
    replies_BNR = np.zeros((2, 2, 4), np.int32)
    for b, own in enumerate(replies):
        for n, reply in enumerate(own):
            replies_BNR[b, n, : len(reply)] = reply
    counts_M = np.array([4, 3, 2, 1], np.int32)
    cache = read_replies(params, config, context_BT, lengths_B, replies_BNR)
    found_MF = np.asarray(reply_features(cache, counts_M, (1, 0)))
    for m in range(4):
        ids = np.array([contexts[m // 2] + replies[m // 2][m % 2]] * 2)
        positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        _, alone = hidden(params, config, ids, positions, init_cache(config, 2, ids.shape[1], jnp.float32))
        start, end = len(contexts[m // 2]), ids.shape[1] - 1
        for place, block in enumerate((1, 0)):
            v_HSK = np.asarray(alone.layers[block][1])[: config.n_head]
            mean_D = v_HSK[:, start:end].mean(axis=1).reshape(-1) if end > start else np.zeros(config.n_embd)
            own_D = found_MF[m, place * config.n_embd : (place + 1) * config.n_embd]
            np.testing.assert_allclose(own_D, mean_D, atol=ATOL)
    assert np.abs(found_MF[:3]).max() > 0.05


def test_values_of_8_bits_are_read_with_their_scales(bot):
    config = bot.config
    lengths_B, counts_M = np.array([2, 3], np.int32), np.array([4, 3, 2, 4], np.int32)
    cache = init_reply(config, init_cache(config, 2, 4, jnp.float32), lengths_B, 2, 4)
    shape = cache.reply.layers[0][1].shape
    drawn = [jax.random.normal(jax.random.key(i), shape) for i in range(config.n_layer)]
    whole = ReplyCache(cache.prefix, lengths_B, KVCache(tuple((x, x) for x in drawn)))
    eight = ReplyCache(cache.prefix, lengths_B, KVCache(tuple((as_int8(x), as_int8(x)) for x in drawn)))
    blocks = range(config.n_layer)
    want, found = (reply_features(each, counts_M, blocks) for each in (whole, eight))
    np.testing.assert_allclose(found, want, atol=0.02)
    assert np.abs(want).max() > 0.5


def test_a_score_is_two_layers_and_a_sigmoid(bot):
    head = bot.sense
    features_MF = jax.random.normal(jax.random.key(3), (5, head.kernel_UF.shape[1]))
    before_MU = np.asarray(features_MF) @ np.asarray(head.kernel_UF).T + np.asarray(head.bias_U)
    units = np.asarray(jax.nn.gelu(before_MU))
    z_M = units @ np.asarray(head.row_U) + float(head.offset)
    np.testing.assert_allclose(head.of_features(features_MF), 1 / (1 + np.exp(-z_M)), atol=ATOL)


@pytest.mark.long
def test_one_score_however_a_reply_comes(bot, monkeypatch):
    """In the loop of a batch, in a chat, and read anew as texts; the first two read nothing anew."""
    monkeypatch.setattr(propose, "sense_of", None)
    rank = dg.Rank("sense", hypotheses=6)
    together = bot.rankings(DIALOGUES, rank, **HOW)
    for turns, ranking in zip(DIALOGUES, together, strict=True):
        alone = {h.text: h.sense for h in bot.rank(turns, rank, **HOW)}
        read = sense_of(bot, bot.sense, turns, ranking)
        assert len({round(h.sense, 3) for h in ranking}) > 1
        np.testing.assert_allclose([h.sense for h in ranking], read, atol=ATOL)
        if turns == DIALOGUES[0]:  # of the second dialogue, another place draws other replies
            np.testing.assert_allclose([alone[h.text] for h in ranking], read, atol=ATOL)
        chat = dg.Chat(bot, rank=rank, turns=turns[:-1], **HOW)
        said = chat.say(turns[-1])
        assert said == chat.ranking[0].text
        np.testing.assert_allclose(
            [h.sense for h in chat.ranking], sense_of(bot, bot.sense, turns, chat.ranking), atol=ATOL
        )


def test_the_best_score_that_no_guard_flags_is_given(bot):
    found = bot.rank(DIALOGUES[0], dg.Rank("sense", hypotheses=8), **HOW)
    unflagged = [h.score for h in found if not h.flags]
    assert [h.score for h in found] == [h.sense for h in found]
    assert unflagged == sorted(unflagged, reverse=True)
    assert unflagged[0] > unflagged[-1]
    assert "makes less sense" in "".join(h.why for h in found)
    assert bot.reply(DIALOGUES[0], rank=dg.Rank("sense", hypotheses=8), **HOW) == found.reply
    mine = bot.order(DIALOGUES[0], bot.score(DIALOGUES[0], ["No.", "I am well."]), "sense")
    assert [h.score for h in mine] == pytest.approx(sense_of(bot, bot.sense, DIALOGUES[0], mine), abs=ATOL)


def test_replies_to_rank_by_sense_are_drawn_as_plain_ones_but_warmer():
    assert dataclasses.replace(SENSE_SAMPLING, temperature=DEFAULT_SAMPLING.temperature) == DEFAULT_SAMPLING
    assert SENSE_SAMPLING.temperature > DEFAULT_SAMPLING.temperature


def test_a_file_comes_back(bot, tmp_path):
    bot.sense.save(tmp_path / "head.safetensors")
    back = SenseHead.load(tmp_path / "head.safetensors")
    assert back.blocks == bot.sense.blocks
    for one, other in zip(jax.tree.leaves(bot.sense), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(np.asarray(one, np.float16), np.asarray(other, np.float16))
        assert other.dtype == jnp.float32


def test_what_is_no_head_is_one_line(bot, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="is no whole safetensors file"):
        SenseHead.load(broken)
    dg.write_directory(tmp_path / "model", bot.params, bot.config, bot.tokenizer)
    with pytest.raises(ValueError, match="a sense head has kernel_UF"):
        SenseHead.load(tmp_path / "model" / "model.safetensors")
    with pytest.raises(FileNotFoundError):
        SenseHead.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(TypeError, match="sense is 'head'; give a SenseHead"):
        dataclasses.replace(bot, sense="head")
    one, all_ = draw_head(bot.config, (0,)), draw_head(bot.config)
    for head in (dataclasses.replace(one, blocks=(7,)), dataclasses.replace(all_, blocks=(0,))):
        with pytest.raises(ValueError, match="give a head that was trained on this model"):
            dataclasses.replace(bot, sense=head)
    with pytest.raises(ValueError, match="ranking by sense needs a head"):
        dataclasses.replace(bot, sense=None).reply("Hi", rank="sense")
    with pytest.raises(ValueError, match="ranking by sense needs a head"):
        dataclasses.replace(bot, sense=None).chat(rank="sense")


@pytest.mark.long
def test_a_head_learns_what_is_marked(bot, tmp_path):
    """Replies with one word are marked sensible, with another nonsense: the head tells new ones."""
    words = {"sensible": "yes", "passable": "well", "nonsense": "brick"}
    rng = np.random.default_rng(0)

    def entry(n):
        tails = [f" {chr(97 + i)}{n}" for i in rng.integers(0, 26, 4)]
        return Marked([f"Is it {n}?"], {mark: [words[mark] + tail for tail in tails] for mark in MARKS})

    read = tell_sense.read_marks_of(bot, [entry(n) for n in range(24)])
    assert read.features_MF.shape == (24 * 12, bot.config.n_layer * bot.config.n_embd)
    head = tell_sense.learn_sense(read, blocks=range(bot.config.n_layer), steps=150)
    same = tell_sense.learn_sense(read, blocks=range(bot.config.n_layer), steps=150)
    np.testing.assert_array_equal(head.kernel_UF, same.kernel_UF)
    new = tell_sense.read_marks_of(bot, [entry(n) for n in range(50, 54)])
    scores_M = np.asarray(head.of_features(new.features_MF))
    assert scores_M[new.worth_M == 1].min() > scores_M[new.worth_M == 0].max()
    assert "sensible before nonsense 100.0%" in tell_sense.ordered_pairs(head, new)


def test_a_lone_sensible_reply_is_left_out(bot):
    lone = Marked(["Hi"], {"sensible": ["Hello."], "passable": ["Oh."], "nonsense": ["No.", "Bricks."]})
    read = tell_sense.read_marks_of(bot, [lone, lone])
    assert sorted(read.worth_M.tolist()) == pytest.approx([0, 0, 0, 0, 0.4, 0.4])


@pytest.mark.parametrize("words", [["--model", "nowhere", "--export", "head"], ["--model", ".", "--export", "head"]])
def test_the_command_says_what_is_missing_in_a_line(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        tell_sense.main(words)
    assert str(stopped.value).startswith("error: ")
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "head").exists()


def test_marked_draws_are_none_of_the_forty_prompts_and_stand_beside_the_others():
    drawn, marked = read_marked(DRAWN), {tuple(entry.turns) for entry in read_marked(MARKED)}
    prompts = {turn for prompt in read_prompts().prompts for turn in prompt}
    assert len(drawn) > 500
    assert all(tuple(entry.turns) in marked for entry in drawn)
    assert not prompts & {entry.turns[-1] for entry in drawn}


class TestTheBundledModel:
    def test_it_has_a_head_and_a_directory_has_none(self):
        bundled = dg.load()
        assert bundled.sense is bundled_sense()
        assert bundled.sense.blocks == tuple(range(bundled.config.n_layer))
        assert dg.load(dtype="int8").sense is not None

    def test_sense_before_nonsense(self):
        bundled = dg.load()
        for said, good, bad in (
            ("How are you?", "I'm fine, thanks. And you?", "The blue is on two o'clock, I ate it with my car."),
            ("My cat died yesterday.", "I'm so sorry to hear that.", "That's great! How lovely!"),
        ):
            one, other = bundled.order(said, bundled.score(said, [bad, good]), "sense")
            assert one.text == good
            assert one.score > other.score + 0.2

    @pytest.mark.long
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
    def test_the_command_ranks_unless_another_way_is_said(self, dtype, capsys):
        bundled, flags = dg.load(dtype=dtype), ["--dtype", dtype, "--max-new-tokens", "12"]
        how = {"max_new_tokens": 12}

        def said(*words):
            assert main(["reply", *flags, *words, "Do you like the rain?"]) == 0
            return capsys.readouterr().out.strip()

        ranked = bundled.rank("Do you like the rain?", "sense", **how)
        assert said() == ranked.reply
        assert said("--rank", "sense") == ranked.reply
        plain = bundled.reply("Do you like the rain?", **how)
        assert said("--rank", "off") == plain
        if dtype == "float32":
            assert json.loads(said("--json"))["reply"] == plain
            assert said("--candidates", "1") == plain
            assert said("--draft", "lookup") == plain
            cold = dg.Sampling(temperature=0.2, top_k=50, top_p=0.9, no_repeat_ngram=3)
            chosen = bundled.rank("Do you like the rain?", "sense", sampling=cold, **how)
            assert said("--temperature", "0.2") == chosen.reply

    @pytest.mark.long
    def test_a_chat_of_lines_ranks_too(self, capsys, monkeypatch):
        import io

        lines = "Do you like the rain?\nWhy?\n"
        found = {}
        for words in ((), ("--rank", "off")):
            monkeypatch.setattr("sys.stdin", io.StringIO(lines))
            assert main(["chat", "--max-new-tokens", "12", *words]) == 0
            found[words] = capsys.readouterr().out
        chat = dg.load().chat(rank="sense", max_new_tokens=12)
        assert found[()].splitlines()[-2:] == [chat.say("Do you like the rain?"), chat.say("Why?")]
        plain = dg.load().chat(max_new_tokens=12)
        assert found["--rank", "off"].splitlines()[-2:] == [plain.say("Do you like the rain?"), plain.say("Why?")]

    def test_off_goes_without_what_a_rank_has(self, capsys):
        assert main(["reply", "--rank", "off", "--hypotheses", "4", "Hi"]) == 2
        assert "--hypotheses goes with a rank, and --rank is off" in capsys.readouterr().err


def test_a_head_whose_arrays_do_not_fit_is_one_line(bot, tmp_path):
    from safetensors.numpy import load_file, save_file

    file = tmp_path / "head.safetensors"
    bot.sense.save(file)
    whole = load_file(file)
    for changed in (
        {"bias_U": whole["bias_U"][:3]},
        {"row_U": whole["row_U"][:3]},
        {"blocks": whole["blocks"].astype(np.float32)},
        {"kernel_UF": whole["kernel_UF"] * np.float16("nan")},
    ):
        save_file({**whole, **changed}, file)
        with pytest.raises(ValueError, match="the arrays of this sense head do not fit each other, or hold no numbers"):
            SenseHead.load(file)


def test_a_head_goes_to_a_file_in_a_folder_that_is_there(bot, tmp_path):
    with pytest.raises(IsADirectoryError):
        SenseHead.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere/head"):
        bot.sense.save(tmp_path / "nowhere" / "head")


def test_what_is_no_candidate_is_one_line(bot):
    with pytest.raises(TypeError, match=r"candidates\[0\] is 'No.'; `score\(turns, texts\)` makes them of texts"):
        bot.order(DIALOGUES[0], ["No."], "sense")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--export", "nowhere/head"], "name a file in a folder that is there"),
        (["--export", "head", "--hold-out", "-1"], "--hold-out is -1; give 0 to"),
        (["--export", "head", "--hold-out", "999999"], "--hold-out is 999999; give 0 to"),
    ],
)
def test_the_command_says_what_cannot_be_before_it_reads(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tell_sense, "load", lambda _: None)
    with pytest.raises(SystemExit) as stopped:
        tell_sense.main(["--model", "x", *words])
    assert said in str(stopped.value)


class TestAChatThatIsGoneOnWith:
    """`dialogpt chat --load FILE`: what is said goes before what the file says."""

    @pytest.fixture
    def settings(self, tmp_path, capsys, monkeypatch):
        import io

        turns, file = ["Hi", "Hello."], tmp_path / "chat.json"

        def settings(bot, *words, lines="/settings\n", **how):
            dg.Chat(dg.load(), turns=turns, **how).save(file)
            monkeypatch.setattr("dialogpt_jax.cli.chat.load_bot", lambda *_: bot)
            monkeypatch.setattr("sys.stdin", io.StringIO(lines.format(file=file)))
            assert main(["chat", "--load", str(file), *words]) == 0
            return capsys.readouterr().err

        return settings

    @pytest.mark.parametrize(
        ("saved", "words", "said"),
        [
            ({"rank": "sense"}, [], "temperature 0.5, top_k 50, top_p 0.9, no_repeat_ngram 3, the best of 16 by sense"),
            ({"rank": "sense"}, ["--rank", "off"], "temperature 0.3, top_k 50, top_p 0.9, no_repeat_ngram 3, max_new"),
            ({"rank": "sense"}, ["--beams", "2"], "greedy, 2 beams, max_new"),
            (
                {},
                ["--rank", "sense"],
                "temperature 0.5, top_k 50, top_p 0.9, no_repeat_ngram 3, the best of 16 by sense",
            ),
            ({"rank": "sense", "sampling": dg.Sampling(0.9)}, ["--rank", "off"], "temperature 0.9, max_new"),
            ({"beams": 2}, ["--rank", "off", "--seed", "4"], "greedy, 2 beams, max_new_tokens 40, seed 4"),
        ],
    )
    def test_what_is_said_counts_and_what_is_not_follows(self, settings, saved, words, said):
        assert settings(dg.load(), *words, **saved).startswith(said)

    def test_a_bot_that_cannot_rank_so_goes_on_without(self, settings):
        headless = dataclasses.replace(dg.load(), sense=None)
        assert "rank" not in settings(headless, "--rank", "off", rank="sense")
        assert settings(dg.load(draft="lookup"), "--draft", "lookup", rank="sense").startswith("temperature 0.3")
        told = settings(headless, "--rank", "off", lines="/load {file}\n/save {file}\n", rank="sense").splitlines()
        assert told[0].endswith("take another rule, or none (--rank off)")
        assert told[1].startswith("wrote ")

    def test_why_of_a_reply_that_is_only_loaded(self, settings):
        told = settings(dg.load(), lines="/why\n/settings rank off\n/why\n", rank="sense").splitlines()
        assert told[0] == "there is no table of the last reply; say something, or /retry"
        assert told[2].endswith("/settings rank sense")


def test_none_is_no_rank_that_the_command_takes_for_silence(capsys):
    assert main(["reply", "--rank", "none", "Hi"]) == 2
    assert '"off"' in capsys.readouterr().err
