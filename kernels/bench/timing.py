"""Times of several calls, taken in turn so that what disturbs the machine disturbs all of them.

A round times every call once, in a random order; the i-th samples of all calls come from the i-th
round, so that ratios are those of pairs. On a processor a sample is the mean of as many calls as
fill ``SECONDS``, as wall time and as the process's own time. On a GPU there are three: a call with
an L2 cache that was flushed before, a call again, both between CUDA events, and a call within a
replayed CUDA graph, which has no launch overhead.
"""

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

SECONDS = 0.05
# Replays of a graph are as long as this, which is long beside the resolution of an event.
GRAPH_SECONDS = 2e-3
MOST_IN_A_GRAPH = 100
# More than any L2 cache.
FLUSH_BYTES = 256 * 2**20

Calls = Mapping[str, Callable[[], object]]


@dataclass
class Timing:
    """The samples of one call by one clock.

    Attributes:
        timer: ``wall``, ``cpu_time``, ``cuda_events`` or ``graph_replay``.
        cache: ``warm`` or ``cold``.
        samples_s: seconds a call, in measured order.
    """

    timer: str
    cache: str
    samples_s: list[float] = field(default_factory=list)


@dataclass
class Timed:
    """What was measured of one call.

    Attributes:
        timings: by each clock.
        missing: timer -> why it could not be used.
    """

    timings: list[Timing]
    missing: dict[str, str] = field(default_factory=dict)


def make_current(device: str) -> None:
    """Have a GPU be the current one; ``cuda`` names the one that is."""
    index = torch.device(device).index
    if index is not None:
        torch.cuda.set_device(index)


def on_cpu(calls: Calls, rounds: int, seed: int) -> dict[str, Timed]:
    """Time calls on a processor.

    Args:
        calls: name -> what to time; each is called a few times before.
        rounds: how many samples.
        seed: of the order within the rounds.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    timed = {name: Timed([Timing("wall", "warm"), Timing("cpu_time", "warm")]) for name in calls}
    for name in _in_turn(calls, rounds, seed):
        wall, own = time.perf_counter(), time.process_time()
        for _ in range(repeats[name]):
            calls[name]()
        spent = time.perf_counter() - wall, time.process_time() - own
        for timing, seconds in zip(timed[name].timings, spent, strict=True):
            timing.samples_s.append(seconds / repeats[name])
    return timed


def _repeats(call: Callable[[], object]) -> int:
    """How many calls fill a sample, from the second call's time."""
    call()
    begin = time.perf_counter()
    call()
    return max(1, math.ceil(SECONDS / max(time.perf_counter() - begin, 1e-9)))


def _in_turn(calls: Calls, rounds: int, seed: int) -> list[str]:
    """The names of all calls for each round, in a random order."""
    order, chance = [], random.Random(seed)
    for _ in range(rounds):
        names = list(calls)
        chance.shuffle(names)
        order += names
    return order


def on_cuda(calls: Calls, rounds: int, seed: int) -> dict[str, Timed]:
    """Time calls on the current GPU.

    Args:
        calls: name -> what to time; each is called a few times before.
        rounds: how many samples.
        seed: of the order within the rounds.
    """
    for call in calls.values():
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    timed = {name: Timed([]) for name in calls}
    _with_events(calls, rounds, seed, timed)
    _replayed(calls, rounds, seed, timed)
    return timed


def _with_events(calls: Calls, rounds: int, seed: int, timed: dict[str, Timed]) -> None:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    found = {name: (Timing("cuda_events", "cold"), Timing("cuda_events", "warm")) for name in calls}
    for name in _in_turn(calls, rounds, seed):
        cold, warm = found[name]
        flush.zero_()
        cold.samples_s.append(_between_events(calls[name]))
        warm.samples_s.append(_between_events(calls[name]))
    for name, timings in found.items():
        timed[name].timings += timings


def _replayed(calls: Calls, rounds: int, seed: int, timed: dict[str, Timed]) -> None:
    replays: dict[str, Callable[[], object]] = {}
    held: dict[str, int] = {}
    for name, call in calls.items():
        warm = timed[name].timings[1].samples_s
        held[name] = min(MOST_IN_A_GRAPH, max(1, math.ceil(GRAPH_SECONDS / min(warm))))
        try:
            replays[name] = _captured(call, held[name])
        except RuntimeError as error:
            # What synchronises, or looks at values, is not captured.
            timed[name].missing["graph_replay"] = str(error).splitlines()[0][:200]
            torch.cuda.synchronize()
    found = {name: Timing("graph_replay", "warm") for name in replays}
    for replay in replays.values():
        replay()
    for name in _in_turn(replays, rounds, seed):
        found[name].samples_s.append(_between_events(replays[name]) / held[name])
    for name, timing in found.items():
        timed[name].timings.append(timing)


def _between_events(call: Callable[[], object]) -> float:
    """Seconds on the GPU."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _captured(call: Callable[[], object], n: int) -> Callable[[], object]:
    """A CUDA graph of ``n`` calls."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Gradients are computed on the stream that the values were computed on.
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(n):
            call()
    return graph.replay
