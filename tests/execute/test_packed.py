"""The packed file: no byte above the closed form, and the same weights bit for bit when read again."""

import numpy as np
import pytest
import torch

from autocompress.data import load_data
from autocompress.errors import InputError
from autocompress.evaluation import Evaluator
from autocompress.execute import load_packed, pack
from autocompress.execute.bits import pack_bits, unpack_bits
from autocompress.menus import MenuSettings, build_menus
from autocompress.models import load_model
from autocompress.network import trace
from autocompress_envs.numbers import Labeling

OFFERS = {
    "channel": (1, 2, 3, 5, 8, 16, 32),
    "element": (1, 3, 8, 16, 32),
    "2:4": (1, 4, 16, 32),
}
# A header entry is reserved for tensors that a label may leave out (scales, ranges), with the longest offsets.
MOST_SLACK = 1600  # 10 layers with two such entries of up to 80 bytes


def random_labeling(problem, rng):
    fields = ("sparsities", "weight_bits", "activation_bits")
    return Labeling(*(np.array([rng.integers(len(getattr(layer, f))) for layer in problem.layers]) for f in fields))


@pytest.fixture(scope="module", params=OFFERS)
def job(request):
    model, data = load_model("digits"), load_data("digits", calibration_samples=64, search_samples=32)
    inputs, _ = data.calibration()
    network = trace(model, inputs[:1])
    settings = MenuSettings(
        granularity=request.param, weight_bits=OFFERS[request.param], activation_bits=(4, 32), sparsity_levels=4
    )
    menus = build_menus(model, network, inputs, settings, data_fingerprint=data.fingerprint)
    return menus, Evaluator(model, network, menus, *data.search(), dtype="float32", batch_size=32)


def test_file_keeps_to_the_closed_form_and_reads_back_bit_for_bit(job, tmp_path):
    menus, evaluator = job
    problem, rng = menus.problem(), np.random.default_rng(0)
    for _ in range(8):
        labeling = random_labeling(problem, rng)
        stitched = evaluator.stitched(labeling)
        packed = pack(menus, labeling, stitched)
        assert 0 <= problem.resources(labeling)["size"] - len(packed) <= MOST_SLACK
        (tmp_path / "model.safetensors").write_bytes(packed)
        state = load_packed(tmp_path / "model.safetensors", menus, labeling)
        expected = {k: v for k, v in stitched.state_dict().items() if not k.endswith("num_batches_tracked")}
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_file_of_another_plan_or_a_damaged_one_is_refused(job, tmp_path):
    menus, evaluator = job
    layers = len(menus.network.layers)
    lowest, path = np.zeros(layers, dtype=np.int64), tmp_path / "model.safetensors"
    two_bits, eight_bits = (Labeling(lowest, np.full(layers, i), lowest) for i in (1, 2))
    packed = pack(menus, two_bits, evaluator.stitched(two_bits))
    path.write_bytes(packed)
    first = menus.network.layers[0].name
    with pytest.raises(InputError, match=rf"^`path` must hold \d+ bytes for {first}\.weight, got \d+ bytes in "):
        load_packed(path, menus, eight_bits)
    path.write_bytes(packed[:-1])
    with pytest.raises(InputError, match=r"^`path` must be a packed safetensors file, got "):
        load_packed(path, menus, two_bits)


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_bits_leaves_no_gap_and_loses_nothing(bits):
    values = np.random.default_rng(bits).integers(2**bits, size=37).astype(np.uint8)
    packed = pack_bits(values, bits)
    assert len(packed) == -(-37 * bits // 8)
    assert np.array_equal(unpack_bits(packed, bits, 37), values)
