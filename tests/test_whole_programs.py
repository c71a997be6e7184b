"""Programs that are kept whole: a later process has the same results, and neither traces, lowers nor compiles.

A later process is here another `WholePrograms` of the same folder: it knows nothing that is not on disk. (`tests/cli` has
real ones.) Every program that is made is traced, and so one that was not traced was found.

Letters: B rows, T tokens.
"""

import functools
import os
import pickle
import time
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_counter import count_compilations
from decoding.tiny import CONFIG, KEYS, LENGTHS, PARAMS, TOKENS
from jax.experimental.compilation_cache import compilation_cache

from dialogpt_jax import whole_programs
from dialogpt_jax.decoding.generate import Generated, generate, generate_candidates
from dialogpt_jax.decoding.sampling import GREEDY, Sampling

TRACED = "/jax/core/compile/jaxpr_trace_duration"
traced: list[str] = []
jax.monitoring.register_event_duration_secs_listener(lambda event, _, **more: traced.append(event))


@pytest.fixture
def later(tmp_path, monkeypatch):
    """A function that begins a later process, and gives the names of the files that it finds."""
    monkeypatch.setattr(whole_programs, "_kept", None)  # and takes away what a test sets
    folder = tmp_path / "whole"

    def begin() -> list[str]:
        whole_programs.keep_in(folder)
        whole_programs._kept._loading.join()
        traced.clear()
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    return begin


@functools.partial(jax.jit, static_argnums=1)
def program(params, config, x_BT, more):
    """A small one: what it gives tells of each thing that it was called with."""
    return {"sum": params["w"] @ x_BT + len(config), "more": [x.sum() for x in jax.tree.leaves(more)]}


def run(config="abc", width=4, dtype=np.float32, more=()):
    x_BT = np.arange(2 * width, dtype=dtype).reshape(2, width)
    return jax.device_get(whole_programs.call(program, config, {"w": jnp.ones((3, 2))}, x_BT, more))


def assert_equal(one, other) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(x, y)


def reply(sampling=GREEDY, keys=KEYS, params=PARAMS, **more) -> Generated:
    call = generate_candidates if more else generate
    return jax.device_get(call(params, CONFIG, TOKENS, LENGTHS, sampling=sampling, max_new_tokens=6, keys=keys, **more))


@pytest.mark.parametrize("how", [{}, {"candidates": 3}], ids=["one", "candidates"])
def test_a_later_process_has_the_same_reply_and_finds_its_program_on_disk(later, how):
    drawn = Sampling(temperature=0.9, top_k=20, no_repeat_ngram=3)
    wanted = reply(drawn, **how)
    assert later() == []
    assert_equal(reply(drawn, **how), wanted)
    assert TRACED in traced
    [name] = later()
    with count_compilations() as programs:
        assert_equal(reply(drawn, **how), wanted)
    assert programs == []
    assert TRACED not in traced
    assert later() == [name]


@pytest.mark.parametrize(
    "change",
    [{"config": "other"}, {"width": 5}, {"dtype": np.int32}, {"more": (jnp.ones(2),)}, {"more": {"a": jnp.ones(2)}}],
    ids=str,
)
def test_what_makes_another_program_has_another_name(later, change):
    later()
    run()
    [name] = later()
    assert_equal(run(**change), jax.device_get(run(**change)))
    assert TRACED in traced
    assert len(set(later()) - {name}) == 1
    assert_equal(run(), run())
    assert TRACED not in traced


def test_the_same_arrays_in_another_tree_are_another_program(later):
    later()
    run(more=(jnp.ones(2),))
    run(more={"a": jnp.ones(2)})
    assert len(later()) == 2


def test_numbers_in_arrays_are_no_other_program(later):
    later()
    one = run(more=(jnp.ones(2),))
    later()
    other = run(more=(jnp.zeros(2),))
    assert TRACED not in traced
    assert (one["more"], other["more"]) == ([2.0], [0.0])


@pytest.mark.parametrize(
    "where",
    ["a setting of jax", "a variable", "many flags", "a file of flags", "a file of the package", "the processor"],
)
def test_where_programs_are_other_ones_none_is_found(later, where, monkeypatch, tmp_path):
    """…although they are called alike."""
    flags = tmp_path / "flags"
    if where == "a file of flags":
        flags.write_text("--xla_cpu_enable_fast_math=false")
        monkeypatch.setenv("XLA_FLAGS", str(flags))
    later()
    run()
    [name] = later()
    usual = jax.config.values["jax_default_matmul_precision"]
    if where == "a setting of jax":
        jax.config.update("jax_default_matmul_precision", "highest")
    elif where == "a variable":
        monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " --xla_cpu_enable_fast_math=false")
    elif where == "many flags":  # longer than a file's name may be
        monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " --xla_cpu_enable_fast_math=false" * 200)
    elif where == "a file of flags":
        flags.write_text("--xla_cpu_enable_fast_math=true")
    elif where == "the processor":
        monkeypatch.setattr(whole_programs, "_processor", lambda: "another")
    else:
        sources = whole_programs._sources

        def edited(folder):
            for path, status in sources(folder):
                yield path, os.stat_result([*status[:6], status.st_size + path.endswith("cache.py"), *status[7:]])

        monkeypatch.setattr(whole_programs, "_sources", edited)
    whole_programs._machine_and_versions.cache_clear()
    try:
        later()
        run()
        assert TRACED in traced
        [other] = set(later()) - {name}
        assert other.partition("-")[2] == name.partition("-")[2]
    finally:
        jax.config.update("jax_default_matmul_precision", usual)
        whole_programs._machine_and_versions.cache_clear()


def test_a_damaged_file_is_made_anew(later, tmp_path):
    later()
    wanted = run()
    [name] = later()
    file = tmp_path / "whole" / name
    whole = file.read_bytes()
    damaged = [b"", b"\x00" * 4, whole[: len(whole) // 2]]  # the second is nothing, and its check sum
    for place in range(4, len(whole), len(whole) // 9):
        damaged.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for data in damaged:
        file.write_bytes(data)
        assert later() == []
    assert_equal(run(), wanted)
    assert later() == [name]
    assert_equal(run(), wanted)
    assert TRACED not in traced


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owners here")
def test_a_file_of_another_user_is_not_read(later, monkeypatch):
    later()
    wanted = run()
    [name] = later()
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    assert later() == [name]
    assert_equal(run(), wanted)
    assert TRACED in traced


def test_a_program_that_cannot_run_here_goes_and_there_is_a_result_all_the_same(later):
    later()
    wanted = run()
    [name] = later()

    def broken(*leaves):
        raise jax.errors.JaxRuntimeError("NOT_FOUND: function fusion.2 not found")

    whole_programs._kept._known[name] = broken, whole_programs._kept._known[name][1]
    assert_equal(run(), wanted)
    assert later() == []


@pytest.mark.parametrize("results", [b"no tree", pickle.dumps(jax.tree.structure([0] * 7))], ids=["none", "another"])
def test_results_that_do_not_fit_are_made_anew(later, tmp_path, results):
    later()
    wanted = run()
    [name] = later()
    file = tmp_path / "whole" / name
    body = pickle.dumps((*pickle.loads(file.read_bytes()[4:])[:3], results))
    file.write_bytes(zlib.crc32(body).to_bytes(4, "big") + body)
    later()
    assert_equal(run(), wanted)
    assert later() == []


@pytest.mark.parametrize(
    "way", ["a file for the folder", "no folder can be made", "a folder for the file", "a pipe for the file"]
)
def test_where_nothing_can_be_kept_jax_is_left_to_its_own(later, tmp_path, way, monkeypatch):
    """…and to its own cache: what is compiled without that would be compiled at every start."""
    folder = tmp_path / "whole"
    wanted = run()
    if way == "a file for the folder":
        folder.write_text("in the way")
    elif way == "no folder can be made":
        (tmp_path / "file").write_text("in the way")
        folder = tmp_path / "file" / "whole"
    else:
        later()
        run()
        [name] = later()
        (folder / name).unlink()
        if way == "a pipe for the file":
            if not hasattr(os, "mkfifo"):
                pytest.skip("there are no such pipes here")
            os.mkfifo(folder / name)
        else:
            (folder / name).mkdir()
    monkeypatch.setattr(whole_programs.WholePrograms, "_make", None)  # must not be called
    whole_programs.keep_in(folder)
    assert_equal(run(), wanted)


def test_what_others_left_in_the_folder_or_the_package_is_no_trouble(later, tmp_path, monkeypatch):
    folder = tmp_path / "whole"
    folder.mkdir()
    for name, age in ((".x.1.part", 2 * whole_programs.LONG_AGO), (".y.2.part", 0)):
        (folder / name).write_text("begun")
        os.utime(folder / name, (time.time() - age,) * 2)
    (folder / "link").symlink_to("nowhere")
    package = tmp_path / "package"
    package.mkdir()
    (package / ".#cache.py").symlink_to("me@host.1:2")  # as an editor makes it
    monkeypatch.setattr(whole_programs, "__file__", str(package / "whole_programs.py"))
    whole_programs._machine_and_versions.cache_clear()
    later()
    wanted = run()
    [part, link, name] = sorted(later(), key=len)
    assert (part, link) in {(".y.2.part", "link"), ("link", ".y.2.part")}
    assert_equal(run(), wanted)
    assert TRACED not in traced
    monkeypatch.setattr(whole_programs, "__file__", str(tmp_path / "package.zip" / "whole_programs.py"))  # no folder
    whole_programs._machine_and_versions.cache_clear()
    later()
    assert_equal(run(), wanted)
    monkeypatch.undo()
    whole_programs._machine_and_versions.cache_clear()


def test_jax_keeps_what_is_compiled_afterwards(later, tmp_path):
    """Whether it has a cache jax asks once, which must not be while it is off."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path / "xla"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    usual = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        compilation_cache.reset_cache()  # as in a new process
        later()
        run()
        assert not list((tmp_path / "xla").glob("*-cache"))
        jax.jit(lambda x: x * 3.14159)(jnp.ones(3))
        assert list((tmp_path / "xla").glob("*-cache"))
    finally:
        for name, value in usual.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_the_programs_used_longest_ago_go(later, monkeypatch):
    monkeypatch.setattr(whole_programs, "MOST_FILES", 2)
    later()
    names = []
    for width in (4, 5, 6):
        run(width=width)
        names += set(later()) - set(names)
        if width == 5:
            run(width=4)  # the second is then the one used longest ago
            later()
    assert set(later()) == {names[0], names[2]}


def test_the_program_used_last_is_there_before_it_is_asked_for(later):
    later()
    run(width=4)
    run(width=5)
    later()
    assert len(whole_programs._kept._known) == 1
    [(name, _)] = whole_programs._kept._known.items()
    run(width=5)
    assert list(whole_programs._kept._known) == [name]


def test_what_is_traced_or_elsewhere_or_the_callers_own_is_left_to_jax(later, monkeypatch):
    monkeypatch.setattr(whole_programs.WholePrograms, "_make", None)  # must not be called
    later()
    reply(Sampling(temperature=0.0, processors=(lambda logits_MV, state: logits_MV,)))
    jax.jit(lambda keys: generate(PARAMS, CONFIG, TOKENS, LENGTHS, sampling=GREEDY, max_new_tokens=6, keys=keys))(KEYS)
    second = jax.devices()[1]
    reply(keys=jax.device_put(KEYS, second), params=jax.device_put(PARAMS, second))
    assert later() == []
