import pytest
import torch

from tasks.ch07_convolution import other_domains as task


def config(**given):
    return task.Config(**({"length": 64, "motif": 16} | given))


@pytest.mark.parametrize("half", [0, 1])
def test_a_motif_lies_wholly_in_its_half(half):
    torch.manual_seed(0)
    x, y = task.drawn(200, half, config(noise=0.0))
    assert x.shape == (200, 1, 64)
    other = x[:, 0, 32:] if half == 0 else x[:, 0, :32]
    assert not other.any()
    assert x[:, 0].any(1).all()
    assert set(y.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("half", [0, 1])
def test_at_least_five_letters_of_a_word_stand_in_its_half(half):
    torch.manual_seed(1)
    x, y = task.drawn(200, half, config(domain="text"))
    assert (x.sum(1) == 1).all()
    texts = ["".join(task.LETTERS[c] for c in row) for row in x.argmax(1).tolist()]
    whole = 0
    for text, k in zip(texts, y.tolist(), strict=True):
        part, word = text[32 * half :][:32], task.WORDS[k]
        matches = [sum(a == b for a, b in zip(part[i:], word, strict=False)) for i in range(32 - 5)]
        assert max(matches) >= 5
        whole += max(matches) == 6
    assert 70 < whole < 130


def test_words_are_orders_of_the_same_letters():
    assert len({"".join(sorted(word)) for word in task.WORDS}) == 1
    assert len(set(task.WORDS)) == len(task.WORDS) == 4


def test_the_convolutional_net_takes_no_notice_of_the_place():
    torch.manual_seed(2)
    model = task.network(1, config())
    x = torch.zeros(1, 1, 64)
    x[0, 0, 15:30] = torch.randn(15)
    torch.testing.assert_close(model(x), model(x.roll(20, 2)))
    mlp = task.network(1, config(net="mlp"))
    assert not torch.allclose(mlp(x), mlp(x.roll(20, 2)), atol=1e-3)
    for domain_channels in (1, len(task.LETTERS)):
        counts = [
            sum(p.numel() for p in task.network(domain_channels, task.Config(net=n)).parameters())
            for n in ("conv", "mlp")
        ]
        assert counts[0] < counts[1]


def test_saliency_is_the_gradient_of_the_true_logit():
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 4))
    x, y = torch.randn(5, 2, 3), torch.tensor([0, 1, 2, 3, 0])
    expected = model[1].weight[y].view(5, 2, 3).norm(dim=1)
    torch.testing.assert_close(task.saliency(model, x, y), expected)


def test_what_is_unknown_is_named():
    with pytest.raises(ValueError, match=r"unknown domain 'serie'.*series"):
        task.drawn(3, 0, config(domain="serie"))
    with pytest.raises(ValueError, match=r"unknown net 'cnn'.*conv"):
        task.network(1, config(net="cnn"))
