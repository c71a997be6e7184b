"""`dialogpt bench` on engines that compute nothing: turns, medians, ratios, what fails and how it ends; then ours, tiny."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np
import pytest

from dialogpt_jax.bench import benchmark, cases, measure, report, scopes
from dialogpt_jax.bench.benchmark import Measured, Plan, folder_of_weights, run_benchmark, versions_of
from dialogpt_jax.bench.cases import LINES, OURS, Case, Contender, Engine, cases_of, contenders_of
from dialogpt_jax.bench.facts import batches_by_length
from dialogpt_jax.bench.limits import least_seconds, weight_bytes
from dialogpt_jax.bench.machine import cpu_flags
from dialogpt_jax.bench.measure import Result, ratio
from dialogpt_jax.bench.processes import EngineError, Worker, workers_of
from dialogpt_jax.bench.worker import TRAINS
from dialogpt_jax.cli import bench as command
from dialogpt_jax.cli.main import main
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.whole_writes import locked

BOTH = {"float32": "float32", "int8": "int8"}
FAKES = {
    OURS: Engine("bench.fake_engine", (), BOTH, tuple(LINES)),
    "transformers": Engine("bench.fake_engine", (), {"float32": "float32"}, ("decode", "prefill"), compiles=True),
    "ctranslate2": Engine("bench.fake_engine", ("ctranslate_3",), {"int8": "I8"}, ("decode",), "pip install it"),
}


@pytest.fixture
def log(tmp_path, monkeypatch):
    """The file in which every call of a fake engine is noted; where processes look for the fakes."""
    monkeypatch.setenv("FAKE_ENGINE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    monkeypatch.setattr(measure, "PAUSE", 0)
    return tmp_path / "log"


def measured_by_fakes(plan: Plan) -> Measured:
    found = Measured()
    run_benchmark(plan, found, engines=FAKES)
    return found


def is_alive(pid: int) -> bool:
    """Of one that has ended and that nobody has waited for, no: the system's first process may take its time."""
    state = Path(f"/proc/{pid}/stat")
    if state.exists():
        return state.read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_engines_take_turns_each_in_a_process_of_its_own(log, monkeypatch):
    monkeypatch.setattr(measure, "MOST_CALLS", 1)
    told: list[str] = []
    plan = Plan(cases_of(["decode"], rows=[2]), [OURS, "transformers"], ["float32", "int8"], repeats=3)
    found = Measured()
    run_benchmark(plan, found, tell=told.append, engines=FAKES)
    assert [len(result.seconds) for result in found.results] == [3, 3, 3]
    assert all(result.limit == 0.001 and result.amount == 2 * 64 for result in found.results)
    runs = [line.split() for line in log.read_text().splitlines() if line.startswith("run")]
    ours, peer = runs[0][3], runs[4][3]
    assert ours != peer
    warm = [(ours, "float32")] * 2 + [(ours, "int8")] * 2 + [(peer, "float32")] * 2
    turn = [(ours, "float32"), (ours, "int8"), (peer, "float32")]
    assert [(run[3], run[1]) for run in runs] == warm + 3 * turn
    assert told[-1] == "[1/1] decode, 2 rows, 64 tokens + 64 new: transformers float32, turn 3 of 3"
    assert not is_alive(int(ours))
    assert not is_alive(int(peer))
    (folder,) = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("write")]
    assert not Path(folder).exists()


def test_training_has_a_process_of_its_own_which_is_told_so(log, monkeypatch):
    """`dialogpt train` has another way with memory than the commands that reply."""
    monkeypatch.setattr(measure, "MOST_CALLS", 1)
    measured_by_fakes(Plan(cases_of(["decode", "train"], rows=[2]), [OURS], ["float32"], repeats=1))
    runs = [line.split() for line in log.read_text().splitlines() if line.startswith("run")]
    one, other = dict.fromkeys(run[3] for run in runs)
    assert {run[2]: run[3] for run in runs} == {"decode": one, "train": other}
    words = [
        line.split()[1:-1] for line in log.read_text().splitlines() if line.startswith("begun") and line.endswith(other)
    ]
    assert words == [[TRAINS]]


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("killed int8", "its process was ended by SIGKILL"),
        ("exits int8", "its process ended with status 3: out of memory"),
        ("error int8", "no such"),
    ],
)
def test_an_engine_that_fails_is_a_line_and_the_others_go_on(log, monkeypatch, fault, why):
    monkeypatch.setenv("FAKE_ENGINE_FAULT", fault)
    engines = [OURS, "transformers"]
    found = measured_by_fakes(Plan(cases_of(["decode", "prefill"], rows=[1]), engines, ["float32", "int8"], repeats=1))
    by_name = {(result.case.line, result.contender.describe()): result for result in found.results}
    broken = by_name["decode", f"{OURS} int8"]
    assert broken.error == why
    assert broken.seconds == []
    assert len(by_name["prefill", "transformers float32"].seconds) > 0
    assert f"{OURS} int8" in report.as_text(found.results)
    assert f"failed: {why}" in report.as_text(found.results)
    values = report.as_values(found.results, {}, {})
    assert [row.get("error", "") for row in values["results"]].count(broken.error) >= 1
    json.dumps(values, allow_nan=False)


def test_ours_without_which_there_is_nothing_is_named_when_it_ends(log, monkeypatch):
    monkeypatch.setenv("FAKE_ENGINE_FAULT", "killed at once")
    with pytest.raises(EngineError, match=f"^{OURS}: its process was ended by SIGKILL$"):
        measured_by_fakes(Plan(cases_of(["decode"]), [OURS], ["float32"], repeats=1))


def test_a_peer_decodes_compiled_too_where_it_says_that_it_can(log, monkeypatch):
    plan = Plan(cases_of(["decode", "prefill"], rows=[1]), [OURS, "transformers"], ["float32"], repeats=1)
    plain = [(case.line, name) for case in plan.cases for name in (f"{OURS} float32", "transformers float32")]
    assert [(one.case.line, one.contender.describe()) for one in measured_by_fakes(plan).results] == plain
    monkeypatch.setenv("FAKE_ENGINE_COMPILES", "1")
    found = measured_by_fakes(plan).results
    assert [(one.case.line, one.contender.describe()) for one in found] == [
        *plain[:2],
        ("decode", "transformers float32 compiled"),
        *plain[2:],
    ]
    assert found[2].limit == 0.001
    assert "transformers float32 compiled" in report.as_text(found)


def test_utilisation_is_of_the_published_peak_where_there_is_one(log, monkeypatch):
    plan = Plan(cases_of(["train", "prefill"]), [OURS], ["float32"], repeats=1)
    assert [one.utilisation for one in measured_by_fakes(plan).results] == [None, None]
    monkeypatch.setenv("FAKE_ENGINE_DEVICE", "NVIDIA H100 80GB HBM3")
    trained, other = measured_by_fakes(plan).results
    assert trained.utilisation == 1e12 / trained.median / 989e12
    assert other.utilisation is None
    head, row = report.as_text([trained]).splitlines()[1:]
    assert head.split() == ["tokens/s", "ms", "of", "limit", "MFU"]
    assert row.endswith(f"{trained.utilisation:.1%}")
    (values,) = report.as_values([trained], {}, {})["results"]
    assert values["utilisation"] == trained.utilisation


def test_what_stops_the_command_leaves_no_process(log):
    pids: list[int] = []

    def broken_off() -> None:
        with workers_of({"a": ["bench.fake_engine"], "b": ["bench.fake_engine"]}) as workers:
            pids.extend(worker.pid for worker in workers.values())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert len(pids) == 2
    assert not any(map(is_alive, pids))
    with workers_of({"a": ["no_such_module"]}) as workers, pytest.raises(EngineError, match="No module named 'no_such"):
        workers["a"].call("least")


def test_ctrl_c_pressed_twice_leaves_no_process(log, monkeypatch):
    kill, killed = subprocess.Popen.kill, []

    def note(process: subprocess.Popen) -> None:
        killed.append(process.pid)
        kill(process)

    def pressed_again(process: subprocess.Popen, timeout: float | None = None) -> int:
        raise KeyboardInterrupt

    begun: list[Worker] = []

    def broken_off(patched: pytest.MonkeyPatch) -> None:
        with workers_of({"a": ["bench.fake_engine"], "b": ["bench.fake_engine"]}) as workers:
            begun.extend(workers.values())
            patched.setattr(subprocess.Popen, "kill", note)
            patched.setattr(subprocess.Popen, "wait", pressed_again)
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        broken_off(patched)
    for worker in begun:
        worker.close()
    assert killed[:2] == [worker.pid for worker in begun]


COMMAND = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where the tests run under nohup, it is ignored from the start
from dialogpt_jax.bench import cases
from dialogpt_jax.cli.main import main
for name, engine in list(cases.ENGINES.items()):
    cases.ENGINES[name] = cases.Engine("bench.fake_engine", (), engine.dtypes, engine.lines)
sys.exit(main(["bench", "decode", "--rows", "1", "--dtype", "float32", "--json", sys.argv[1]]))
"""


def hanging(log, folder: Path) -> subprocess.Popen:
    """The command, while its engine hangs in what it measures, with a process of the engine's own."""
    names = {"FAKE_ENGINE_FAULT": "hangs", "DIALOGPT_NO_COMPILATION_CACHE": "1", "TMPDIR": str(folder / "temporary")}
    (folder / "temporary").mkdir(exist_ok=True)
    log.unlink(missing_ok=True)
    words = [sys.executable, "-c", COMMAND, str(folder / "out.json")]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, env=os.environ | names)
    for _ in range(600):
        if log.exists() and "child" in log.read_text():
            break
        time.sleep(0.05)
    return process


def all_end(log) -> bool:
    """Whether the engines and what they began end; of what nobody waits for, a moment later."""
    pids = {int(line.split()[-1]) for line in log.read_text().splitlines()}
    assert len(pids) == 2
    for _ in range(600):
        if not any(map(is_alive, pids)):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.long)],
    ids=lambda number: number.name,
)
def test_what_ends_the_command_ends_all_engines_and_leaves_nothing(log, tmp_path, number):
    process = hanging(log, tmp_path)
    try:
        process.send_signal(number)
        _, told = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert b"Traceback" not in told
    assert all_end(log)
    assert not list(tmp_path.glob("*out.json*"))
    assert not list((tmp_path / "temporary").iterdir())


def test_a_command_that_is_killed_takes_its_engines_along_and_the_next_one_its_folder(log, tmp_path, monkeypatch):
    process = hanging(log, tmp_path)
    process.kill()
    process.communicate(timeout=30)
    assert all_end(log)
    (left,) = (tmp_path / "temporary").iterdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with folder_of_weights() as free, locked(Path(free), wait=False):  # a worker locks it while it writes the model
        pass
    with folder_of_weights() as one, folder_of_weights() as other:
        assert not left.exists()
        assert one != other
        for folder in map(Path, (one, other)):
            assert folder.stat().st_mode & 0o077 == 0  # weights are nobody else's affair
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.long
def test_the_command_measures_the_model_in_the_package():
    """Nothing fake: its weights written by one process, and measured."""
    words = ["bench", "prefill", "--prompt", "8", "--dtype", "float32", "--repeats", "1", "--peers", "none"]
    done = subprocess.run(
        [sys.executable, "-m", "dialogpt_jax.cli.main", *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "dialogpt_jax float32" in done.stdout


def test_ctrl_c_shows_what_is_measured(log, monkeypatch, capsys):
    for name, engine in FAKES.items():
        monkeypatch.setitem(cases.ENGINES, name, engine)
    monkeypatch.setenv("DIALOGPT_NO_COMPILATION_CACHE", "1")

    def broken_off(plan: Plan, measured: Measured, **_: object) -> None:
        measured.results.append(result(OURS, "float32", [1.0]))
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "run_benchmark", broken_off)
    monkeypatch.setattr(os, "getloadavg", lambda: (7.0, 0, 0))
    assert main(["bench", "decode", "--peers", "none"]) == 130
    out, told = capsys.readouterr()
    assert out.startswith("decode, 2 rows")
    assert "the machine is busy (load 7.0)" in told


def result(
    engine: str, dtype: str, seconds: list[float], what: str = "", case: Case | None = None, amount: float = 128
):
    return Result(case or Case("decode", 2, 64, 64), Contender(engine, dtype, what), seconds, 0.5, amount)


def test_figures_are_of_medians():
    ours, peer = result(OURS, "float32", [1.0, 9.0, 2.0]), result("transformers", "float32", [5.0, 6.0, 100.0])
    assert (ours.median, ours.figure) == (2.0, 64.0)
    assert ratio(ours, peer) == 3.0
    text = report.as_text([ours, peer])
    assert text.splitlines()[0] == "decode, 2 rows, 64 tokens + 64 new"
    assert text.splitlines()[1].split() == ["tokens/s", "ms", "of", "limit", "float32", "is"]
    assert text.splitlines()[2].split() == [OURS, "float32", "64", "2,000", "25%"]
    assert text.splitlines()[3].split() == ["transformers", "float32", "21.3", "6,000", "8%", "3.00×"]
    (_, row) = report.as_values([ours, peer], {"a": 1}, {"b": 2})["results"]
    assert row["ours_times_as_fast"] == {"float32": 3.0}
    assert row["seconds"] == [5.0, 6.0, 100.0]


def test_costs_are_over_a_plain_choice_and_of_a_step():
    case = Case("processors", 1, 256, 0)

    def cost(what: str, seconds: float, amount: int = 10) -> Result:
        return result(OURS, "float32", [seconds], what, case, amount)

    steps = [cost(cases.STEP, 0.4, 4), cost(cases.GREEDY, 0.01), cost(cases.DRAW, 0.02)]
    lines = report.as_text([*steps, cost("top_p", 0.07), cost("dry", 0.03)]).splitlines()
    assert [line.split()[-2:] for line in lines[2:]] == [
        ["100.000", "1.000"],
        ["1.000", "0.010"],
        ["2.000", "0.020"],
        ["5.000", "0.050"],
        ["2.000", "0.020"],
    ]
    case = Case("searches", 1, 64, 32)
    lines = report.as_text(
        [result(OURS, "float32", [s], what, case) for what, s in ((cases.ONE_GREEDY, 2), ("4 beams", 5))]
    )
    assert lines.splitlines()[-1].split() == ["4", "beams", "5,000", "2.50"]


def test_cases_and_contenders_follow_the_flags():
    assert cases_of(["decode"]) == [Case("decode", 1, 64, 64), Case("decode", 8, 64, 64)]
    assert cases_of(["prefill", "chat"], rows=[4], prompts=[16, 32], new=5) == [
        Case("prefill", 4, 16, 1),
        Case("prefill", 4, 32, 1),
        Case("chat", 1, 0, 20),
    ]
    (start,) = cases_of(["start"])
    names = [one.describe() for one in contenders_of(start, [OURS, "transformers"], ["int8", "float32"])]
    assert names == [f"{OURS} int8 warm cache", f"{OURS} int8 cold cache"]  # transformers has no int8
    (train,) = cases_of(["train"])
    assert [one.dtype for one in contenders_of(train, [OURS], ["float32", "int8"])] == ["float32"]
    (lookup,) = cases_of(["lookup"])
    names = [one.describe() for one in contenders_of(lookup, [OURS, "ctranslate2"], ["int8"])]
    assert names == [f"{OURS} int8", f"{OURS} int8 looked up", "ctranslate2 int8"]
    (decode,) = cases_of(["decode"], rows=[1])
    assert [one.describe() for one in contenders_of(decode, ["llama.cpp"], ["float32", "bfloat16", "int8"])] == [
        "llama.cpp F32",
        "llama.cpp Q8_0",
    ]
    assert batches_by_length([[1], [1, 2, 3], [1, 2]], 2) == [[[1, 2, 3], [1, 2]], [[1]]]


def test_a_limit_is_bytes_at_one_row_and_operations_at_many():
    config = GPT2Config.small()
    bytes_a_step = weight_bytes(config, "float32")
    assert bytes_a_step == 4 * (124_439_808 - 1024 * 768)
    speeds = {"bandwidth": 50e9, "flops": {"float32": 200e9}}
    decode = least_seconds(config, Case("decode", 1, 64, 64), "float32", speeds, context=0)
    steps = 63 * bytes_a_step / 50e9
    assert decode is not None
    assert steps < decode < 1.2 * steps
    prefill = least_seconds(config, Case("prefill", 8, 256, 1), "float32", speeds, context=0)
    flops = 2 * (config.num_parameters - 51281 * 768) * 8 * 256
    assert prefill == pytest.approx(flops / 200e9, rel=0.1)
    assert least_seconds(config, Case("mixed", 1, 0, 40), "float32", speeds, context=0) is None
    assert least_seconds(config, Case("decode", 1, 64, 64), "int8", speeds, context=0) is None


def test_flags_of_the_cpu_that_matter():
    assert cpu_flags("processor : 0\nflags\t\t: fpu avx2 avx512f amx_tile sse2 avx512_vnni\n") == [
        "amx_tile",
        "avx2",
        "avx512_vnni",
        "avx512f",
    ]
    assert cpu_flags("") == []


def test_a_person_reads_the_few_flags_that_choose_kernels_within_a_terminals_width():
    every = (
        "avx2 avx512_bf16 avx512_bitalg avx512_vbmi2 avx512_vnni avx512_vp2intersect avx512_vpopcntdq avx512bw avx512cd"
    )
    every += " avx512dq avx512f avx512ifma avx512vbmi avx512vl avx_vnni fma amx_bf16 amx_int8 amx_tile"
    machine = {"device": "cpu", "cpu": "an Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "cores": 2, "jax": "0.7"}
    machine |= {"python": "3.11", "cpu_flags": cpu_flags(f"flags : {every}"), "flops": {"int8": 1e12}, "bandwidth": 1e9}
    settings = {"named": "bundled", "versions": {}, "repeats": 5}
    settings["weights"] = {"parameters": 1000, "layers": 1, "width": 8}
    lines = report.describe_run(settings, machine).splitlines()
    assert "flags: avx2 avx512f avx512_vnni avx512_bf16 avx_vnni amx_int8 amx_bf16" in lines
    assert max(map(len, lines)) <= 80
    assert set(every.split()) == set(report.as_values([], settings, machine)["machine"]["cpu_flags"])
    assert "\nflags: none of them known\n" in report.describe_run(settings, machine | {"cpu_flags": []})


def test_versions_are_found_of_what_is_on_the_path_alone(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in (("on_the_path", '__version__ = "0.3.2"\nraise ImportError\n'), ("untold", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    packages = ("numpy", "on_the_path", "untold", "nowhere")
    assert versions_of(["one"], {"one": Engine("", packages, {}, ())}) == {
        "numpy": np.__version__,
        "on_the_path": "0.3.2",
        "untold": "?",
        "nowhere": "?",
    }


HLO = """\
HloModule jit_f

%body (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %dot.1 = f32[4]{0} dot(%p, %p), lhs_contracting_dims={0}
  %fusion.2 = f32[4]{0} fusion(%dot.1), kind=kLoop, metadata={op_name="jit(f)/while/body/head/dot_general"}
  ROOT %add.3 = f32[4]{0} add(%dot.1, %fusion.2), metadata={op_name="jit(f)/while/body/sample/add" stack_frame_id=3}
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %while.9 = (s32[], /*index=1*/f32[4]{0}) while(%x), body=%body, metadata={op_name="jit(f)/while"}
}
"""


def test_time_is_told_by_scope():
    block = "GPT2/jit(_apply_block)/block/Block/mlp/c_fc/dot_general"
    assert scopes.scope_of(f"jit(reply_program)/while/body/{block}") == "loop/block/mlp"
    assert scopes.scope_of("jit(train_step)/transpose(jvp(block))/Block/attn/mul") == "backward/block/attn"
    assert scopes.scope_of("jit(train_step)/transpose(jvp(GPT2))/jit(_apply_block)/block/Block/attn/mul") == (
        "backward/block/attn"
    )
    assert scopes.scope_of("jit(f)/add") == scopes.UNNAMED
    found = scopes.scopes_of_text(HLO)
    assert {name: found[name] for name in ("dot.1", "fusion.2", "add.3")} == {
        "dot.1": "loop/head",  # it has no name of its own: that of the first which reads it
        "fusion.2": "loop/head",
        "add.3": "loop/sample",
    }
    assert "while.9" not in found  # it waits for its body
    assert scopes.own_times([("while", 0, 10), ("dot", 1, 4), ("add", 2, 1), ("dot", 6, 1), ("x", 20, 2)]) == {
        "while": 5.0,
        "dot": 4.0,
        "add": 1.0,
        "x": 2.0,
    }
    rows = scopes.by_scope({"dot.1": 0.2, "add.3": 0.1, "while.9": 0.5, "other": 7.0}, found, 0.4)
    assert rows[0]["scope"] == "loop/head"
    assert {row["scope"]: round(row["share"], 6) for row in rows} == {
        "loop/head": 0.5,
        "loop/sample": 0.25,
        scopes.REST: 0.25,
    }


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["deocde"], 2, "deocde"),
        (["--size", "huge"], 2, "huge"),
        (["--size", "small", "--model", "."], 2, "give one of --size and --model"),
        (["--peers", "none", "transformers"], 2, "--peers none goes with no other name"),
        (["prefill", "--new", "5"], 2, "--new changes nothing of prefill; it is for decode, lookup, draft, searches"),
        (["chat", "start", "--rows", "2"], 2, "--rows changes nothing of chat or start; it is for decode, lookup"),
        (["draft"], 2, "draft goes with --size medium or --size large, for which the small one drafts"),
        (["train", "--dtype", "int8"], 2, "train is not measured in int8; give another --dtype"),
        (["--rows", "0"], 2, "0 is less than 1"),
        (["--rows"], 2, "--rows requires at least 1 element"),
        (["--rows", "--dtype", "int8"], 2, "--rows requires at least 1 element"),
        (["--prompt"], 2, "--prompt requires at least 1 element"),
        (["--dtype"], 2, "--dtype requires at least 1 element"),
        (["--peers"], 2, "--peers requires at least 1 element"),
        (["--rows", "1.5"], 2, "'1.5' is no whole number"),
        (["--repeats", "0"], 2, "--repeats"),
        (["--model", "nowhere"], 1, "--model nowhere: no such directory; `dialogpt convert NAME DIR` makes one"),
        (["--json", "nowhere/x.json"], 1, "nowhere: no such folder"),
        (["--json", "."], 1, ". is a folder; name a file"),
        (["--json", ""], 1, "--json is ''; give the name of a file or folder"),
        (["--plot", ""], 1, "--plot is ''; give the name of a file or folder"),
        (["--plot", "x.pdf"], 1, "--plot is x.pdf; name a file that ends in .png"),
        (["--json", "x.png", "--plot", "./x.png"], 2, "--json and --plot name one file; give each its own"),
        (
            ["chat", "--profile"],
            2,
            "--profile looks into decode, prefill, train alone: name one of them, or leave it out",
        ),
        (["searches", "--new", "500"], 1, "more than the model's 512 positions; give less with --new"),
        (["--model", ""], 1, "--model is ''; give the name of a file or folder"),
        (["--json", os.devnull], 1, f"{os.devnull} is no plain file, which is replaced in the end; name another place"),
        (["decode", "--prompt", "500"], 1, "decode, 1 row, 500 tokens + 64 new: more than the model's 512 positions"),
    ],
)
def test_wrong_words_are_one_line_before_any_work(words, status, said, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "run_benchmark", None)
    assert main(["bench", *words]) == status
    out, told = capsys.readouterr()
    assert out == ""
    assert said in told.splitlines()[-1]


def test_a_folder_in_which_nothing_can_be_written_is_told_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "run_benchmark", None)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert main(["bench", "--json", str(tmp_path / "out.json")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"dialogpt bench: {tmp_path}: nothing can be written there"


def test_what_is_named_twice_is_measured_once_and_all_is_what_can_be(monkeypatch, capsys):
    asked: list[Plan] = []

    def note(plan: Plan, *_: object, **__: object) -> None:
        asked.append(plan)
        raise KeyboardInterrupt

    monkeypatch.setenv("DIALOGPT_NO_COMPILATION_CACHE", "1")
    monkeypatch.setattr(benchmark, "run_benchmark", note)
    words = ["decode", "decode", "--rows", "2", "1", "2", "--prompt", "4", "4", "--peers", "none"]
    assert main(["bench", *words]) == 130
    assert asked[0].cases == [Case("decode", 2, 4, 64), Case("decode", 1, 4, 64)]
    assert asked[0].cases[1].describe() == "decode, 1 row, 4 tokens + 64 new"
    assert main(["bench", "all", "--dtype", "int8", "--peers", "none"]) == 130
    assert {case.line for case in asked[1].cases} == {*LINES} - {"draft", "train"}  # what cannot be is left out
    assert "train takes no part, not being measured in int8" in capsys.readouterr().err
    assert Case("prefill", 1, 1, 1).describe() == "prefill, 1 row, 1 token + 1 new"


def test_engines_keep_compiled_programs_as_the_commands_do(monkeypatch, tmp_path):
    """Or a command would find programs without the time of their last use, and throw them all away."""
    import jax

    settings = {}
    monkeypatch.delenv("DIALOGPT_NO_COMPILATION_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(jax.config, "update", lambda name, value: settings.update({name.upper(): value}))
    found = command._program_cache()
    assert {name: type(settings[name])(value) for name, value in found.items()} == settings


def test_of_an_event_the_operation_counts_and_not_the_kernel(tmp_path, monkeypatch):
    """On a GPU an event's own name is that of a kernel, of which operations alike share one."""
    import jax

    def event(name, start, **stats):
        return types.SimpleNamespace(name=name, start_ns=start, duration_ns=10, stats=list(stats.items()))

    events = [event("fusion_9", 0, hlo_op="fusion.9"), event("fusion_9", 20, hlo_op="fusion.8"), event("memcpy", 40)]
    plane = types.SimpleNamespace(lines=[types.SimpleNamespace(events=events)])
    monkeypatch.setattr(jax.profiler.ProfileData, "from_file", lambda name: types.SimpleNamespace(planes=[plane]))
    (tmp_path / "x.xplane.pb").touch()
    assert scopes.read_trace(tmp_path) == pytest.approx({"fusion.9": 1e-8, "fusion.8": 1e-8})


def test_a_profile_that_fails_says_why(log, tmp_path, monkeypatch, capsys):
    for name, engine in FAKES.items():
        monkeypatch.setitem(cases.ENGINES, name, engine)
    monkeypatch.setenv("DIALOGPT_NO_COMPILATION_CACHE", "1")
    monkeypatch.setenv("FAKE_ENGINE_FAULT", "no profile int8")
    words = ["prefill", "--dtype", "int8", "float32", "--repeats", "1", "--peers", "none", "--profile"]
    assert main(["bench", *words, "--json", str(tmp_path / "out.json")]) == 1
    out, told = capsys.readouterr()
    assert "profile of prefill, 1 row, 256 tokens + 1 new, int8: failed: no such trace\n" in out
    assert "float32: 2.0 ms, under the profiler 3.0" in out
    assert told.splitlines()[-1] == "dialogpt bench: 1 measurement failed; see the table"
    values = json.loads((tmp_path / "out.json").read_text())
    assert [one.get("error") for one in values["profiles"]] == ["no such trace", None]
    assert [row["amount"] for row in values["results"]] == [1, 1]


def test_a_trace_goes_with_the_folder_of_its_benchmark(tmp_path, monkeypatch):
    import jax

    places: list[Path] = []

    @contextlib.contextmanager
    def note(place: str):
        places.append(Path(place))
        yield

    monkeypatch.setattr(jax.profiler, "trace", note)
    scopes.profile_program("", lambda: None, str(tmp_path))
    assert places[0].parent == tmp_path
    assert not places[0].exists()


def no_reader(text: str) -> None:
    raise BrokenPipeError(32, "Broken pipe")


def test_the_command_prints_a_table_and_writes_json_whole(log, tmp_path, monkeypatch, capsys):
    for name, engine in FAKES.items():
        monkeypatch.setitem(cases.ENGINES, name, engine)
    monkeypatch.setenv("DIALOGPT_NO_COMPILATION_CACHE", "1")
    monkeypatch.setattr(command, "PEERS", ["transformers", "ctranslate2"])
    file = tmp_path / "out.json"
    words = ["decode", "prefill", "--rows", "2", "--dtype", "int8", "float32", "--repeats", "2", "--profile"]
    assert main(["bench", *words, "--json", str(file)]) == 0
    out, told = capsys.readouterr()
    assert "ctranslate2 takes no part, ctranslate_3 not being installed: pip install it" in told
    assert "\na CPU, 2 cores\nflags: avx2\n" in out
    assert "\ndecode, 2 rows, 64 tokens + 64 new\n" in out
    assert "profile of prefill, 2 rows, 256 tokens + 1 new, float32: 2.0 ms, under the profiler 3.0" in out
    found = json.loads(file.read_text())
    assert [(row["line"], row["engine"], row["dtype"]) for row in found["results"]] == [
        (line, engine, dtype)
        for line in ("decode", "prefill")
        for engine, dtype in ((OURS, "int8"), (OURS, "float32"), ("transformers", "float32"))
    ]
    assert all(np.median(row["seconds"]) == row["median"] for row in found["results"])
    assert found["settings"]["repeats"] == 2
    assert len(found["profiles"]) == 4
    file.unlink()
    with monkeypatch.context() as patched:  # as with `| true`: minutes of work are in the file all the same
        patched.setattr(command.streams, "show", no_reader)
        assert main(["bench", "prefill", "--dtype", "int8", "--json", str(file)]) == 141
    assert len(json.loads(file.read_text())["results"]) == 1
    capsys.readouterr()
    monkeypatch.setenv("FAKE_ENGINE_FAULT", "error float32")
    file.write_text("before")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    assert main(["bench", "prefill", "--json", str(file)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"dialogpt bench: {file}: No space left on device"
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out.json"]


def test_calls_that_differ_are_told():
    steady = result(OURS, "float32", [1.0, 1.1, 9.0, 1.2, 0.1])  # one in a quarter may
    assert "trust no ratio" not in report.as_text([steady])
    wild = result("transformers", "float32", [0.15, 0.86])
    assert report.as_text([steady, wild]).splitlines()[-1] == (
        "  transformers float32: calls took from 150 to 860 ms; trust no ratio to it"
    )
    assert "trust" not in report.as_text([steady, Result(wild.case, wild.contender, error="ended")])


def test_a_profile_of_threads_at_once_says_what_its_rows_add_up_to():
    found = {"plain_ms": 9.0, "traced_ms": 10.0, "scopes": [{"scope": "block", "ms": 10.05, "share": 1.0}]}
    assert report.profile_as_text(found, "train").splitlines()[0] == "train: 9.0 ms, under the profiler 10.0"
    found["scopes"][0]["ms"] = 12.0
    told = report.profile_as_text(found, "train").splitlines()[0]
    assert told == "train: 9.0 ms, under the profiler 10.0; threads at once, 12.0 together"


def test_the_plot_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    ours, peer = result(OURS, "float32", [1.0]), result("transformers", "float32", [5.0])
    report.save_plot([ours, peer], tmp_path / "plot.png", title="$1")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


def test_drawn_weights_have_a_tokenizer_whose_replies_are_encoded_as_they_were_drawn(tmp_path):
    """Or a kept chat would read its own replies again, which a trained model's does not."""
    from dialogpt_jax.bench.models import dialogue, filled_tokenizer, whole_words

    config = GPT2Config(vocab_size=9000, eos_token_id=8999)
    tokenizer = filled_tokenizer(config, tmp_path / "vocab.json")
    assert (tokenizer.vocab_size, tokenizer.end_of_text_id) == (9000, 8999)
    named = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(named.values()) == list(range(9000))  # each id has one name
    words = whole_words(tokenizer)
    assert len(words) > 1000
    turns = dialogue(tokenizer, words)
    assert len(turns) == 15
    assert {len(tokenizer.encode(text)) for text in turns[1::2]} == {20}
    assert {len(text.split()) for text in turns} == {20}


def test_a_cold_start_has_no_compiled_programs(monkeypatch):
    from dialogpt_jax.bench import ours

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "kept")  # as the workers have it
    monkeypatch.setattr(ours, "in_a_process", lambda words, environment: environment)
    monkeypatch.delenv("DIALOGPT_NO_COMPILATION_CACHE", raising=False)
    cold, warm = ours.first_reply("folder", "float32", cold=True), ours.first_reply("folder", "float32", cold=False)
    assert "JAX_COMPILATION_CACHE_DIR" not in cold
    assert cold["DIALOGPT_NO_COMPILATION_CACHE"] == "1"
    assert "DIALOGPT_NO_COMPILATION_CACHE" not in warm


@pytest.mark.slow
def test_every_line_of_ours_runs(tmp_path, capsys):
    """A tiny model of the bundled vocabulary; all programs are compiled."""
    import jax

    from dialogpt_jax.bench.models import filled_tokenizer
    from dialogpt_jax.model import init_params
    from dialogpt_jax.weights.directory import write_directory

    config = GPT2Config(vocab_size=8192, eos_token_id=8191, n_positions=512, n_embd=16, n_layer=2, n_head=2)
    tokenizer = filled_tokenizer(config, tmp_path / "vocab.json")
    write_directory(tmp_path / "tiny", init_params(config, jax.random.key(0)), config, tokenizer)
    words = ["all", "--model", str(tmp_path / "tiny"), "--repeats", "1", "--peers", "none", "--rows", "2", "--new", "8"]
    words += ["--contexts", "20", "--prompt", "32", "--profile", "--json", str(tmp_path / "out.json")]
    assert main(["bench", *words]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert {row["line"] for row in found["results"]} == {*LINES} - {"draft"}
    assert not any("error" in row for row in found["results"])
    assert [(row["engine"], row["dtype"]) for row in found["results"] if row["line"] == "decode"] == [
        (OURS, "float32"),
        (OURS, "bfloat16"),
        (OURS, "int8"),
    ]
    looked_up = [row["what"] for row in found["results"] if row["line"] == "lookup"]
    assert looked_up == 3 * ["", "looked up"]
    for profile in found["profiles"]:
        assert sum(row["share"] for row in profile["scopes"]) == pytest.approx(1)
        named = {row["scope"] for row in profile["scopes"]}
        of_line = {"decode": "loop/block/mlp", "prefill": "block/mlp", "train": "update"}
        assert {of_line[profile["line"]], "block/attn"} <= named
