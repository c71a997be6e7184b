"""Strict JAX for every test: silent broadcasting is an error, warnings are errors, and the CPU shows eight devices."""

import os

# Eight devices that share two busy cores may wait long for one another: XLA would abort Python after 40 seconds. XLA's
# pool has a thread a device (or NPROC, if that is more); a collective needs one for each device at the same time, and a
# thread that does something else meanwhile would stop all for ever: so there are more.
os.environ.setdefault("NPROC", "24")
# LLVM's optimiser makes tiny programs no faster and is most of their compile time: it is off, except where
# DIALOGPT_TESTS_OPTIMISED asks for the programs that users run.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=600"
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    * (not os.environ.get("DIALOGPT_TESTS_OPTIMISED"))
)
# A command in a test's own process would have all later programs written to disk.
os.environ["DIALOGPT_NO_COMPILATION_CACHE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the real Hub; those of hub.py start a server of their own

import gc
import signal
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background job has it: some tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the checkout; a test that needs it is skipped where it is not."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder of reference data beside the checkout (GPT-2's vocabulary, the 6k replies)")
    return SHARED


MOST_MAPS = 25_000  # of the 65,530 that Linux gives a process: every compiled program takes some, and XLA dies without


@pytest.fixture(autouse=True, scope="module")
def few_compiled_programs():
    """Lets the programs of the files before go, where they have become many."""
    yield
    maps = Path("/proc/self/maps")
    if maps.is_file() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """With DIALOGPT_TESTS_NO_SKIP set, a test that skips has failed: what must be seen was not seen.

    Tests of llama.cpp may: its Python package is built from C++, which takes half an hour where it can be built at all.
    """
    report = (yield).get_result()
    if report.skipped and not item.get_closest_marker("llama_cpp") and os.environ.get("DIALOGPT_TESTS_NO_SKIP"):
        report.outcome = "failed"
        report.longrepr = f"skipped, where a skip is a failure: {report.longrepr}"
