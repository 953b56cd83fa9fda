"""Find the launch parameters of an op on this GPU, one after another from the heuristic's.

Each parameter of each kernel is doubled and halved while that makes the whole call faster; the
candidate and the best so far are timed in turn. A candidate that does not compile, does not fit or
computes something else is passed over. What is found goes to ``kernels/configs``.
"""

import functools
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kernels import tuning
from kernels.bench.accuracy import Gate
from kernels.bench.measure import Timer, story, timeable, told, usable
from kernels.bench.providers import CannotRun, Provider, providers
from kernels.bench.timing import on_cuda
from kernels.bench.workload import Workload, workloads

ROUNDS = 9
# A smaller gain than this is taken for noise.
GAIN = 0.03
MOST = {"num_warps": 16, "num_stages": 5}
LEAST = {"num_warps": 1, "num_stages": 1}
BLOCKS = (16, 256)

# Of a candidate and of the best so far; or why the candidate is no good.
Pair = tuple[float, float] | str
Seconds = Callable[[Workload, str, dict[str, int], dict[str, int]], Pair]


@dataclass(frozen=True)
class Found:
    """The parameters of a kernel for some sizes.

    Attributes:
        asked: what the launcher asked for.
        config: the fastest parameters.
        gain: how many times as long the whole call took with the heuristic's.
    """

    asked: tuning.Asked
    config: dict[str, int]
    gain: float

    def entry(self) -> dict[str, Any]:
        """As the file holds it."""
        return {
            "kernel": self.asked.kernel,
            "dtype": self.asked.dtype,
            "sizes": self.asked.sizes,
            "config": self.config,
            "gain": round(self.gain, 3),
        }


def tune(
    w: Workload, seconds: Seconds | None = None, stop: Callable[[], bool] = lambda: False
) -> list[Found]:
    """Tune every kernel that a workload launches.

    Args:
        w: the workload, on a GPU.
        seconds: times a kernel's candidate and its best so far, or says why the candidate is no
            good; on the GPU when None.
        stop: whether to end after the candidate at hand.

    Raises:
        CannotRun: Triton does not take the workload.
        Exception: whatever a launch with the heuristic's parameters dies of.
    """
    timed, found = seconds or Trials().seconds, []
    for asked in launched(w):
        best, gain = _climbed(asked.default, functools.partial(timed, w, asked.kernel), stop)
        if best != asked.default:
            found.append(Found(asked, best, gain))
    return found


def _climbed(
    default: dict[str, int],
    seconds: Callable[[dict[str, int], dict[str, int]], Pair],
    stop: Callable[[], bool],
) -> tuple[dict[str, int], float]:
    """The best parameters, and how many times as long the call takes with the first ones."""
    best, gain = dict(default), 1.0
    for name in default:
        for step in (_larger, _smaller):
            begun = best[name]
            while not stop() and (value := step(name, best[name])) is not None:
                pair = seconds({**best, name: value}, best)
                if isinstance(pair, str) or pair[0] > pair[1] * (1 - GAIN):
                    break
                best, gain = {**best, name: value}, gain * pair[1] / pair[0]
            if best[name] != begun:
                break
    return best, gain


def tried_first(w: Workload) -> list[tuple[Workload, str, dict[str, int]]]:
    """The candidates that a search begins with: each parameter of each kernel a step off."""
    found = []
    for asked in launched(w):
        for name, value in asked.default.items():
            for step in (_larger, _smaller):
                if (other := step(name, value)) is not None:
                    found.append((w, asked.kernel, {**asked.default, name: other}))
    return found


def launch(w: Workload, kernel: str, config: dict[str, int]) -> None:
    """Call a workload once with a kernel's candidate, so that it is compiled."""
    _within(w, providers(w.op)["triton"], kernel, config)()


def launched(w: Workload) -> list[tuning.Asked]:
    """What the launchers of a workload ask for."""
    call = timeable(w, providers(w.op)["triton"].build(w))
    with tuning.observed() as asked:
        call()
    return list(asked.values())


def _larger(name: str, value: int) -> int | None:
    more = value + 1 if name == "num_stages" else 2 * value
    return more if more <= MOST.get(name, BLOCKS[1]) else None


def _smaller(name: str, value: int) -> int | None:
    less = value - 1 if name == "num_stages" else value // 2
    return less if less >= LEAST.get(name, BLOCKS[0]) else None


class Trials:
    """Times candidates on a GPU.

    Args:
        timer: what times calls in turn.
    """

    def __init__(self, timer: Timer = on_cuda) -> None:
        self.timer = timer
        self.gates: dict[Workload, Gate] = {}

    def seconds(
        self, w: Workload, kernel: str, candidate: dict[str, int], best: dict[str, int]
    ) -> Pair:
        """Medians of the call with the candidate and with the best so far.

        Raises:
            CannotRun: Triton does not take the workload.
            Exception: what leaves this process without its GPU.
        """
        known = providers(w.op)
        gate = self.gates.setdefault(w, Gate(known["reference"]))
        try:
            with tuning.trial(kernel, candidate):
                wrong = [story(a) for a in gate.check(w, known["triton"]) if not a.ok]
            if wrong:
                return "; ".join(wrong)
            calls = {
                "candidate": _within(w, known["triton"], kernel, candidate),
                "best": _within(w, known["triton"], kernel, best),
            }
            timed = self.timer(calls, ROUNDS, 0)
        except CannotRun:
            raise
        except Exception as error:
            # Triton has many ways to say that a candidate does not fit; all mean: not this one.
            if not usable(w.device):
                raise
            return told(error)
        new, old = (_median(timed[name].timings[-1].samples_s) for name in ("candidate", "best"))
        return new, old


def _median(samples: list[float]) -> float:
    return float(statistics.median(samples))


def _within(w: Workload, triton: Provider, kernel: str, config: dict[str, int]) -> Any:
    call = timeable(w, triton.build(w))

    def run() -> object:
        with tuning.trial(kernel, config):
            return call()

    return run


def tunable(device: str, ops: tuple[str, ...]) -> list[Workload]:
    """The workloads whose kernels are tuned: every case of the ops, forward and backward."""
    return [w for w in workloads(device, modes=("full",)) if w.op in ops and not w.ragged]


def write(found: list[Found], device_name: str) -> list[Path]:
    """Add what was found to the files of a device; see ``write_entries``."""
    return write_entries([f.entry() for f in found], device_name)


def write_entries(entries: list[dict[str, Any]], device_name: str) -> list[Path]:
    """Add entries to the files of a device; those for the same sizes are replaced.

    Returns:
        The files.
    """
    written = []
    for op in sorted({e["kernel"].partition(".")[0] for e in entries}):
        path = tuning.path(f"{op}.", tuning.device_file(device_name))
        new = {_key(e): e for e in entries if e["kernel"].partition(".")[0] == op}
        kept = [e for e in _stored(path) if _key(e) not in new]
        made = sorted([*kept, *new.values()], key=lambda e: str(_key(e)))
        content = {"device": device_name, "torch": torch.__version__, "entries": made}
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        draft.replace(path)
        written.append(path)
    tuning.forget()
    return written


def _stored(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text())["entries"]) if path.exists() else []


def _key(entry: dict[str, Any]) -> tuple[Any, ...]:
    return entry["kernel"], entry["dtype"], tuple(sorted(entry["sizes"].items()))
