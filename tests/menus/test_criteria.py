"""Every criterion keeps the same contract; the best order is known by brute force where it can be."""

import pytest
import torch
from menu_toys import consumer, gradient_moment, moment, randn, seeded
from torch import Tensor

from autocompress.menus.algebra import expected_loss, refit
from autocompress.menus.criteria import (
    CRITERIA,
    Consumer,
    ElementContext,
    block_mask,
    element_mask,
)

FIELDS = ("weight", "second_moment", "gradient_moment", "columns", "activation")


@pytest.mark.parametrize("channels", [1, 6, 130])
@pytest.mark.parametrize("name", CRITERIA)
def test_channel_contract(name: str, channels: int) -> None:
    consumers = [consumer(channels, 2, 4, seed=1, extra=3), consumer(channels, 1, 3, seed=2)]
    before = [getattr(each, field).clone() for each in consumers for field in FIELDS]
    order = CRITERIA[name].channels(consumers, seeded(5))
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(channels))
    assert torch.equal(order, CRITERIA[name].channels(consumers, seeded(5)))
    after = [getattr(each, field) for each in consumers for field in FIELDS]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def loss_without(consumer: Consumer, gone: list[int]) -> float:
    """What the best re-fit loses when the channels are gone."""
    stays = torch.ones(consumer.weight.shape[1], dtype=torch.bool)
    stays[consumer.columns[gone].flatten()] = False
    kept = stays.nonzero()[:, 0]
    change = -consumer.weight
    change[:, kept] += refit(consumer.weight, consumer.second_moment, kept)
    return expected_loss(change, consumer.second_moment[None], consumer.gradient_moment)


def test_obs_is_the_greedy_order_of_re_fitted_losses() -> None:
    consumers = [consumer(5, 2, 4, seed=1, extra=2), consumer(5, 1, 3, seed=2)]
    gone: list[int] = []
    while len(gone) < 5:
        left = [channel for channel in range(5) if channel not in gone]
        gone.append(min(left, key=lambda c: sum(loss_without(each, [*gone, c]) for each in consumers)))
    assert CRITERIA["obs"].channels(consumers, seeded(0)).tolist() == gone == [2, 4, 0, 3, 1]


def test_obs_sees_what_magnitudes_do_not() -> None:
    """Channels 0 and 1 carry the same signal, so one of the large ones goes; then the small one; never both large."""
    x = randn(400, 3)
    x[:, 1] = x[:, 0] + 0.01 * x[:, 1]
    x = torch.cat([x, torch.ones(400, 1, dtype=torch.float64)], 1)
    weight = torch.tensor([[2.0, 2.0, 0.5, 0.0]], dtype=torch.float64)
    one = torch.eye(1, dtype=torch.float64)
    twins = Consumer(weight, x.T @ x / 400, one, torch.arange(3)[:, None], torch.ones(3))
    order = CRITERIA["obs"].channels([twins], seeded(0)).tolist()
    assert order[0] in (0, 1)
    assert order[1:] == [2, 1 - order[0]]
    assert CRITERIA["l1"].channels([twins], seeded(0)).tolist()[0] == 2


def test_obs_survives_dead_and_repeated_channels() -> None:
    x = randn(50, 4)
    x[:, 1] = 0
    x[:, 3] = x[:, 2]
    x = torch.cat([x, torch.ones(50, 1, dtype=torch.float64)], 1)
    second_moment = x.T @ x / 50 + 1e-6 * torch.eye(5, dtype=torch.float64)
    weight = torch.tensor([[1.0, 0.1, 2.0, 3.0, 0.0]], dtype=torch.float64)
    one = torch.eye(1, dtype=torch.float64)
    order = CRITERIA["obs"].channels([Consumer(weight, second_moment, one, torch.arange(4)[:, None], x[0])], seeded(0))
    assert order[0] == 1
    assert order[1] in (2, 3)


def plain(weight: list[list[float]], activation: list[float]) -> Consumer:
    """Three channels of two columns each."""
    tensor = torch.tensor(weight, dtype=torch.float64)
    moments = torch.diag(torch.tensor([1.0, 1.0, 4.0, 4.0, 0.01, 0.01, 1.0], dtype=torch.float64))
    columns = torch.tensor([[0, 1], [2, 3], [4, 5]])
    return Consumer(tensor, moments, torch.eye(len(tensor), dtype=torch.float64), columns, torch.tensor(activation))


def test_orders_by_hand() -> None:
    first = plain([[0.0, 3.0, 2.0, 2.0, -1.0, -1.0, 99.0]], [0.2, 0.5, 0.1])
    second = plain([[0.0, 0.0, 0.0, 0.0, 0.0, 3.0, 99.0]], [0.2, 0.5, 0.9])
    # one consumer: L1 3, 4, 2; squares 9, 8, 2; activations 0.2, 0.5, 0.1; taylor 9, 32, 0.02
    assert CRITERIA["l1"].channels([first], seeded(0)).tolist() == [2, 0, 1]
    assert CRITERIA["l2"].channels([first], seeded(0)).tolist() == [2, 1, 0]
    assert CRITERIA["activation"].channels([first], seeded(0)).tolist() == [2, 0, 1]
    assert CRITERIA["taylor"].channels([first], seeded(0)).tolist() == [2, 0, 1]
    # both: L1 3, 4, 5; squares 9, 8, 11; activations 0.4, 1, 1 (ties stay in order); taylor 9, 32, 0.11
    assert CRITERIA["l1"].channels([first, second], seeded(0)).tolist() == [0, 1, 2]
    assert CRITERIA["l2"].channels([first, second], seeded(0)).tolist() == [1, 0, 2]
    assert CRITERIA["activation"].channels([first, second], seeded(0)).tolist() == [0, 1, 2]
    assert CRITERIA["taylor"].channels([first, second], seeded(0)).tolist() == [2, 0, 1]


def test_random_order_follows_its_generator() -> None:
    consumers = [consumer(130, 1, 2, seed=1)]
    orders = {tuple(CRITERIA["random"].channels(consumers, seeded(seed)).tolist()) for seed in (0, 0, 1)}
    assert len(orders) == 2


def context(rows: int, columns: int) -> tuple[ElementContext, Tensor, Tensor]:
    """A context, its W with a bias, and its H."""
    weight, second_moment = randn(rows, columns + 1, seed=3), moment(columns)
    inverse_diagonal = torch.linalg.inv(second_moment).diagonal()[:-1].repeat(rows, 1)
    gradients = gradient_moment(rows).diagonal()
    diagonal = second_moment.diagonal()[:-1].repeat(rows, 1)
    return ElementContext(weight[:, :-1], inverse_diagonal, diagonal, gradients), weight, second_moment


@pytest.mark.parametrize("name", CRITERIA)
def test_element_contract(name: str) -> None:
    given, _, _ = context(4, 6)
    before = [tensor.clone() for tensor in vars(given).values()]
    score = CRITERIA[name].elements(given, seeded(5))
    assert score.shape == (4, 6)
    assert score.min() >= 0
    assert torch.equal(score, CRITERIA[name].elements(given, seeded(5)))
    assert all(torch.equal(*pair) for pair in zip(before, vars(given).values(), strict=True))


def test_element_obs_is_twice_the_re_fitted_loss_of_each_weight() -> None:
    given, weight, second_moment = context(4, 6)
    found = CRITERIA["obs"].elements(given, seeded(0)) / 2
    for row in range(4):
        for column in range(6):
            kept = torch.tensor([c for c in range(7) if c != column])
            change = torch.zeros(4, 7, dtype=torch.float64)
            change[row] = -weight[row]
            change[row, kept] += refit(weight[row : row + 1], second_moment, kept)[0]
            moments = torch.diag(given.gradient_diagonal)
            assert float(found[row, column]) == pytest.approx(
                expected_loss(change, second_moment[None], moments), rel=1e-6
            )


def test_element_scores_by_hand() -> None:
    given = ElementContext(
        torch.tensor([[1.0, -2.0], [3.0, 0.5]]),
        torch.tensor([[0.5, 4.0], [0.5, 4.0]]),
        torch.tensor([[4.0, 1.0], [4.0, 1.0]]),
        torch.tensor([1.0, 2.0]),
    )
    expected = {
        "obs": [[2.0, 1.0], [36.0, 0.125]],
        "l1": [[1.0, 2.0], [3.0, 0.5]],
        "l2": [[1.0, 4.0], [9.0, 0.25]],
        "activation": [[2.0, 2.0], [6.0, 0.5]],
        "taylor": [[4.0, 4.0], [72.0, 0.5]],
    }
    found = {name: CRITERIA[name].elements(given, seeded(0)).tolist() for name in expected}
    assert found == expected


@pytest.mark.parametrize("remove", [0, 1, 7, 23, 24])
def test_element_mask_removes_exactly_the_lowest(remove: int) -> None:
    score = randn(4, 6).abs().round(decimals=1)  # with ties
    keep = element_mask(score, remove)
    assert int((~keep).sum()) == remove
    if 0 < remove < 24:
        assert score[~keep].max() <= score[keep].min()


@pytest.mark.parametrize(("kept", "block"), [(2, 4), (1, 4), (1, 2), (3, 8)])
def test_block_mask_keeps_exactly_n_of_every_m(kept: int, block: int) -> None:
    score = randn(5, 16).abs().round(decimals=1)
    blocks, scores = block_mask(score, kept, block).view(-1, block), score.view(-1, block)
    assert blocks.sum(1).tolist() == [kept] * len(blocks)
    assert all(values[~stays].max() <= values[stays].min() for values, stays in zip(scores, blocks, strict=True))


def test_block_mask_by_hand() -> None:
    score = torch.tensor([[1.0, 4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 0.0]])
    assert block_mask(score, 2, 4).int().tolist() == [[0, 1, 1, 0, 1, 1, 0, 0]]
