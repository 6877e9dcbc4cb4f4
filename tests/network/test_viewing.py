"""Networks that call `view` run with channels last; those that need no help, or can't be helped, stay as they are."""

import inspect

import pytest
import torch
from torch import Tensor, nn

import autocompress
from autocompress.network.layered import with_layers
from autocompress.network.viewing import viewing
from autocompress.samples import Samples


class LeNet(nn.Module):
    """Input 3x16x16, as tutorials write it: a view joins 8 channels and 4x4 positions."""

    def __init__(self, how: str = "view") -> None:
        super().__init__()
        self.conv, self.pool, self.head, self.how = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.MaxPool2d(4),
            nn.Linear(128, 5),
            how,
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.conv(image)))
        if self.how == "as":
            return self.head(x.view(torch.float32).view_as(torch.empty(len(x), 128)))
        if self.how == "written":
            x.view(len(x), -1).mul_(2)  # of a copy, nobody would read what is written
            return self.head(x.flatten(1))
        return self.head(x.view(x.size(0), -1) if self.how == "view" else x.flatten(1))


def last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@pytest.mark.parametrize("how", ["view", "as"])
def test_views_are_copies_where_they_must_be(how: str) -> None:
    torch.manual_seed(0)
    model, x = LeNet(how).eval(), torch.randn(4, 3, 16, 16)
    made, expected = viewing(model, x[:2]), model(x)
    assert torch.equal(made(x), expected)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        last(LeNet(how))(x.contiguous(memory_format=torch.channels_last))
    found = last(made)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert type(model) is LeNet
    assert isinstance(made, LeNet)
    assert (type(made).__name__, list(inspect.signature(made.forward).parameters)) == ("LeNet", ["image"])


@pytest.mark.parametrize("how", ["flatten", "written"])
def test_others_are_left_alone(how: str) -> None:
    model = LeNet(how).eval()
    assert viewing(model, torch.randn(2, 3, 16, 16)) is model


def test_networks_that_take_their_images_by_name() -> None:
    model, x = LeNet().eval(), torch.randn(2, 3, 16, 16)
    made = with_layers(model, Samples((x,), ("image",)))
    torch.testing.assert_close(last(made)(x), model(x), atol=1e-5, rtol=1e-5)


def test_the_whole_job(tmp_path: object) -> None:
    torch.manual_seed(0)
    images = torch.randn(200, 3, 16, 16)
    settings = {"episodes": 2, "search_samples": 40, "calibration_samples": 40, "sparsity_levels": 4, "finetune": 1.0}
    result = autocompress.search(
        LeNet().eval(), (images, None), "size=0.6", out=f"{tmp_path}/run", cache=f"{tmp_path}/cache", **settings
    )
    assert result.verification is not None
    assert result.verification.passed
    assert result.outcome.agreement > 0.9
    assert result.model(images[:3]).shape == (3, 5)
