"""What a change could slow down: the smallest call of each kind, for ``suite ab``.

Run under plain pytest-benchmark they give figures; the gate compares the same calls between two
revisions. Each takes milliseconds, so that a session of all of them stays under five minutes.
"""

import pytest
import torch

from kernels.bench.measure import timeable
from kernels.bench.providers import CannotRun, providers
from kernels.bench.workload import workloads
from suite import data, record, stats
from suite.plan import expand
from suite.record import Placement
from suite.run import execute, warm_up
from suite.store import Store

# Of one thread: what two share depends on what else the machine does.
ONE = Placement(scheduler="inline", workers=1, cpus=1, gpus=0.0, colocated_runs=0, contended=False)
OPS = ("dnc.step", "ntm.address", "lstm.lstm", "attention.attention", "conv2d.conv2d")


@pytest.mark.parametrize("op", OPS)
def test_kernel(benchmark, op):
    """Values and gradients of an op's smallest case, by its PyTorch implementation."""
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
    warm_up()
    torch.set_num_threads(1)
    [made] = expand(["ch90.linear"], profile="smoke", variants=["quick"], seeds=[0])
    return made


def test_engine(benchmark, spec):
    """One run of a task that does next to nothing: plan, clock, checks, record."""
    benchmark(execute, spec, placement=ONE)


def test_record(benchmark, spec, tmp_path):
    """A record to the store and back."""
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
    y = torch.linspace(-1, 1, 12, dtype=torch.float64).numpy()
    benchmark(stats.hodges_lehmann_interval, y)
