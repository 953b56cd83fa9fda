import itertools
import random

import pytest
import torch

from kernels.dnc import Interface, State
from tasks.ch12_memory import addressing
from tasks.models import equations

HALF = 0.5


def config(**changes):
    return addressing.TASK.configure("smoke", overrides=changes)


def test_allocation_takes_the_emptiest_slots_first():
    a = equations.allocation([0.5, 1.0, 0.0, 0.25])
    # Half of what is left is taken by nobody: 1 - prod(u) in all.
    assert a == pytest.approx([0.0, 0.0, 1.0, 0.0], abs=1e-5)
    assert equations.allocation([0.5, 0.5]) == pytest.approx([0.5, 0.25], abs=1e-5)


def test_usage_grows_by_writing_and_falls_by_freeing():
    u = equations.usage([0.5, 0.5, 0.0], [0.5, 0.0, 1.0], [[0.0, 1.0, 0.0]], [1.0])
    assert u == [0.75, 0.0, 1.0]


def test_a_slot_that_is_written_again_loses_its_old_links():
    # Slot 1 was written after slot 0; now slot 0 is written after slot 1.
    L = equations.linked([[0.0, 0.0], [1.0, 0.0]], [0.0, 1.0], [1.0, 0.0])
    assert L == [[0.0, 1.0], [0.0, 0.0]]


def test_the_stages_of_an_ntm_head():
    words = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]
    last, back_none_forward = [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0]
    found = equations.stages(words, last, [1.0, 0.0], 100.0, HALF, back_none_forward, 2.0)
    content, gated, shifted, sharp = found
    assert content == pytest.approx([1, 0, 0, 0], abs=1e-9)
    assert gated == pytest.approx([0.5, 0, 0, 0.5], abs=1e-9)
    assert shifted == pytest.approx([0.5, 0.5, 0, 0], abs=1e-9)
    assert sharp == pytest.approx([0.5, 0.5, 0, 0], abs=1e-9)


def state(**changes):
    like = torch.zeros(1, dtype=torch.float64)
    return addressing.dnc.blank(like, 1, 2, 3, 1)._replace(**changes)


@pytest.mark.parametrize(
    ("part", "value", "violated"),
    [
        ("write_BN", [[0.75, 0.5]], "simplex_violation"),
        ("write_BN", [[-0.25, 0.5]], "simplex_violation"),
        ("usage_BN", [[1.25, 0.0]], "usage_violation"),
        ("link_BNN", [[[0.0, 1.25], [0.0, 0.0]]], "link_violation"),
        ("link_BNN", [[[0.25, 0.0], [0.0, 0.0]]], "diagonal"),
    ],
)
def test_what_must_not_happen_is_noticed(part, value, violated):
    assert not any(v > 0 for v in equations.violations(state()).values())
    found = equations.violations(state(**{part: torch.tensor(value, dtype=torch.float64)}))
    assert found[violated] == 0.25
    assert all(v <= 0 for name, v in found.items() if name != violated)


@pytest.mark.parametrize("machine", ["dnc", "ntm"])
@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_every_entry_and_every_gradient_agree_with_the_loops(machine, impl):
    torch.manual_seed(3)
    cfg = config(machine=machine, impl=impl, slots=4, word=3, read_heads=2, steps=5)
    assert addressing.compared(cfg, torch.device("cpu"))["error"] < 1e-13
    assert addressing.gradient_error(cfg, torch.device("cpu"), steps=2) < 1e-6


def test_one_wrong_entry_is_an_error(monkeypatch):
    def wrong(state, to, cfg):
        words, state = addressing.dnc_by_op(state, to, cfg)
        precedence = state.precedence_BN.clone()
        precedence[0, 1] += 1e-3
        return words, state._replace(precedence_BN=precedence)

    machine = (addressing.random_dnc, wrong, addressing.dnc_by_loops)
    monkeypatch.setitem(addressing.MACHINES, "dnc", machine)
    assert addressing.compared(config(steps=1), torch.device("cpu"))["error"] >= 1e-3


def test_trees_keep_their_form():
    tree = (state(), (torch.zeros(1, 2),))
    lists = addressing.listed(tree)
    assert isinstance(lists[0], State)
    assert lists[0].link_BNN == [[0.0, 0.0], [0.0, 0.0]]
    assert lists[1] == ([0.0, 0.0],)
    assert len(addressing.leaves(tree)) == len(State._fields) + 1


def test_the_queue_reads_what_it_wrote_and_frees_what_it_read():
    random.seed(5)
    torch.manual_seed(5)
    cfg = config(rounds=3)
    found, trace = addressing.queue(cfg, torch.device("cpu"))
    assert found["read_back"] == 1
    assert all(isinstance(to, Interface) for _, to in trace)
    # A word read is freed by the step after, and only then.
    for (before, _), (after, to) in itertools.pairwise(trace):
        slot = int(before.read_BRN[0, 0].argmax())
        freed = float(to.free_gates_BR[0, 0]) > HALF and float(to.write_gate_B1) < HALF
        if freed:
            assert float(before.usage_BN[0, slot]) > 0.99
            assert float(after.usage_BN[0, slot]) < 0.01
    figure = addressing.draw_queue(trace)
    assert figure.axes[0].images[0].get_array().shape[0] == cfg.slots
