"""Several tensors as the inputs of the same samples."""

import hashlib

import pytest
import torch

from autocompress.data import from_tensors
from autocompress.errors import InputError
from autocompress.network.interface import Interfaced, interfaced, plain
from autocompress.samples import Field, Samples, call, cast, content, fields_of, from_tree, joined, repeated, zeros

IDS = torch.arange(12).view(4, 3)
SCORES = torch.rand(4, 2, dtype=torch.float64)
BOTH = from_tree({"ids": IDS, "scores": SCORES})


def test_samples_are_cut_joined_and_repeated_like_tensors() -> None:
    assert len(BOTH) == 4
    assert torch.equal(BOTH[1:3].tensors[0], IDS[1:3])
    assert torch.equal(BOTH[torch.tensor([3, 0])].tensors[1], SCORES[[3, 0]])
    assert [len(part) for part in BOTH.split(3)] == [3, 1]
    again = joined(BOTH.split(3))
    assert isinstance(again, Samples)
    assert all(torch.equal(a, b) for a, b in zip(again.tensors, BOTH.tensors, strict=True))
    assert [len(tensor) for tensor in repeated(BOTH, 3).tensors] == [12, 12]
    assert BOTH.nbytes == 12 * 8 + 8 * 8


def test_only_floating_point_tensors_are_cast() -> None:
    there = cast(BOTH, "cpu", torch.float16)
    assert [tensor.dtype for tensor in there.tensors] == [torch.int64, torch.float16]
    assert cast(IDS, "cpu", torch.float16).dtype == torch.int64


def test_forms_and_zeros_of_them() -> None:
    fields = (Field("ids", (3,), "int64"), Field("scores", (2,), "float64"))
    assert fields_of(BOTH) == fields
    made = zeros(fields, 5)
    assert (made.names, made.by_name, [tuple(tensor.shape) for tensor in made.tensors]) == (
        ("ids", "scores"), True, [(5, 3), (5, 2)],
    )  # fmt: skip
    by_place = zeros(fields_of(from_tree((IDS, SCORES))), 1)
    assert (by_place.names, by_place.by_name) == (("input_0", "input_1"), False)
    assert zeros((Field("input", (3, 8)),), 2).shape == (2, 3, 8)


def test_digests_tell_names_and_values_apart() -> None:
    def digest(inputs: object) -> str:
        return hashlib.sha256(b"".join(content(inputs))).hexdigest()

    others = [from_tree({"ids": IDS, "other": SCORES}), from_tree({"ids": IDS + 1, "scores": SCORES}), IDS]
    assert len({digest(each) for each in (BOTH, *others)}) == 4
    assert digest(BOTH) == digest(from_tree({"ids": IDS.clone(), "scores": SCORES.clone()}))


class Sums(torch.nn.Module):
    """Takes its tensors by name, and gives them in a container."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Linear(2, 3, bias=False)

    def forward(self, scores: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"hidden": ids, "logits": self.scale(scores) + ids}


def test_a_network_by_name_runs_by_position_and_is_left_as_it_was() -> None:
    model, inputs = Sums(), cast(BOTH, "cpu", torch.float32)
    ours = interfaced(model, inputs)
    assert isinstance(ours, Interfaced)
    assert isinstance(ours, Sums)
    assert type(ours).__name__ == "Sums"
    assert ours.scale is model.scale
    assert type(model) is Sums
    expected = model(ids=IDS, scores=SCORES.float())["logits"]
    assert torch.equal(call(ours, inputs), expected)
    assert torch.equal(plain(ours)(scores=SCORES.float(), ids=IDS)["logits"], expected)
    assert interfaced(ours, inputs) is ours
    assert interfaced(model, IDS) is model


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"ids": IDS, "scores": SCORES[:3]},
            "tensors train must hold as many samples in every input, got 4 of ids, 3 of scores.",
        ),
        (
            {"ids": IDS, "scores": SCORES * torch.tensor([1.0, float("nan")])},
            "tensors train scores must hold finite inputs, got NaN or infinity at 0.",
        ),
        ({"ids": IDS[:0]}, "tensors train ids must hold inputs of shape (N, …) with N at least 1, got (0, 3)."),
    ],
)
def test_inputs_that_do_not_fit_each_other(inputs: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(InputError) as error:
        from_tensors((inputs, torch.zeros(4, dtype=torch.int64)))
    assert str(error.value) == message


def test_tokens_are_not_normalised() -> None:
    data = from_tensors(({"ids": IDS, "scores": SCORES}, torch.tensor([0, 1, 0, 1])), search_samples=2)
    inputs, labels = data.search()
    assert [tensor.dtype for tensor in inputs.tensors] == [torch.int64, torch.float32]
    assert labels is not None
    with pytest.raises(InputError, match=r"^`mean` and `std` must be left out for tokens and for several inputs: they"):
        from_tensors((IDS, None), mean=[0.5] * 3, std=[1.0] * 3).search()
