import dataclasses

import pytest
import torch

from tasks.ch05_pytorch import tensors_autograd as task

CPU = torch.device("cpu")
SMALL = task.Config(inputs=6, hidden=5, examples=4, backend="aot_eager")


@pytest.mark.parametrize("how", ["eager", "vmap"])
def test_the_listings_give_what_the_notebook_stores(how):
    cfg = dataclasses.replace(SMALL, how=how)
    assert task.differing(task.listed(cfg), task.STORED) == 0
    assert task.listed_gradient(cfg, CPU) == (4, 6, 3)


def test_only_the_comment_beside_the_matrix_differs():
    found = task.listed(SMALL)
    assert task.differing(found, task.COMMENTS) == 1
    assert task.differing(found, {"matrix": task.COMMENTS["matrix"]}) == 1


@pytest.mark.parametrize("wrong", [[[9, 12, 15], [19, 26, 34]], [9, 12, 15], [[9, 12, 15]]])
def test_another_value_or_shape_is_a_mismatch(wrong):
    assert task.differing(task.listed(SMALL), {"matmul": wrong}) == 1


def test_assigning_leaves_the_given_tensor_alone():
    x3 = torch.tensor(task.X3)
    task.operations(torch.tensor(task.X1), torch.tensor(task.X2), x3)
    assert x3.tolist() == task.X3


@pytest.mark.parametrize("how", ["eager", "vmap"])
def test_the_nets_gradients_are_finite_differences(how):
    torch.manual_seed(1)
    cfg = dataclasses.replace(SMALL, how=how)
    model = task.network(cfg).double()
    x_BD, y_B = torch.randn(4, 6).double(), torch.tensor([0, 3, 9, 3])
    exact_P = task.by_hand(model, x_BD, y_B)
    torch.testing.assert_close(task.net_gradient(model, cfg, x_BD, y_B), exact_P)
    first = model[0].weight
    with torch.no_grad():
        ends = []
        for change in (1e-6, -2e-6):
            first[2, 1] += change
            ends.append(float(task.loss(model, x_BD, y_B)))
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float(exact_P[2 * 6 + 1]), abs=1e-8)


def test_compiling_is_one_graph_or_an_error():
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def broken(x):
        torch._dynamo.graph_break()
        return x + 1

    found = torch.compile(task.operations, backend=counted, fullgraph=True)(
        *(torch.tensor(x) for x in (task.X1, task.X2, task.X3))
    )
    assert len(graphs) == 1
    assert task.differing(found, task.STORED) == 0
    with pytest.raises(torch._dynamo.exc.Unsupported):
        task.captured(broken, dataclasses.replace(SMALL, how="compile"))(torch.ones(2))


def test_the_written_out_layer_is_broadcast_and_its_diagonal_is_the_layer():
    torch.manual_seed(2)
    out, layer = task.written_out(task.Config())
    assert (out.shape, layer.shape) == ((10, 10), (10,))
    torch.testing.assert_close(out.diagonal(), layer)
    assert not torch.allclose(out[0], layer)


def test_one_class_and_an_unknown_backend_are_refused():
    with pytest.raises(ValueError, match="field 'classes' takes a whole number ≥ 2"):
        task.TASK.configure("smoke", "eager", overrides={"classes": "1"})
    with pytest.raises(ValueError, match=r"unknown backend 'aot'; did you mean 'aot_eager'"):
        task.TASK.configure("smoke", "compile", overrides={"backend": "aot"})
