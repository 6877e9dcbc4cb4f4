"""Networks on a device: what is copied there, what stays, and what happens where memory is short."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, fx, nn

from autocompress import memory
from autocompress.errors import InputError
from autocompress.evaluation import torch_device
from autocompress.evaluation.batches import placed, room_on, run_in_batches, running
from autocompress.evaluation.measure import measure
from autocompress.evaluation.number_format import (
    fastest_batch,
    measured_at_once,
    outputs_of,
    prepared,
    samples_that_fit,
)

CPU = torch.device("cpu")
WITH_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


class Crowded(nn.Module):
    """Input 3: logits, for at most `room` samples at once; beyond that the memory is full. Counts what it is given."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.head, self.room, self.seen = nn.Linear(3, 2), room, []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.head(x)


def samples(count: int = 20) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("room", "batch", "fitted", "seen"),
    [
        (99, 16, 16, [16, 4]),
        (16, 16, 16, [16, 4]),
        (5, 16, 4, [16, 8, 4, 4, 4, 4, 4]),
        (5, 256, 5, [20, 10, 5, 5, 5, 5]),  # half of 20 samples, not of 256
        (1, 2, 1, [2, *[1] * 20]),
    ],
)
def test_batches_are_halved_until_they_fit(room: int, batch: int, fitted: int, seen: list[int]) -> None:
    model, x, told = Crowded(room), samples(), []
    with torch.no_grad():
        outputs, size = run_in_batches(model, x, batch, CPU, told.append)
        assert torch.allclose(outputs, model.head(x))
    assert (size, model.seen) == (fitted, seen)
    assert told == (
        []
        if fitted == batch
        else [f"cpu has no memory for batches of {batch}; they have {fitted} samples from here on"]
    )


def test_a_sample_that_does_not_fit_is_one_line() -> None:
    message = (
        "`device` must have memory for one sample of `data`, got cpu without; free its memory, or pass --device cpu."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        run_in_batches(Crowded(0), samples(), 4, CPU)


class Heavy(nn.Linear):
    """A network that the device has no room for."""

    def __deepcopy__(self, memo: object) -> nn.Module:
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_a_network_that_does_not_fit_is_one_line() -> None:
    message = "`device` must have memory for the network, got meta without; free its memory, or pass --device cpu."
    for move in (placed, lambda model, device: prepared(model, "float32", device)):
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            move(Heavy(3, 2), torch.device("meta"))


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run_in_batches(Crowded(9), torch.zeros(2, 7), 2, CPU)


def test_what_fitted_is_remembered_and_told_once() -> None:
    model, told = Crowded(8).train(), []
    with running(model, CPU, told.append) as run:
        for _ in range(3):
            assert run(samples(20)).shape == (20, 2)
    assert model.seen == [20, 10, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5]
    assert told == ["cpu has no memory for batches of 256; they have 5 samples from here on"]
    assert model.training


def test_all_measurements_go_on_in_smaller_batches() -> None:
    model, x = Crowded(7), samples(256)
    whole = Crowded(256)
    whole.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = torch.cat([whole(part) for part in x.split(4)])  # other batches have other kernels, other last bits
    assert torch.equal(outputs_of(model, x), expected)
    assert measure(whole, model, [(x, None)]).kl < 1e-12
    assert fastest_batch(model, x, "float32", CPU) == 4  # 64, 128 and 256 end there


@pytest.mark.parametrize(("free", "fitting", "measured"), [(9_500, 200, 200), (99_500, 1000, 256), (0, 10, 10)])
def test_a_gpus_own_memory_bounds_its_batches(
    monkeypatch: pytest.MonkeyPatch, free: int, fitting: int, measured: int
) -> None:
    """Half of a sample's 100 bytes count, as in float16, and 500 bytes of what PyTorch keeps are free as well."""
    network, cuda = SimpleNamespace(activation_bytes=100), torch.device("cuda")
    monkeypatch.setattr(memory, "resident_bytes", lambda: 400)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 800)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    assert room_on(cuda, 1_000) == free + 500
    assert samples_that_fit(network, 1_000, 1000, cuda) == fitting
    assert measured_at_once(network, 1_000, cuda) == measured


def test_the_limit_bounds_batches_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice a sample's 100 bytes count."""
    network = SimpleNamespace(activation_bytes=100)
    monkeypatch.setattr(memory, "resident_bytes", lambda: 400)
    assert room_on(CPU, 1_000) == 600
    assert (samples_that_fit(network, 1_000, 1000), samples_that_fit(network, 100, 1000)) == (3, 1)
    assert (measured_at_once(network, 1_000, CPU), measured_at_once(network, 10**6, CPU)) == (3, 64)


def test_outputs_are_float32_without_gradients_whatever_the_model_runs_in() -> None:
    model = nn.Linear(3, 2).double().train()
    with running(model, CPU) as run:
        outputs = run(samples().double())
    assert (outputs.dtype, outputs.requires_grad, model.training) == (torch.float32, False, True)


def test_a_model_that_is_there_is_not_copied() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert placed(model, CPU) is model
    assert placed(nn.ReLU(), CPU).__class__ is nn.ReLU


def test_auto_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_device("auto") == CPU


@pytest.mark.parametrize("name", ["AUTO", "gpu"])
def test_names_of_no_device(name: str) -> None:
    with pytest.raises(InputError, match=f"^`device` must be such as auto, cpu or cuda:0, got '{name}'\\.$"):
        torch_device(name)


class Making(nn.Module):
    """Input 3: makes a tensor of its own on the input's device; its graph names the device where it was exported."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) + torch.arange(2, device=x.device)


def exported() -> fx.GraphModule:
    graph = torch.export.export(Making(), (samples(2),)).module()
    return fx.GraphModule(graph, graph.graph)


def test_graphs_make_their_tensors_where_they_run() -> None:
    """`meta` holds shapes only, but an operator that mixes it with the CPU fails as on any other device."""
    graph = exported()
    before = [(node.args, node.kwargs) for node in graph.graph.nodes]
    assert any(CPU in (*args, *kwargs.values()) for args, kwargs in before)
    meta = torch.device("meta")
    there = placed(graph, meta)
    assert there is not graph
    assert there.get_parameter("head.weight").device == meta
    devices = [kwargs["device"] for _, kwargs in ((n.args, n.kwargs) for n in there.graph.nodes) if "device" in kwargs]
    assert set(devices) == {meta}
    assert [(node.args, node.kwargs) for node in graph.graph.nodes] == before
    assert graph.get_parameter("head.weight").device == CPU


@WITH_CUDA
def test_modules_on_either_side_stay_where_they_are() -> None:
    cuda, here = torch.device("cuda"), nn.Linear(3, 2)
    there = placed(here, cuda)
    assert (there.weight.device.type, here.weight.device.type) == ("cuda", "cpu")
    assert placed(there, cuda) is there
    x = samples()
    assert torch.allclose(outputs_of(there, x, CPU), outputs_of(here, x, cuda), atol=1e-5)
    assert measure(there, here, [(x.cuda(), None)], cuda).kl < 1e-9
    assert (there.weight.device.type, here.weight.device.type) == ("cuda", "cpu")


@WITH_CUDA
def test_graphs_run_on_cuda() -> None:
    graph, x = exported(), samples(2)
    assert torch.allclose(outputs_of(graph, x, torch.device("cuda")), outputs_of(graph, x), atol=1e-5)
