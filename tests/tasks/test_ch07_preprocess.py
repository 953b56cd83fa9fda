import pytest
import torch

from tasks.ch07_convolution import preprocess


@pytest.fixture
def images():
    torch.manual_seed(1)
    x = torch.zeros(60, 1, 8, 8, dtype=torch.uint8)
    x[:, :, 2:6, 3:5] = torch.randint(100, 256, (60, 1, 4, 2), dtype=torch.uint8)
    return x


def test_spoilt_images_stay_within_the_bytes_range(images):
    found = preprocess.spoilt(images, reach=1)
    assert tuple(found) == preprocess.KINDS
    assert all(x.shape == images.shape for x in found.values())
    assert all(0 <= float(x.min()) <= float(x.max()) <= 255 for x in found.values())
    assert torch.equal(found["clean"], images.float())
    moved = (found["moved"] != images).flatten(1).any(1)
    assert 0.7 < float(moved.float().mean()) < 1, "one shift in nine is none"
    # What is spoilt is the lit image, moved.
    unmoved = [(found["spoilt"][i] == found["lit"][i]).all() for i in range(60)]
    assert 0 < sum(map(bool, unmoved)) < 20


def test_a_shift_moves_what_is_inside_without_changing_it(images):
    moved = preprocess.spoilt(images, reach=1)["moved"]
    assert torch.equal(moved.flatten(1).sum(1), images.float().flatten(1).sum(1))


def test_each_step_of_the_pipeline_is_in_it_only_when_asked_for(images):
    plain = preprocess.distorted(images, preprocess.Config())
    assert torch.equal(plain, images.float())
    cropped = preprocess.distorted(images, preprocess.Config(crop=True, flip=False, reach=2))
    assert torch.equal(cropped.sum((2, 3)), plain.sum((2, 3)))
    assert not torch.equal(cropped, plain)
    # The bars are at columns 3 and 4: mirrored without a shift they are where they were.
    mirrored = preprocess.distorted(images, preprocess.Config(crop=True, reach=0))
    swapped = (mirrored == plain.flip(3)).flatten(1).all(1)
    kept = (mirrored == plain).flatten(1).all(1)
    assert bool((swapped | kept).all())
    assert 10 < int(swapped.sum()) < 50
    lit = preprocess.distorted(images, preprocess.Config(jitter=True))
    assert not torch.allclose(lit.mean((2, 3)), plain.mean((2, 3)))


def test_the_picture_shows_eight_images_in_four_states(images):
    shown = {k: x[:8] for k, x in preprocess.spoilt(images, 1).items()}
    accuracies = dict(zip(preprocess.KINDS, (0.9, 0.8, 0.7, 0.6), strict=True))
    figure = preprocess.draw_spoilt(shown, accuracies, "a title")
    left, right = figure.subfigs
    assert len(left.axes) == 32
    assert [bar.get_height() for bar in right.axes[0].patches] == [0.9, 0.8, 0.7, 0.6]
    assert preprocess.pipeline(preprocess.Config(whiten=True, jitter=True)) == (
        "trained with whiten, jitter"
    )
