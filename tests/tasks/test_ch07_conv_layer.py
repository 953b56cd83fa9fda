import pytest
import torch

from suite.plan import expand
from suite.run import execute
from tasks.ch07_convolution import conv_layer as task


def operands(g, seed=0):
    torch.manual_seed(seed)
    sizes = (g.N, g.C, g.H, g.W), (g.K, g.C, g.e, g.e), (g.K,)
    return [torch.randn(size, dtype=torch.float64) for size in sizes]


@pytest.mark.parametrize("name", ["im2col", "torch", "naive"])
@pytest.mark.parametrize(("e", "s", "p"), [(1, 1, 0), (3, 1, 1), (2, 2, 0), (3, 2, 2), (5, 3, 2)])
def test_every_method_is_the_formula(name, e, s, p):
    g = task.Geometry(N=2, C=2, H=7, W=6, K=3, e=e, s=s, p=p)
    x, w, b = operands(g)
    padded = torch.nn.functional.pad(x, (p,) * 4)
    y = task.METHODS[name](x, w, b, g)
    P, Q = task.output_size(7, g), task.output_size(6, g)
    assert y.shape == (2, 3, P, Q)
    for i, j in ((0, 0), (P - 1, Q - 1), (P // 2, 0)):
        window = padded[:, :, i * s : i * s + e, j * s : j * s + e]
        expected = torch.stack([(window * w[k]).sum((1, 2, 3)) + b[k] for k in range(3)], 1)
        torch.testing.assert_close(y[:, :, i, j], expected)


def test_gradients_agree_with_finite_differences():
    g = task.Geometry(N=1, C=2, H=4, W=3, K=2, e=2, s=2, p=1)
    given = [t.requires_grad_() for t in operands(g)]
    for compute in task.METHODS.values():
        assert torch.autograd.gradcheck(lambda *t, compute=compute: compute(*t, g), given)


def test_the_listings_layer_and_its_columns():
    g = task.listing()
    assert (task.output_size(g.H, g), task.output_size(g.W, g)) == (15, 15)
    assert task.copies(g) == 15 * 15 * 3 * 25 / (3 * 32 * 32)
    columns = task.columns(torch.arange(3.0 * 32 * 32).view(1, 3, 32, 32), g)
    assert columns.shape == (1, 75, 225)
    # The window at row 1, column 2 starts at pixel (2 - 1, 4 - 1) of the image.
    assert columns[0, 0, 15 + 2] == 1 * 32 + 3


def test_a_wrong_method_agrees_on_nothing():
    """Filters turned upside down are a convolution in the mathematical sense, not the layer's."""
    g = task.listing(images=1, side=9)

    def flipped(x, w, b, g):
        return task.vendor(x, w.flip(2, 3), b, g)

    assert max(task.errors(flipped, task.naive, g, torch.device("cpu"))) > 0.1

    def shorter(x, w, b, g):
        return task.vendor(x, w, b, g)[..., 1:]

    assert task.errors(shorter, task.naive, g, torch.device("cpu")) is None


def test_geometries_fit_and_differ():
    torch.manual_seed(0)
    cfg = task.Config(images=2, channels=3, filters=3, side=6)
    drawn = [task.drawn(cfg) for _ in range(200)]
    assert all(g.e <= min(g.H, g.W) + 2 * g.p for g in drawn)
    assert len(set(drawn)) > 150
    assert {(g.e, g.s, g.p) for g in drawn} > {(5, 3, 2), (1, 1, 0)}


def test_the_op_agrees_in_every_implementation():
    """With the kernel interpreted, and the record says what ran."""
    for impl in ("torch", "reference", "triton"):
        (spec,) = expand(
            ["ch07.conv_layer"],
            profile="smoke",
            variants=["kernel"],
            impls=[impl],
            overrides={"shapes": 1, "rows": 1, "side": 4, "images": 1},
        )
        record = execute(spec, resume=False)
        assert record.kernels.dispatched["conv2d.conv2d"].keys() == {impl}
        assert record.train.final["agreeing"].value == 2
