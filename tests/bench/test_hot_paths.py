"""What a change could slow down: the smallest call of each kind, for ``suite ab``.

Run under plain pytest-benchmark they give figures; the gate compares the same calls between two
revisions. Each takes milliseconds, so that a session of all of them takes about five minutes.
"""

import numpy as np
import pytest

from suite import data, record, stats
from suite.plan import expand
from suite.record import Placement
from suite.store import Store

# PyTorch is imported by those that need it: a session starts many processes, and what is imported
# here costs each of them seconds.

# Of one thread: what two share depends on what else the machine does.
ONE = Placement(scheduler="inline", workers=1, cpus=1, gpus=0.0, colocated_runs=0, contended=False)
OPS = ("dnc.step", "ntm.address", "lstm.lstm", "attention.attention", "conv2d.conv2d")


@pytest.mark.parametrize("op", OPS)
def test_kernel(benchmark, op):
    """Values and gradients of an op's smallest case, by its PyTorch implementation."""
    import torch

    from kernels.bench.measure import timeable
    from kernels.bench.providers import CannotRun, providers
    from kernels.bench.workload import workloads

    chosen = next(w for w in workloads("cpu", modes=("full",)) if w.op == op)
    w = chosen.smaller() or chosen
    torch.set_num_threads(1)
    try:
        call = timeable(w, providers(op)["torch"].build(w))
    except CannotRun as error:
        pytest.skip(str(error))
    benchmark(call)


@pytest.fixture
def spec():
    import torch

    from suite.run import warm_up

    warm_up()
    torch.set_num_threads(1)
    [made] = expand(["ch90.linear"], profile="smoke", variants=["quick"], seeds=[0])
    return made


def test_engine(benchmark, spec):
    """One run of a task that does next to nothing: plan, clock, checks, record."""
    from suite.run import execute

    benchmark(execute, spec, placement=ONE)


def test_record(benchmark, spec, tmp_path):
    """A record to the store and back."""
    from suite.run import execute

    made, store = execute(spec, placement=ONE), Store(str(tmp_path))

    def there_and_back():
        store.put(made)
        return record.parse(made.to_json())

    assert benchmark(there_and_back) == made


def test_digits(benchmark):
    """The embedded images, as a task asks for them."""
    benchmark(data.load, "digits")


def test_verdict_statistics(benchmark):
    """An exact interval of twelve pairs."""
    y = np.linspace(-1, 1, 12)
    benchmark(stats.hodges_lehmann_interval, y)
