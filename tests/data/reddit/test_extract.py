"""Dumps to a corpus on one machine: the same bytes however it is run, broken input told, nothing half-written."""

import contextlib
import errno
import gzip
import json
import os
import resource

import numpy as np
import pytest
import reddit_runs as runs

from dialogpt_jax.cli.main import main
from dialogpt_jax.data.dialogue_value import Dialogue
from dialogpt_jax.data.formats import lenient_dialogues
from dialogpt_jax.data.reddit import bland, dumps, split
from dialogpt_jax.data.reddit import extract as extracting
from dialogpt_jax.data.reddit.extract import ExtractError, extract
from dialogpt_jax.data.reddit.partition import finish_line
from dialogpt_jax.data.reddit.records import as_bare_id
from dialogpt_jax.data.reddit.rules import RULES, Rules
from dialogpt_jax.data.reddit.statistics import as_text, funnel
from dialogpt_jax.data.reddit.synthetic import BAD_SUBREDDIT, BAD_WORD, write_dumps
from dialogpt_jax.data.reddit.threads import LeaveOut

RULES_OF_TESTS = Rules(
    offensive=frozenset({BAD_WORD}), subreddits=frozenset({BAD_SUBREDDIT}), bland_count=4, max_thread=300
)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    return write_dumps(tmp_path_factory.mktemp("dumps"), 4_000, files=3, suffix=".jsonl.gz")


def read_all(folder):
    return [line for path in sorted(folder.glob("dialogues-*")) for line in path.read_text().splitlines()]


def write(path, *records):
    path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in records))
    return path


def said(own, parent="t3_s", body="It is so .", **fields):
    return {"id": own, "parent_id": parent, "link_id": "t3_s", "body": body, "score": 1, **fields}


TALK = (said("a"), said("b", "t1_a", "And so it was ."))


def test_the_same_bytes_for_any_memory_processes_and_partitions(synthetic, tmp_path):
    extract(synthetic, tmp_path / "one", RULES_OF_TESTS, workers=1)
    found = runs.digests(tmp_path / "one")
    assert sorted(found) == ["dialogues-00000-of-00001.jsonl", "statistics.json", "statistics.txt"]
    extract(synthetic[::-1], tmp_path / "two", RULES_OF_TESTS, workers=2)
    assert runs.digests(tmp_path / "two") == found
    extract(synthetic, tmp_path / "many", RULES_OF_TESTS, workers=1, memory=100_000)
    assert len(list((tmp_path / "many").glob("dialogues-*"))) > 5
    assert read_all(tmp_path / "many") == read_all(tmp_path / "one")
    for name in ("statistics.json", "statistics.txt"):
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_a_partition_that_does_not_fit_is_read_in_passes(synthetic, tmp_path, monkeypatch):
    extract(synthetic, tmp_path / "one", RULES_OF_TESTS, workers=1)
    monkeypatch.setattr(extracting, "_guess_partitions", lambda *_: 2)
    extract(synthetic, tmp_path / "passes", RULES_OF_TESTS, workers=1, memory=100_000)
    assert read_all(tmp_path / "passes") == read_all(tmp_path / "one")


def test_every_rule_is_met_and_the_funnel_ends_with_the_dialogues(synthetic, tmp_path):
    statistics = extract(
        synthetic,
        tmp_path / "out",
        RULES_OF_TESTS,
        workers=1,
        leave_out=LeaveOut(authors=frozenset({"dee"})),
    )
    met = {
        name.removeprefix("rule ") for name, number in statistics.counts.items() if name.startswith("rule ") and number
    }
    assert RULES.keys() - met == {"no_submission", "offensive", "long_pair", "huge_thread"}
    assert funnel(statistics)[-1][2] == statistics.counts["dialogues"] == len(read_all(tmp_path / "out")) > 0
    assert set(statistics.cuts) == {"", "orphan", "cycle", "long_turn", "depth"}
    assert len(statistics.months) > 6
    assert json.loads((tmp_path / "out" / "statistics.json").read_text())["statistics"] == statistics.as_json()
    assert "\n".join(as_text(statistics)) + "\n" == (tmp_path / "out" / "statistics.txt").read_text()


def test_the_funnel_ends_with_the_dialogues_where_submissions_come_twice(tmp_path):
    submission = {"id": "s", "title": "What is it", "num_comments": 2}
    dump = write(tmp_path / "d.jsonl", submission, *TALK, submission, TALK[1])
    statistics = extract([dump], tmp_path / "out", Rules(), workers=1)
    assert [left for _, _, left in funnel(statistics)] == [3, 2, 1]
    assert statistics.counts["dialogues"] == 1


def test_names_of_files_are_shown_whatever_they_hold(tmp_path):
    dump = write(tmp_path / os.fsdecode(b"d\xff\x1b\n.jsonl"), {"x": 1}, *TALK)
    extract([dump], tmp_path / "out", Rules(), workers=1)
    text = (tmp_path / "out" / "statistics.txt").read_text()
    assert "d\\udcff\\x1b\\n.jsonl, line 1: neither a body" in text


@pytest.mark.parametrize("form", ["jsonl", "tsv"])
@pytest.mark.parametrize("how", [{}, {"all_comments": True}, {"titles": True}])
def test_what_is_written_is_read_as_it_is(synthetic, tmp_path, form, how):
    statistics = extract(
        synthetic, tmp_path / "out", Rules(offensive=frozenset({BAD_WORD}), **how), form=form, workers=1
    )
    (file,) = (tmp_path / "out").glob(f"dialogues-*.{form}")
    lines = list(lenient_dialogues(file))
    assert len(lines) == statistics.counts["dialogues"] > 100
    assert all(isinstance(line, Dialogue) and any(line.weights[1:]) for line in lines)
    assert any(0.0 in line.weights[1:] for line in lines)


def test_killed_at_each_stage_and_resumed(synthetic, tmp_path):
    words = tmp_path / "words"
    words.write_text(BAD_WORD)
    flags = ("--offensive", words, "--bland-count", 20, "--workers", 2)
    runs.run(*synthetic, tmp_path / "whole", *flags)
    out = tmp_path / "killed"
    moments = ("00001.records", "part-00000.candidates", "often.npy")
    killed = [runs.kill_when((out / "unfinished" / name).exists, *synthetic, out, *flags) for name in moments]
    assert killed[0]
    runs.run(*synthetic, out, *flags)
    assert runs.digests(out) == runs.digests(tmp_path / "whole")
    assert not (out / "unfinished").exists()


def test_finished_parts_are_not_made_again(synthetic, tmp_path, monkeypatch):
    extract(synthetic, tmp_path / "whole", RULES_OF_TESTS, workers=1)
    out, calls = tmp_path / "out", []
    with monkeypatch.context() as patch:
        patch.setattr(extracting, "finish_partition", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            extract(synthetic, out, RULES_OF_TESTS, workers=1)
    assert not list(out.glob("dialogues-*"))
    monkeypatch.setattr(split, "read_dump", lambda *_: calls.append(1))
    extract(synthetic, out, RULES_OF_TESTS, workers=1)
    assert not calls
    assert runs.digests(out) == runs.digests(tmp_path / "whole")


def test_what_is_left_is_told_of_this_run_alone(synthetic, tmp_path, monkeypatch):
    told = {}

    @contextlib.contextmanager
    def show(what, smaller):
        calls = told[what] = []
        yield lambda *numbers: calls.append(numbers)

    with monkeypatch.context() as patch:
        patch.setattr(extracting, "finish_partition", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            extract(synthetic, tmp_path / "out", Rules(), workers=1, show=show)
    (kb, left, comments), *_ = told["kB of dumps"]
    assert abs(kb + left - sum(path.stat().st_size for path in synthetic) / 1000) < 2
    assert comments > 0
    assert sum(new for new, _, _ in told["kB of records"]) > 0
    (
        tmp_path / "out" / "unfinished" / "part-00000.judged.json"
    ).unlink()  # of one stage something is left, of one nothing
    extract(synthetic, tmp_path / "out", Rules(), workers=1, show=show)
    assert told["kB of dumps"] == []  # by what was there already, the rest would take no time
    assert [left for _, left, _ in told["kB of records"]] == [0]


def test_what_a_killed_run_noted_of_a_dump_is_not_told(synthetic, tmp_path, monkeypatch):
    told, work = [], tmp_path / "out" / "unfinished"
    work.mkdir(parents=True)
    (work / "00000.at").write_text("10000 7")
    with extracting._watched(work, list(map(str, synthetic)), lambda *numbers: told.append(numbers)):
        pass
    assert told == []


def test_who_stops_it_is_told_that_it_goes_on(tmp_path, monkeypatch, capfd):
    for error, status in ((KeyboardInterrupt(), 130), (SystemExit(143), 143)):

        def stopped(*_, error=error, **__):
            raise error

        monkeypatch.setattr("dialogpt_jax.cli.data_reddit.extract", stopped)
        try:
            found = main(["data", "reddit", "x.jsonl", "DIR"])
        except SystemExit as ended:
            found = ended.code
        assert found == status
        assert "DIR: stopped; the same command goes on from there" in capfd.readouterr().err


def test_another_plan_is_refused_by_its_name(synthetic, tmp_path):
    out = tmp_path / "out"
    first = extract(synthetic, out, Rules(), workers=1)
    before = runs.digests(out)
    assert extract(synthetic, out, Rules(), workers=1).as_json() == first.as_json()  # it is there already
    other = Rules(min_score=2, offensive=frozenset({"darn"}), without=frozenset({"url"}))
    changed = (
        r"out was begun otherwise \(--min-score 1, now 2; --offensive: 0 entries, now 1; --without none, now url\); "
    )
    with pytest.raises(
        ExtractError, match=changed + "give what it was begun with, another folder, or --force to begin"
    ):
        extract(synthetic, out, other, workers=1)
    with pytest.raises(ExtractError, match=r"\(--leave-out: 0 entries, now 2\)"):
        extract(synthetic, out, Rules(), workers=1, leave_out=LeaveOut(frozenset({"t1_a"}), frozenset({"me"})))
    with pytest.raises(ExtractError, match=f"dumps: {len(synthetic)}, now 2"):
        extract(synthetic[:2], out, Rules(), workers=1)
    assert runs.digests(out) == before
    extract(synthetic, out, Rules(min_score=2), workers=1, replace=True)
    assert runs.digests(out) != before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").write_text("x")
    with pytest.raises(ExtractError, match="holds other files and no corpus"):
        extract(synthetic, tmp_path / "other", Rules(), workers=1, replace=True)
    assert (tmp_path / "other" / "mine").read_text() == "x"


def test_broken_lines_are_told_with_file_and_line_and_nothing_else_is_lost(tmp_path, capfd):
    dump = write(
        tmp_path / "RC.jsonl", TALK[0], b"{", b"", b'{"a": 1}', {**said("c"), "score": "many"}, b"\xff", TALK[1]
    )
    assert main(["data", "reddit", str(dump), str(tmp_path / "out"), "--workers", "1"]) == 0
    out, err = capfd.readouterr()
    assert len(read_all(tmp_path / "out")) == 1
    problems = [json.loads(line) for line in (tmp_path / "out" / "problems.jsonl").read_text().splitlines()]
    assert [(one["file"], one["line"]) for one in problems] == [(str(dump), line) for line in (2, 4, 5, 6)]
    assert "1 line not read, `score` is not a number: the first is" in err
    assert f'{dump}, line 5: `score` is "many", not a number' in err
    assert "6 lines: 2 comments and 0 submissions, 4 that are neither" in out


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_a_file_that_breaks_off_is_told_and_read_up_to_there(tmp_path, suffix):
    rng = np.random.default_rng(0)  # text that does not shrink to nothing, so that the half holds much
    lines = [said("a"), *(said(f"b{n}", "t1_a", "It is " + rng.bytes(150).hex(" ", 8)) for n in range(3_000))]
    text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    if suffix == ".zst":
        packed = pytest.importorskip("zstandard").ZstdCompressor().compress(text)
    else:
        packed = {".gz": gzip, ".bz2": __import__("bz2"), ".xz": __import__("lzma")}[suffix].compress(text)
    for part in (packed, packed[: len(packed) // 2]):
        file = tmp_path / f"RC{suffix}"
        file.write_bytes(part)
        with file.open("rb") as raw:
            found = list(dumps.read_dump(dumps.uncompressed(raw, file.name), file.name))
        if part is packed:
            assert b"".join(line for _, line in found) == text
    number, problem = found[-1]
    assert problem.kind == f"broken {suffix[1:]}"
    assert f"the {suffix[1:]} file is broken from here (" in problem.reason
    assert number == len(found)
    # bz2 has blocks of 900,000 bytes, and none before its end
    assert len(found) > (0 if suffix == ".bz2" else 500)
    assert text.startswith(b"".join(line for _, line in found[:-1]))


def test_frames_that_are_skipped_or_hold_nothing_and_names_in_capitals(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    skipped, nothing = b"\x50\x2a\x4d\x18\x03\0\0\0abc", zstandard.compress(b"")
    first, last = (zstandard.compress(json.dumps(one).encode() + b"\n") for one in TALK)
    for name, end in (("whole", b""), ("zeros", b"\0" * 100)):
        file = tmp_path / f"{name}.ZST"
        file.write_bytes(skipped + first + nothing + skipped + last + skipped + end)
        statistics = extract([file], tmp_path / name, Rules(), workers=1)
        assert statistics.counts["dialogues"] == 1
        assert set(statistics.problems) == ({"broken zst"} if end else set())


def test_a_frame_that_is_damaged_is_told(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    text = b"".join(
        json.dumps(said(f"b{n}", "t1_a", f"It is {n * 7919 % 1e6}")).encode() + b"\n" for n in range(20_000)
    )
    packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(text))
    file = tmp_path / "RC.zst"
    for place in (len(packed) // 2, len(packed) - 1):
        damaged = packed.copy()
        damaged[place] ^= 0xFF
        file.write_bytes(damaged)
        with file.open("rb") as raw:
            *found, (_, problem) = dumps.read_dump(dumps.uncompressed(raw, file.name), file.name)
        assert problem.kind == "broken zst"
        assert text.startswith(
            b"".join(line for _, line in found[:1_000])
        )  # what is wrong shows later than where it is
        assert len(found) > 1_000


def test_a_long_window_several_frames_and_a_line_of_100_megabytes(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=31, enable_ldm=True)
    file = tmp_path / "RC.zst"
    with file.open("wb") as raw:
        for piece in (json.dumps(TALK[0]) + "\n", '{"body": "' + "x" * 100_000_000 + '"}\n', json.dumps(TALK[1])):
            compressor = zstandard.ZstdCompressor(
                compression_params=parameters
            ).compressobj()  # a frame of unknown size
            raw.write(compressor.compress(piece.encode()) + compressor.flush())
    statistics = extract([file], tmp_path / "out", Rules(), workers=1)
    assert statistics.problems == {
        "line too long": (1, [(str(file), 2, "the line has 100,000,013 bytes; the most is 8,388,608")])
    }
    assert len(read_all(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["FOLDER", "OUT"], 1, "a folder; name the files in it, such as"),
        (["nowhere.jsonl", "OUT"], 1, "nowhere.jsonl: No such file or directory"),
        (["DUMP", "DUMP", "OUT"], 1, "a dump is named twice"),
        (["DUMP", "LINK", "OUT"], 1, "link.jsonl are one file"),
        (["DUMP", "PIPE", "OUT"], 1, "pipe.jsonl: no file, but a pipe or a device; write it to a file"),
        (["DUMP", "PACKED", "OUT"], 1, "packed: its first bytes are those of .gz; give it a name that ends so"),
        (["DUMP", "ZIPPED", "OUT"], 1, "zipped: its first bytes are those of .zip; take it apart first"),
        (["DUMP", "NONE", "OUT"], 1, "none.zst: has no bytes; get it again"),
        (["DUMP"], 2, "behind them the folder DIR to write"),
        (["DUMP", "DUMP2"], 1, "a file is in the way; name a folder"),
        (["DUMP", "OUT", "--without", "x"], 1, "no rule is called 'x'; there are left_out"),
        (["DUMP", "OUT", "--leave-out", "LIST"], 1, "line 2: 'no id!' is no id (t1_…, t3_…) and no author (u/…)"),
        (["DUMP", "OUT", "--leave-out", "NAMES"], 1, "line 2: 'somebody' is no id (t1_…, t3_…) and no author (u/…)"),
        (["DUMP", "OUT", "--leave-out", "ACCOUNTS"], 1, "line 1: 't2_abc' is no id (t1_…, t3_…) and no author (u/…)"),
        (["DUMP", "OUT", "--offensive", "/dev/zero"], 1, "/dev/zero, line 1: more than 1,000 characters"),
        (["DUMP", "OUT", "--common-words", "EMPTY"], 1, "common_words holds no word: every reply would be skipped"),
        (
            ["TITLES", "OUT"],
            1,
            "no comment stands in 1 line (1 submission, 0 that are neither); name the",
        ),
        (["DUMP", "OUT", "--min-score", "9"], 1, "no dialogue is left of 2 lines; the table says which rule"),
    ],
)
def test_what_goes_wrong_is_one_line(tmp_path, capfd, words, status, told):
    (tmp_path / "list").write_text("t1_a\nno id!\n")
    (tmp_path / "names").write_text("u/ann\nsomebody\n")  # which could be the id of a comment, and is not honoured then
    (tmp_path / "accounts").write_text("t2_abc\n")
    (tmp_path / "empty").write_text("# none\n\n")
    places = {"FOLDER": tmp_path, "OUT": tmp_path / "out", "DUMP": write(tmp_path / "d.jsonl", *TALK)}
    places |= {word: tmp_path / word.lower() for word in ("LIST", "NAMES", "ACCOUNTS", "EMPTY")}
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "link.jsonl").symlink_to("d.jsonl")
    (tmp_path / "packed").write_bytes(gzip.compress(b"{}"))
    (tmp_path / "zipped").write_bytes(b"PK\x03\x04 and so on")
    (tmp_path / "none.zst").touch()
    places |= {word: tmp_path / name for word, name in (("LINK", "link.jsonl"), ("PIPE", "pipe.jsonl"))}
    places |= {"PACKED": tmp_path / "packed", "ZIPPED": tmp_path / "zipped", "NONE": tmp_path / "none.zst"}
    places |= {"TITLES": write(tmp_path / "RS.jsonl", {"id": "s", "title": "What is it"})}
    places |= {"DUMP2": write(tmp_path / "d2.jsonl", *TALK)}
    assert main(["data", "reddit", *(str(places.get(word, word)) for word in words), "--workers", "1"]) == status
    err = capfd.readouterr().err
    assert told in err
    assert "Traceback" not in err


def test_a_full_disk_is_told_and_the_same_command_goes_on(synthetic, tmp_path, monkeypatch, capfd):
    words = ["data", "reddit", *map(str, synthetic), str(tmp_path / "out"), "--workers", "1"]
    for name, stage in (("add", split._Blocks), ("index", split._Blocks)):
        with monkeypatch.context() as patch:

            def full(*_):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patch.setattr(stage, name, full)
            assert main(words) == 1
        assert "out/unfinished: No space left on device" in capfd.readouterr().err
        assert not list((tmp_path / "out").glob("dialogues-*"))
    assert main(words) == 0
    assert main(["data", "reddit", *map(str, synthetic), str(tmp_path / "whole"), "--workers", "1"]) == 0
    assert runs.digests(tmp_path / "out") == runs.digests(tmp_path / "whole")


def test_a_disk_that_fills_up_within_an_array_is_told_as_such(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            split.save_array(tmp_path / "x.npy", np.zeros(100_000, split.INDEX))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("changes", [{}, {"rules": Rules(min_score=2), "replace": True}])
def test_two_at_once_are_refused(synthetic, tmp_path, monkeypatch, changes):
    def second(*_):  # while the first is at work
        before = sorted(path.name for path in (tmp_path / "out" / "unfinished").iterdir())
        with pytest.raises(ExtractError, match="out: another process is writing there"):
            extract(synthetic, tmp_path / "out", **{"rules": Rules(), "workers": 1} | changes)
        assert before == sorted(path.name for path in (tmp_path / "out" / "unfinished").iterdir())
        return 1, {}

    monkeypatch.setattr(extracting, "judge_partition", second)
    with pytest.raises((TypeError, KeyError)):  # the answer of `second` is no statistics
        extract(synthetic, tmp_path / "out", Rules(), workers=1)
    monkeypatch.undo()
    assert extract(synthetic, tmp_path / "out", Rules(), workers=1).counts["dialogues"]


@pytest.mark.parametrize("said", ["{", "[]", "{}", '{"plan": 3}', "\ud800"])
@pytest.mark.parametrize("name", ["statistics.json", "unfinished/plan.json", "unfinished/mine"])
def test_what_is_not_this_command_s_stays(synthetic, tmp_path, said, name):
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(said.encode(errors="surrogatepass"))
    for replace in (False, True):
        with pytest.raises(ExtractError, match="out: holds other files and no corpus; choose a new or empty folder"):
            extract(synthetic, tmp_path / "out", Rules(), workers=1, replace=replace)
    assert file.read_bytes() == said.encode(errors="surrogatepass")


def test_a_replacement_that_was_killed_goes_on(synthetic, tmp_path, monkeypatch):
    out, new = tmp_path / "out", Rules(min_score=2)
    extract(synthetic, out, Rules(), workers=1)
    extract(synthetic, tmp_path / "new", new, workers=1)
    unlink = type(out).unlink

    def killed(path, missing_ok=False):
        was = path.exists()
        unlink(path, missing_ok)
        if was:
            raise KeyboardInterrupt

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(type(out), "unlink", killed)
            with pytest.raises(KeyboardInterrupt):
                extract(synthetic, out, new, workers=1, replace=True)
        with pytest.raises(ExtractError, match="out: a corpus is half taken away here; --force makes a new one"):
            extract(synthetic, out, Rules(), workers=1)  # what is left is no corpus, with the old rules either
    extract(synthetic, out, new, workers=1, replace=True)
    assert runs.digests(out) == runs.digests(tmp_path / "new")


def test_a_link_to_a_folder_is_one_and_a_link_to_nothing_is_told(synthetic, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "dangling").symlink_to("nowhere")
    extract(synthetic, tmp_path / "link", Rules(), workers=1)
    assert (tmp_path / "there" / "statistics.json").exists()
    with pytest.raises(ExtractError, match="dangling: a file is in the way; name a folder"):
        extract(synthetic, tmp_path / "dangling", Rules(), workers=1)


def test_what_somebody_wants_deleted_is_nowhere(synthetic, tmp_path):
    lines = []
    for path in synthetic:
        with gzip.open(path, "rt") as file:
            lines += [json.loads(line) for line in file]
    name = next(line["id"] for line in lines if "parent_id" in line and isinstance(line["id"], str))
    leave_out = LeaveOut(frozenset({f"t1_{name}"}), frozenset({"bob"}))
    extract(synthetic, tmp_path / "out", Rules(), workers=1, leave_out=leave_out)
    others = {as_bare_id(line["id"]) for line in lines if line["author"] != "bob"} - {
        name
    }  # of one id there may be two
    gone = {f"t1_{bare}" for line in lines if (bare := as_bare_id(line["id"])) not in others}
    kept = {one for line in read_all(tmp_path / "out") for one in json.loads(line)["ids"]}
    assert kept
    assert not kept & gone


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "gone", [{"body": "[deleted]"}, {"body": "[removed]"}, {"author": "[deleted]"}, {"author": "Bob"}]
)
def test_what_one_dump_has_as_deleted_is_deleted(tmp_path, gone, first):
    early, late = TALK[1] | {"author": "ann"}, TALK[1] | {"author": "ann"} | gone
    other = said("c", "t1_a", "No to all of that .")
    dumps = [
        write(tmp_path / "1.jsonl", TALK[0], other, late if first else early),
        write(tmp_path / "2.jsonl", early if first else late, {"id": "s", "title": "What is it"}),
    ]
    leave_out = LeaveOut(frozenset({"t1_zz", "t3_zz"}), frozenset({"bob"}))
    statistics = extract(dumps, tmp_path / "out", Rules(), workers=1, leave_out=leave_out)
    (line,) = read_all(tmp_path / "out")
    assert json.loads(line)["ids"] == ["t1_a", "t1_c"]
    assert funnel(statistics)[-1][2] == statistics.counts["dialogues"] == 1
    assert statistics.counts["rule deleted"] + statistics.counts["rule left_out"] == 2
    faithful = extract(dumps, tmp_path / "script", Rules(faithful=frozenset({"deleted"})), workers=1)
    assert funnel(faithful)[-1][2] == faithful.counts["dialogues"] == 2  # the script takes the text that it finds


def test_a_title_that_one_dump_has_as_deleted_is_deleted(tmp_path):
    title = {"id": "s", "title": "What is it"}
    for number, titles in enumerate(([title, title | {"title": "[deleted]"}], [title | {"title": "[deleted]"}, title])):
        dump = write(tmp_path / f"{number}.jsonl", titles[0], *TALK, titles[1])
        extract([dump], tmp_path / f"{number}", Rules(titles=True), workers=1)
        assert [json.loads(line)["ids"] for line in read_all(tmp_path / f"{number}")] == [["t1_a", "t1_b"]]


def test_what_is_gone_takes_no_place_of_a_thread_s_comments(tmp_path):
    lines = [said(f"x{n}", body="[deleted]") for n in range(5)] + [{"id": "s", "title": "T"}] * 3 + [*TALK]
    for max_thread, dropped in ((2, 0), (1, 1)):
        dump = write(tmp_path / f"{max_thread}.jsonl", *lines)
        statistics = extract([dump], tmp_path / f"{max_thread}", Rules(max_thread=max_thread), workers=1)
        assert statistics.counts["rule huge_thread"] == dropped
        assert funnel(statistics)[-1][2] == statistics.counts["dialogues"]


def test_more_memory_than_a_block_can_have(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(extracting, "Split", lambda *job: asked.append(job) or split.Split(*job))
    extract([write(tmp_path / "d.jsonl", *TALK)], tmp_path / "out", Rules(), workers=1, memory=10**12)
    assert asked[0][2] < 2 ** (8 * split.INDEX["raw"].itemsize)


def test_bland_targets_by_hand():
    rng = np.random.default_rng(0)
    tables = [bland.count_triples(rng.integers(0, 50, 300).astype(np.uint64)) for _ in range(3)]
    whole = bland.add_counts(tables)
    assert int(whole["count"].sum()) == 900
    for rows in (7, 1_000):
        assert bland.said_often(tables, 17, rows=rows).tolist() == whole["triple"][whole["count"] > 17].tolist()
    common, rare = bland.triples("I do not know what"), bland.triples("you mean by that")
    assert bland.triples("i DO not") == common[:1]
    assert len({*common, *rare}) == 5
    often = {*common}
    ten = "I do not know what"  # of whose 3 triples all are said often
    assert bland.is_bland(ten, often, 0.9)
    assert not bland.is_bland(f"{ten} now", often, 0.9)  # 3 of 4
    assert bland.is_bland(f"{ten} now", often, 0.75)
    assert not bland.is_bland("I do", often, 0.9)  # no triple
    line = {"turns": ["x", ten, "other words than these"], "weights": [1.0, 1.0, 1.0]}
    assert finish_line(line, often, Rules())["weights"] == [1.0, 0.0, 1.0]
    only = {"turns": ["x", ten], "weights": [1.0, 1.0]}
    assert finish_line(only, often, Rules()) is None
    assert finish_line(only, often, Rules(faithful=frozenset({"weightless"})))["weights"] == [1.0, 0.0]
    assert finish_line(only, set(), Rules()) == only


def test_bland_is_of_the_whole_corpus_and_can_be_left(tmp_path):
    lines = [said(f"a{n}") for n in range(12)]
    lines += [said(f"b{n}", f"t1_a{n}", "I do not know what you mean") for n in range(12)]
    for number, record in enumerate(lines):
        record["link_id"] = record["parent_id"] = f"t3_s{number % 12}"
        if number >= 12:
            record["parent_id"] = f"t1_a{number - 12}"
    dump = write(tmp_path / "d.jsonl", *lines)
    for name, rules, left in (
        ("asked", Rules(bland_count=11), 0),
        ("not_so_often", Rules(bland_count=12), 12),
        ("without", Rules(bland_count=11, without=frozenset({"bland"})), 12),
        ("faithful", Rules(bland_count=11, faithful=frozenset({"bland"})), 12),
    ):
        statistics = extract([dump], tmp_path / name, rules, workers=1, memory=2_000)
        assert statistics.counts["dialogues"] == left
        assert statistics.counts["rule bland"] == 12 - left


def test_help_has_rules_quirks_and_terms(capfd):
    assert main(["data", "reddit", "--help"]) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert all(name in out for name in RULES)
    assert "a right to have it deleted" in out
    assert "--leave-out" in out


def test_a_dump_that_breaks_off_gives_what_it_holds_and_status_1(tmp_path, capfd):
    dump = tmp_path / "RC.jsonl.gz"
    dump.write_bytes(gzip.compress(b"".join(json.dumps(one).encode() + b"\n" for one in TALK))[:-4])
    for _ in range(2):  # the second time it is there
        assert main(["data", "reddit", str(dump), str(tmp_path / "out"), "--workers", "1"]) == 1
        assert f"made of what stands before the break of {dump}, line 3; get" in capfd.readouterr().err
        assert len(read_all(tmp_path / "out")) == 1


def test_the_picture(synthetic, tmp_path):
    pytest.importorskip("matplotlib")
    assert main(["data", "reddit", *map(str, synthetic), str(tmp_path / "out"), "--workers", "1"]) == 0
    assert (tmp_path / "out" / "statistics.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "out" / "statistics.png").stat().st_ino
    assert main(["data", "reddit", *map(str, synthetic), str(tmp_path / "out"), "--workers", "1"]) == 0
    assert (
        tmp_path / "out" / "statistics.png"
    ).stat().st_ino == drawn  # a finished corpus is read, and may be on a disc
