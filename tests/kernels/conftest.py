import pytest
import torch


@pytest.fixture(autouse=True)
def _new_memory_is_poisoned(monkeypatch):
    """Fill what ``empty`` returns with NaN, so that a kernel cannot leave an element out."""

    def poisoned(make):
        def made(*args, **kw):
            tensor = make(*args, **kw)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return made

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
