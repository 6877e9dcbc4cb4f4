"""Training batches: every sample once an epoch, the same again from any step, images moved and mirrored."""

import pytest
import torch

from autocompress.data import from_tensors
from autocompress.data.training import Blend, TrainingBatches, trained_on

_COUNT = 50


def numbered(*shape, count=_COUNT):
    """Every sample holds its number everywhere, and has it as its label."""
    number = torch.arange(count)
    inputs = number.float().view(-1, *[1] * len(shape)).expand(count, *shape).clone() + 1
    return from_tensors((inputs, number), None, search_samples=12, calibration_samples=10)


def walk(batches, start, stop):
    return list(batches.steps(start, stop))


def numbers(steps):
    return [label for _, labels in steps for label in labels.tolist()]


@pytest.mark.parametrize("batch_size", [1, 7, 19, 38, 100])
def test_every_sample_of_an_epoch_exactly_once_and_never_a_search_sample(batch_size):
    data = numbered(3)
    batches = TrainingBatches(data, trained_on(data), batch_size, "none", seed=1)
    count = batches.steps_per_epoch
    assert count == {1: 38, 7: 6, 19: 2, 38: 1, 100: 1}[batch_size]
    steps = walk(batches, 0, 2 * count)
    epochs = numbers(steps[:count]), numbers(steps[count:])
    expected = sorted(set(range(_COUNT)) - set(data.search_indices))
    assert sorted(epochs[0]) == sorted(epochs[1]) == expected == trained_on(data)
    assert epochs[0] != epochs[1] != expected
    sizes = [len(inputs) for inputs, _ in steps[:count]]
    assert sizes == [min(batch_size, 38 - done) for done in range(0, 38, batch_size)]
    for inputs, labels in steps:
        assert torch.equal(inputs[:, 0], labels.float() + 1)


def test_only_the_indices_given():
    data = numbered(3)
    batches = TrainingBatches(data, data.calibration_indices, 4, "none")
    assert sorted(numbers(walk(batches, 0, 3))) == sorted(data.calibration_indices)


@pytest.mark.parametrize("augmentation", ["none", "shift", "shift+flip"])
def test_a_walk_goes_on_where_another_stopped(augmentation):
    data = numbered(1, 8, 8)
    data.train.load([0])
    batches = TrainingBatches(data, trained_on(data), 15, augmentation, seed=3)
    whole, parts = walk(batches, 0, 8), [*walk(batches, 0, 2), *walk(batches, 2, 5), *walk(batches, 5, 8)]
    assert len(parts) == 8
    for (inputs, labels), (others, other_labels) in zip(whole, parts, strict=True):
        assert torch.equal(inputs, others)
        assert torch.equal(labels, other_labels)


def test_nothing_to_do():
    data = numbered(3)
    assert walk(TrainingBatches(data, trained_on(data), 4), 5, 5) == []


def test_seeds_give_other_orders_and_other_shifts():
    data = numbered(1, 8, 8)
    one, same, other = (TrainingBatches(data, trained_on(data), 38, "shift", seed) for seed in (0, 0, 1))
    (a, b, c) = (walk(each, 0, 1)[0] for each in (one, same, other))
    assert torch.equal(a[0], b[0])
    assert a[1].tolist() != c[1].tolist()
    by_number = [inputs[labels.argsort()] for inputs, labels in (a, c)]
    assert not torch.equal(*by_number)


def test_images_move_by_up_to_an_eighth_and_zeros_move_in():
    """16 high, 8 wide: up to 2 rows and 1 column. All ones times the sample's number, so zeros show the offset."""
    data = numbered(2, 16, 8, count=400)
    batches = TrainingBatches(data, trained_on(data), 388, "shift", seed=5)
    ((images, labels),) = walk(batches, 0, 1)
    seen = set()
    for image, label in zip(images, labels, strict=True):
        rows, columns = (image[0] != 0).any(1).nonzero()[:, 0], (image[0] != 0).any(0).nonzero()[:, 0]
        down = int(rows[0]) or int(rows[-1]) - 15
        right = int(columns[0]) or int(columns[-1]) - 7
        seen.add((down, right))
        expected = torch.zeros(16, 8)
        expected[max(0, down) : 16 + min(0, down), max(0, right) : 8 + min(0, right)] = label + 1
        assert torch.equal(image, expected.expand(2, 16, 8))
    assert seen == {(down, right) for down in range(-2, 3) for right in range(-1, 2)}


def test_images_smaller_than_eight_stay():
    data = numbered(1, 7, 7)
    ((images, labels),) = walk(TrainingBatches(data, trained_on(data), 38, "shift"), 0, 1)
    assert torch.equal(images, (labels + 1).float().view(-1, 1, 1, 1).expand(38, 1, 7, 7))


def test_half_of_the_images_are_mirrored():
    inputs = torch.arange(7.0).expand(400, 1, 7, 7).contiguous()  # too small to move
    data = from_tensors((inputs, torch.zeros(400, dtype=torch.int64)), None, search_samples=10)
    ((images, _),) = walk(TrainingBatches(data, trained_on(data), 390, "shift+flip"), 0, 1)
    mirrored = (images[:, 0, 0, 0] == 6).sum().item()
    assert ((images[:, 0, 0, 0] == 0).sum() + mirrored).item() == 390
    assert 160 < mirrored < 230  # 195, standard deviation 10
    wanted = torch.where(images[:, :, :1, :1] == 6, inputs[:390].flip(3), inputs[:390])
    assert torch.equal(images, wanted)
    ((images, _),) = walk(TrainingBatches(data, trained_on(data), 390, "shift"), 0, 1)
    assert torch.equal(images, inputs[:390])


@pytest.mark.parametrize("shape", [(16,), (2, 16)])
def test_other_inputs_stay_as_they_are(shape):
    data = numbered(*shape)
    ((inputs, labels),) = walk(TrainingBatches(data, trained_on(data), 38, "shift+flip"), 0, 1)
    assert torch.equal(inputs.flatten(1)[:, 0], labels + 1.0)
    assert (inputs.flatten(1) == inputs.flatten(1)[:, :1]).all()


def test_unlabelled_data():
    data = from_tensors((torch.arange(30.0).view(30, 1), None), None)
    steps = walk(TrainingBatches(data, trained_on(data), 4, "none"), 0, 4)
    assert [labels for _, labels in steps] == [None] * 4
    assert sorted(torch.cat([inputs for inputs, _ in steps]).flatten().tolist()) == trained_on(data)


def test_what_the_data_raises_arrives():
    data = numbered(3)
    batches = TrainingBatches(data, [0, 1, 99], 1, "none")
    with pytest.raises(IndexError):
        walk(batches, 0, 3)


def test_a_blend_by_hand():
    blend = Blend(torch.tensor([1, 2, 0]), torch.tensor([0.0, 0.5, 0.25]))
    images = torch.tensor([0.0, 4.0, 8.0]).view(3, 1, 1, 1).expand(3, 2, 2, 2)
    assert torch.equal(blend(images), torch.tensor([0.0, 6.0, 6.0]).view(3, 1, 1, 1).expand(3, 2, 2, 2))
    assert blend(torch.eye(3)).tolist() == [[1, 0, 0], [0, 0.5, 0.5], [0.25, 0, 0.75]]


def test_drawn_blends():
    """Shares are uniform up to the most: mean 0.1, standard deviation of the mean 0.0018 for 1,000."""
    blend, same, other = (Blend.drawn(1000, 0.2, seed) for seed in (3, 3, 4))
    assert sorted(blend.partners.tolist()) == list(range(1000))
    assert 0 <= blend.shares.min() < 0.01
    assert 0.19 < blend.shares.max() <= 0.2
    assert float(blend.shares.mean()) == pytest.approx(0.1, abs=0.01)
    assert torch.equal(blend.shares, same.shares)
    assert torch.equal(blend.partners, same.partners)
    assert not torch.equal(blend.shares, other.shares)
