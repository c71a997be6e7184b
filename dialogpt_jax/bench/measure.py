"""Takes turns: cases and workers in, the seconds of every call of every contender out.

The contenders of a case run A B C, A B C, …, so that what disturbs the machine disturbs all of them. Between two turns
there is a short pause: the threads of OpenMP, which some engines have, spin for 0.2 s after their work.
"""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dialogpt_jax.bench.cases import Case, Contender
from dialogpt_jax.bench.processes import EngineError, Worker

PAUSE = 0.25  # KMP_BLOCKTIME is 200 ms
TURN_SECONDS, MOST_CALLS = 0.3, 20  # a turn has so many calls as fill this time, for one of a millisecond says little


@dataclasses.dataclass
class Result:
    """One contender of one case.

    Attributes:
      seconds: of each call, in the order in which they were made.
      limit: the least seconds that the machine's bandwidth and flop/s allow; `None` where nobody knows.
      amount: tokens or contexts of a call.
      utilisation: of a training step, its operations by the device's published peak in bfloat16; `None` where that is
        not known.
      error: why there are no seconds, else "".
    """

    case: Case
    contender: Contender
    seconds: list[float] = dataclasses.field(default_factory=list)
    limit: float | None = None
    amount: float = 1
    utilisation: float | None = None
    error: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else float("nan")

    @property
    def figure(self) -> float:
        """The median in the case's unit."""
        if self.case.unit.endswith("/s"):
            return self.amount / self.median
        return self.median * (1e3 if self.case.unit == "ms" else 1)

    @property
    def a_token(self) -> float:
        """Seconds of one of what a call makes."""
        return self.median / self.amount


def ratio(ours: Result, peer: Result) -> float:
    """How many times as fast ours is, by the medians."""
    return peer.median / ours.median


def measure_case(
    case: Case,
    contenders: Sequence[Contender],
    workers: Mapping[str, Worker],
    *,
    words: Mapping[str, Any],
    repeats: int,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """The results of a case, one a contender.

    Args:
      workers: by engine; one that has ended makes an error of each of its contenders.
      words: what `make` of every engine takes beside dtype, case and what.
      repeats: turns of each.
      tell: is told how far it is.
    """
    results = [Result(case, contender) for contender in contenders]
    calls = [0] * len(contenders)
    for key, result in enumerate(results):
        tell(f"{case.describe()}: {result.contender.describe()}, loading")
        own = {"dtype": result.contender.dtype, "what": result.contender.what, "case": dataclasses.asdict(case)}
        with _noting(result):
            once = workers[result.contender.engine].ask("make", key=key, words={**words, **own})["seconds"]
            calls[key] = max(1, min(MOST_CALLS, int(TURN_SECONDS / max(once, 1e-9))))
    for turn in range(repeats):
        for key, result in enumerate(results):
            if result.error:
                continue
            tell(f"{case.describe()}: {result.contender.describe()}, turn {turn + 1} of {repeats}")
            time.sleep(PAUSE)
            with _noting(result):
                worker = workers[result.contender.engine]
                result.seconds += worker.ask("time", key=key, calls=calls[key])["seconds"]
    for engine in {result.contender.engine for result in results}:
        with _noting(Result(case, Contender(engine, ""))):
            workers[engine].ask("drop")
    return results


@contextlib.contextmanager
def _noting(result: Result) -> Iterator[None]:
    """An engine's error becomes the result's, and its seconds go."""
    try:
        yield
    except EngineError as error:
        result.error, result.seconds = str(error), []
