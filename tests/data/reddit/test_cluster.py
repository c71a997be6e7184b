"""The Beam pipeline, by Beam's in-memory runner: the same lines, counts and problems as one machine."""

import json

import pytest

pytest.importorskip("apache_beam", reason="Beam needs an environment of its own: pip install -e '.[test,extract]'")

from dialogpt_jax.data.reddit import cluster
from dialogpt_jax.data.reddit.extract import extract
from dialogpt_jax.data.reddit.rules import Rules
from dialogpt_jax.data.reddit.synthetic import BAD_SUBREDDIT, BAD_WORD, write_dumps
from dialogpt_jax.data.reddit.threads import LeaveOut

IN_MEMORY = ("--runner", "DirectRunner", "--direct_running_mode", "in_memory", "--direct_num_workers", "1")
pytestmark = pytest.mark.filterwarnings("default")  # Beam's own


@pytest.mark.parametrize(
    ("comments", "flags", "rules"),
    [
        (3_000, (), {}),
        (
            3_000,
            ("--all-comments", "--titles", "--max-thread", "40"),
            {"all_comments": True, "titles": True, "max_thread": 40},
        ),
        pytest.param(50_000, (), {}, marks=pytest.mark.slow),
    ],
)
def test_the_same_lines_as_one_machine(tmp_path, comments, flags, rules):
    dumps = write_dumps(tmp_path, comments, files=3, suffix=".jsonl.gz")
    with dumps[1].open("ab") as file:
        file.write(b"and here it breaks")
    for name, entry in (("words", BAD_WORD), ("subreddits", BAD_SUBREDDIT), ("gone", "u/dee\n")):
        (tmp_path / name).write_text(f"{entry}\n")
    here = extract(
        dumps,
        tmp_path / "here",
        Rules(offensive=frozenset({BAD_WORD}), subreddits=frozenset({BAD_SUBREDDIT}), bland_count=20, **rules),
        workers=1,
        leave_out=LeaveOut(authors=frozenset({"dee"})),
    )
    lists = (
        "--offensive",
        str(tmp_path / "words"),
        "--subreddits",
        str(tmp_path / "subreddits"),
        "--leave-out",
        str(tmp_path / "gone"),
        "--bland-count",
        "20",
    )
    out = tmp_path / "there"
    cluster.main(["--dumps", f"{tmp_path}/R*.gz", "--out", str(out), *lists, *flags, *IN_MEMORY])

    def lines(folder, name):
        return sorted(line for file in folder.glob(f"{name}*") for line in file.read_text().splitlines())

    assert lines(out, "dialogues") == lines(tmp_path / "here", "dialogues")
    assert len(lines(out, "dialogues")) == here.counts["dialogues"] > 0
    assert lines(out, "problems") == lines(tmp_path / "here", "problems")
    assert json.loads((out / "statistics.json").read_text()) == json.loads(json.dumps(here.as_json()))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--leave-outs", "x"), "--leave-outs is no flag of this pipeline or of Beam; did you mean --leave-out?"),
        (("--ofensive=x",), "--ofensive is no flag of this pipeline or of Beam; did you mean --offensive?"),
        (("--faithful", "nope"), "no quirk is called 'nope'"),
        (("--leave_out", "GONE"), "gone, line 1: 'somebody' is no id"),
        (("--bland-share", "7"), "bland_share 7.0"),
        ((), "out: holds files already; name a new folder"),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(tmp_path, capfd, flags, told):
    (tmp_path / "gone").write_text("somebody\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dialogues-00000-of-00009.jsonl").write_text("{}\n")
    flags = [str(tmp_path / "gone") if flag == "GONE" else flag for flag in flags]
    with pytest.raises(SystemExit) as ended:
        cluster.main(["--dumps", "x", "--out", str(tmp_path / "out"), *flags, *IN_MEMORY])
    assert ended.value.code == 2
    assert told in " ".join(capfd.readouterr().err.split())
