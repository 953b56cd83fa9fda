"""A whole sequence as a CUDA graph: the module's own values and gradients, replay after replay."""

import pytest
import torch
from torch import nn

from kernels import dispatch, dnc
from kernels.dnc import cases

CASE = cases.Case("captured", 3, 17, 8, 2)


class Net(nn.Module):
    """x_TBX to the words read, steered by parameters and by what was read."""

    def __init__(self, impl):
        super().__init__()
        self.order = nn.ParameterList(cases.interface(CASE, device="cuda"))
        self.into = nn.Linear(1, CASE.W, device="cuda")
        self.impl = impl

    def control(self, x, words, hidden):
        to = dnc.Interface(*self.order)
        vector = to.write_vector_BW + self.into(x) + words.sum(1)
        return to._replace(write_vector_BW=vector), vector, None

    def forward(self, x):
        start = dnc.start(x, CASE.B, CASE.N, CASE.W, CASE.R)
        return dnc.sequence(self.control, x, start, impl=self.impl)[:2]


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_replays_are_what_the_module_gives(impl):
    torch.manual_seed(1)
    net = Net(impl)
    graph = dnc.Captured(net, torch.zeros(5, CASE.B, 1, device="cuda"))
    for _ in range(3):
        x = torch.randn(5, CASE.B, 1, device="cuda")
        results = []
        for run in (graph, net):
            net.zero_grad()
            for _ in range(2):
                features, words = run(x)
                (features.square().sum() + words.square().sum()).backward()
            results.append([features, words, *(p.grad.clone() for p in net.parameters())])
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


# At the end, so that what cannot be collected is found everywhere; for the whole file, because
# without a GPU there would be a thousand skipped tests to hand out.
if not torch.cuda.is_available() or dispatch.INTERPRETED:
    pytest.skip("needs a CUDA GPU and FDL_GPU_TESTS=1", allow_module_level=True)
