"""A model's replies to contexts: the same however many devices, processes and interruptions it took to make them."""

import random
from pathlib import Path

import jax
import numpy as np
import pytest
from compile_counter import count_compilations
from fakes import SENTENCES, tiny_bot

from dialogpt_jax.decoding.beam_options import BeamOptions
from dialogpt_jax.decoding.sampling import GREEDY, PAPER
from dialogpt_jax.evaluation.contexts import Context, cut
from dialogpt_jax.evaluation.harness import answer, describe_run, group_by_length, rounds
from dialogpt_jax.evaluation.replies import RepliesFileError, read_replies
from dialogpt_jax.evaluation.settings import DECODINGS, Settings

# Of a log-probability of up to 12 tokens: float32, were a device's program not bit for bit another's. Here it is.
ATOL = 1e-4
ROWS = 4
SETTINGS = Settings(PAPER, seed=3, max_new_tokens=12, rows=ROWS)


def some_contexts(num):
    """Contexts of one or two turns, as the fake tokenizer cuts them: 10 to 64 tokens."""
    draw = random.Random(0)
    return [Context(draw.choices(SENTENCES, k=1 + i % 2), draw.choice(SENTENCES), i) for i in range(num)]


CONTEXTS = some_contexts(42)
BATCH = 2 * ROWS  # five batches, and one of two


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dialogpt_jax.evaluation.harness.ROWFULS", 2)
        yield


@pytest.fixture(scope="module")
def bot():
    return tiny_bot(end=4.0)


@pytest.fixture(scope="module")
def one_device():
    return jax.local_devices()[:1]


@pytest.fixture(scope="module")
def unbroken(bot, one_device, tmp_path_factory) -> bytes:
    """The file of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("unbroken") / "out.jsonl"
    answer(bot, CONTEXTS, SETTINGS, out=out, devices=one_device)
    return out.read_bytes()


def test_every_context_gets_its_reply(bot, unbroken, tmp_path):
    (tmp_path / "o").write_bytes(unbroken)
    found = read_replies(tmp_path / "o")
    assert list(found) == list(range(len(CONTEXTS)))
    turns = [context.turns for context in CONTEXTS]
    expected = bot.answers(turns, sampling=PAPER, seed=3, max_new_tokens=12, batch_size=ROWS)
    assert len({reply.text for reply in expected}) > 20
    for reply, one, context in zip(found.values(), expected, CONTEXTS, strict=True):
        assert (reply.text, reply.finished, reply.tokens) == (one.text, one.finished, len(one.tokens))
        assert (reply.truth, reply.dialogue, reply.turn, reply.seed) == (
            context.truth,
            context.dialogue,
            len(context.turns),
            3,
        )
        assert reply.logprob == pytest.approx(one.logprob, abs=ATOL)
    assert {reply.finished for reply in found.values()} == {True, False}


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(("stop_at", "kept"), [(1, 0), (2 * BATCH + 1, 2 * BATCH)])
def test_stopped_and_gone_on_with_is_the_same_file(bot, unbroken, one_device, tmp_path, stop_at, kept):
    out, seen = tmp_path / "out.jsonl", []

    def stop(replies, left):
        seen.append(len(replies))
        assert left == len(CONTEXTS) - sum(seen)
        if sum(seen) >= stop_at:
            raise StoppedError

    with pytest.raises(StoppedError):
        answer(bot, CONTEXTS, SETTINGS, out=out, devices=one_device, progress=stop)
    assert out.read_bytes().count(b"\n") == 1 + sum(seen) < 1 + kept + BATCH
    news = []
    answer(
        bot, CONTEXTS, SETTINGS, out=out, devices=one_device, progress=lambda new, left: news.append((len(new), left))
    )
    assert out.read_bytes() == unbroken
    assert sum(num for num, _ in news) == len(CONTEXTS) - kept  # of whole batches nothing is made twice
    assert news[-1][1] == 0


def test_killed_within_a_line_and_then_once_more_it_goes_on(bot, unbroken, one_device, tmp_path):
    """What is appended stands on a line of its own, not behind the half one."""
    out = tmp_path / "out.jsonl"

    def stop(replies, left):
        if left < len(CONTEXTS) - BATCH:
            raise StoppedError

    for _ in range(2):
        with pytest.raises(StoppedError):
            answer(bot, CONTEXTS, SETTINGS, out=out, devices=one_device, progress=stop)
        assert BATCH < len(read_replies(out)) < 2 * BATCH
        out.write_bytes(out.read_bytes()[:-3])
    answer(bot, CONTEXTS, SETTINGS, out=out, devices=one_device)
    assert out.read_bytes() == unbroken


def test_cut_off_at_any_byte_it_is_made_whole_again(bot, unbroken, one_device, tmp_path):
    out = tmp_path / "out.jsonl"
    draw = random.Random(1)
    for size in (0, 1, unbroken.index(b"\n"), unbroken.index(b"\n") + 1, *draw.choices(range(len(unbroken)), k=8)):
        out.write_bytes(unbroken[:size])
        answer(bot, CONTEXTS, SETTINGS, out=out, devices=one_device)
        assert out.read_bytes() == unbroken, size


def test_lines_that_are_gone_are_made_again_with_their_batch(bot, unbroken, one_device, tmp_path):
    out, news = tmp_path / "out.jsonl", []
    head, *lines = unbroken.splitlines(keepends=True)
    out.write_bytes(b"".join([head, *lines[:7], *lines[8:]]))
    answer(bot, CONTEXTS, SETTINGS, out=out, devices=one_device, progress=lambda new, left: news.append(len(new)))
    assert out.read_bytes() == unbroken
    assert sum(news) == BATCH


def test_a_finished_run_computes_nothing(bot, unbroken, tmp_path, monkeypatch):
    (tmp_path / "o").write_bytes(unbroken)
    monkeypatch.setattr("dialogpt_jax.evaluation.harness.rolled_replies", None)
    assert len(answer(bot, CONTEXTS, SETTINGS, out=tmp_path / "o")) == len(CONTEXTS)
    assert (tmp_path / "o").read_bytes() == unbroken


def test_the_number_of_devices_changes_nothing(bot, unbroken, tmp_path):
    """Six batches: each device takes the next when it is done with one."""
    (tmp_path / "o").write_bytes(unbroken)
    used = jax.local_devices()[:2]
    found = answer(bot, CONTEXTS, SETTINGS, devices=used)
    for one, other in zip(read_replies(tmp_path / "o").values(), found, strict=True):
        assert one._replace(logprob=0) == other._replace(logprob=0)
        assert one.logprob == pytest.approx(other.logprob, abs=ATOL)


@pytest.mark.slow
def test_beams_on_several_devices_are_those_of_one(bot, one_device):
    settings = Settings(GREEDY, max_new_tokens=12, rows=ROWS, beams=BeamOptions(3, length_penalty=0.8))
    found = answer(bot, CONTEXTS[:12], settings, devices=one_device)
    assert answer(bot, CONTEXTS[:12], settings, devices=jax.local_devices()[:3]) == found


@pytest.mark.long
def test_beams_are_the_bot_s(bot, one_device):
    settings = Settings(GREEDY, max_new_tokens=12, rows=ROWS, beams=BeamOptions(3, length_penalty=0.8))
    found = answer(bot, CONTEXTS[:12], settings, devices=one_device)
    for reply, context in zip(found[:4], CONTEXTS, strict=False):
        assert reply.text == bot.reply(context.turns, beams=3, length_penalty=0.8, max_new_tokens=12)
    plain = Settings(GREEDY, max_new_tokens=12, rows=ROWS)
    assert [reply.text for reply in found] != [
        reply.text for reply in answer(bot, CONTEXTS[:12], plain, devices=one_device)
    ]
    assert describe_run(bot, CONTEXTS, settings) != describe_run(bot, CONTEXTS, plain)


def test_each_device_takes_a_batch(bot, monkeypatch):
    seen = []

    def spy(lm, contexts, *, weights, rows, **rest):
        seen.append((weights[0]["wte"]["embedding"].devices(), len(contexts), rows))
        yield []

    monkeypatch.setattr("dialogpt_jax.evaluation.harness.rolled_replies", spy)
    answer(bot, CONTEXTS, SETTINGS)
    used = jax.local_devices()
    assert len(used) == 8
    assert seen == [({used[i]}, BATCH if i < 5 else 2, ROWS) for i in range(6)]


def test_no_device_waits_for_another(bot):
    """A sharded program has no collective in it: the partitioner would gather every row's cache at each write."""
    from dialogpt_jax.decoding.generate import reply_program_on_mesh
    from dialogpt_jax.decoding.request import assemble
    from dialogpt_jax.replies.keys import row_keys

    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows_on = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    keys = jax.device_put(row_keys(0, list(range(16)), [1] * 16), rows_on)
    params = jax.device_put(bot.params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    prompts = np.ones((16, 16), np.int32), np.full(16, 9, np.int32)
    request = assemble(bot.config, *prompts, sampling=GREEDY, max_new_tokens=16, keys=keys)
    request = jax.device_put(request, rows_on)
    compiled = reply_program_on_mesh.lower(params, bot.config, request, rows_on=rows_on).compile()
    text = compiled.as_text()
    assert "while" in text
    assert not [name for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if name in text]
    assert compiled.output_shardings.tokens.shard_shape((16, 16)) == (2, 16)


def test_parts_put_one_behind_the_other_are_the_whole(bot, unbroken, one_device, tmp_path):
    sizes = []
    for i in range(3):
        found = answer(bot, CONTEXTS, SETTINGS, out=tmp_path / f"{i}", part=(i, 3), devices=one_device)
        sizes.append(len(found))
    assert sum(sizes) == len(CONTEXTS)
    assert min(sizes) > 2 * ROWS
    out = tmp_path / "out"
    out.write_bytes(b"".join((tmp_path / f"{i}").read_bytes() for i in range(3)))
    answer(bot, CONTEXTS, SETTINGS, out=out, devices=[])  # no device: nothing is left to do
    assert out.read_bytes() == unbroken


def test_programs_do_not_grow_with_contexts(bot, one_device):
    answer(bot, CONTEXTS, SETTINGS, devices=one_device)
    with count_compilations() as programs:
        answer(bot, some_contexts(90), SETTINGS, devices=one_device)
    assert programs == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bot, c, s: (bot, c, Settings(PAPER, 4, 12, ROWS)), "seed 3, now 4"),
        (lambda bot, c, s: (bot, c, Settings(GREEDY, 3, 12, ROWS)), "sampling temperature 1, top_k 10, now greedy"),
        (lambda bot, c, s: (bot, c, Settings(PAPER, 3, 13, ROWS)), "max_new_tokens 12, now 13"),
        (lambda bot, c, s: (bot, c, Settings(PAPER, 3, 12, 8)), "rows 4, now 8"),
        (lambda bot, c, s: (tiny_bot(1, end=4.0), c, s), "model [0-9a-f]+, now [0-9a-f]+"),
        (lambda bot, c, s: (bot, c[:-1], s), "contexts 42, now 41"),
        (lambda bot, c, s: (bot, [*c[:-1], c[-1]._replace(truth="x")], s), "data [0-9a-f]+, now [0-9a-f]+"),
    ],
)
def test_another_run_is_refused_and_the_file_left(bot, unbroken, tmp_path, change, message):
    out = tmp_path / "out"
    out.write_bytes(unbroken)
    changed, contexts, settings = change(bot, CONTEXTS, SETTINGS)
    with pytest.raises(RepliesFileError, match=f"^.*out, line 1: replies of another run .*{message}") as caught:
        answer(changed, contexts, settings, out=out)
    assert "\n" not in str(caught.value)
    assert out.read_bytes() == unbroken


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda lines: [b"hello\n", *lines], "line 1: not JSON"),
        (lambda lines: lines[1:], "line 1: no replies of an evaluation"),
        (lambda lines: [b"a letter to a friend"], "line 1: no replies of an evaluation"),
        (lambda lines: [*lines[:3], b'{"context": 1}\n', *lines[3:]], "line 4: not a reply"),
        (lambda lines: [*lines[:2], lines[2].replace(b'"turn": ', b'"turn": "x'), *lines[3:]], "line 3: not JSON"),
        (lambda lines: [*lines[:2], b"\xff\n", *lines[3:]], "line 3: not JSON"),
        (lambda lines: [*lines[:2], b"[" * 100_000 + b"\n", *lines[3:]], "line 3: not JSON"),
        (lambda lines: [*lines, lines[0].replace(b'"seed": 3', b'"seed": 5')], "line 44: replies of another run"),
    ],
)
def test_a_file_that_is_not_ours_is_not_written_over(bot, unbroken, tmp_path, spoil, message):
    out = tmp_path / "out"
    out.write_bytes(spoiled := b"".join(spoil(unbroken.splitlines(keepends=True))))
    with pytest.raises(RepliesFileError, match=f"out, {message}"):
        answer(bot, CONTEXTS, SETTINGS, out=out)
    assert out.read_bytes() == spoiled


def test_groups_and_rounds():
    assert group_by_length([5, 9, 4, 7, 2], 2) == [[4, 2], [0, 3], [1]]
    assert group_by_length([3, 3, 3], 2) == [[0, 1], [2]]
    assert list(rounds([[1], [2], [3], [4]], [16, 16, 16, 32], 2)) == [[[1], [2]], [[3]], [[4]]]


@pytest.mark.parametrize("changes", [{"rows": 0}, {"max_new_tokens": 0}])
def test_settings_out_of_range(changes):
    with pytest.raises(ValueError, match="is 0"):
        Settings(**changes)


def test_decodings_are_those_of_the_paper_and_the_chat():
    assert DECODINGS["greedy"] == GREEDY
    assert DECODINGS["topk"].top_k == 10
    assert (DECODINGS["nucleus"].top_p, DECODINGS["nucleus"].top_k) == (0.9, None)


DIALOGUES = [["a", "b", "c"], ["d"], ["e", "", "f", "g"], [], ["h", "i"]]


def test_all_contexts_are_every_place_with_something_before_and_after():
    found = cut(DIALOGUES)
    assert sorted((c.dialogue, len(c.turns)) for c in found) == [(0, 1), (0, 2), (2, 3), (4, 1)]
    assert all([*c.turns, c.truth] == DIALOGUES[c.dialogue][: len(c.turns) + 1] for c in found)
    assert [c.dialogue for c in found] == [0, 2, 4, 0]
    assert all(cut(DIALOGUES, n) == found[:n] for n in range(5))
    assert cut(DIALOGUES, 5) == found  # all there are


@pytest.mark.slow
def test_six_thousand_contexts_of_the_bundled_model(shared, tmp_path):
    """One device and eight, stopped half-way and gone on with: one file."""
    import dialogpt_jax as dg
    from dialogpt_jax.data.formats import read_dialogues

    bot, contexts = dg.load(), cut(list(read_dialogues(shared / "corpus/valid.jsonl.gz")), 6000)
    files = {}
    for devices in (1, 8):
        out = tmp_path / f"{devices}"

        def stop(replies, left):
            if left < 3000:
                raise StoppedError

        if devices == 8:
            with pytest.raises(StoppedError):
                answer(bot, contexts, Settings(), out=out, devices=jax.local_devices(), progress=stop)
        answer(bot, contexts, Settings(), out=out, devices=jax.local_devices()[:devices])
        files[devices] = Path(out).read_bytes()
    assert files[1] == files[8]
