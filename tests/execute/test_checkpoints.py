"""Checkpoints of fine-tuning: it goes on exactly where it stopped, and refuses what is damaged or of another."""

from dataclasses import replace

import pytest
import torch
from execute_toys import digits, labels, menus_of, network, same

from autocompress.data import from_tensors
from autocompress.errors import InputError
from autocompress.execute import finetune as module
from autocompress.execute.compressed import Compressed, from_menus
from autocompress.execute.distillation import Objective
from autocompress.execute.finetune import finetune
from autocompress.execute.pipeline import kept_parts
from autocompress.execute.tuning import FineTuning
from autocompress.network import fold_batch_norms

_QUICK = FineTuning(epochs=0.05, batch_size=64, augmentation="none")


class Interrupted(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("stop", [3, 10])
def test_it_goes_on_exactly_where_it_stopped(tmp_path, monkeypatch, stop):
    """Saved after every step; the process dies after the third, or in the middle of the second epoch."""
    model, x = network("mixed", 200)
    menus = menus_of(model, x[:32], weight_bits=(3,), activation_bits=(4,), granularity="element")
    folded = fold_batch_norms(model, menus.network)
    labeling = labels(menus, 0.5, 3, 4)
    compressed, kept = from_menus(menus, labeling, folded), kept_parts(menus, labeling)
    data = from_tensors((x, torch.arange(200) % 4), None, search_samples=40, calibration_samples=20)
    settings = FineTuning(
        epochs=2,
        batch_size=20,
        augmentation="shift+flip",
        objective=Objective(hard=0.5, features=0.1),
        learning_rate=0.01,
    )  # 8 steps an epoch
    monkeypatch.setattr(module, "_SAVE_SECONDS", -1.0)
    clock = iter(range(0, 10**6, 2))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))  # told after every step
    told = []
    whole = finetune(compressed, folded, data, settings, kept=kept, progress=told.append)
    file = tmp_path / "finetune.pt"

    def die(step):
        if step.step == stop:
            raise Interrupted

    with pytest.raises(Interrupted):
        finetune(compressed, folded, data, settings, kept=kept, checkpoint=file, progress=die)
    assert torch.load(file, weights_only=True)["numbers"][0] == stop
    again = []
    resumed = finetune(compressed, folded, data, settings, kept=kept, checkpoint=file, progress=again.append)
    assert same(resumed.compressed, whole.compressed)
    assert (resumed.steps, resumed.best_step, resumed.diverged) == (16, whole.best_step, False)
    assert whole.best_step > 0
    key = [(step.step, step.loss, step.search_loss, step.search_accuracy) for step in told]
    assert [(step.step, step.loss, step.search_loss, step.search_accuracy) for step in again] == key[stop:]


def saved(tmp_path, monkeypatch):
    toy = digits()
    compressed = toy.compressed(0.0, 2, 8)[0]
    monkeypatch.setattr(module, "_SAVE_SECONDS", -1.0)
    file = tmp_path / "finetune.pt"
    finetune(compressed, toy.folded, toy.data, _QUICK, checkpoint=file)
    return toy, compressed, file


@pytest.mark.parametrize("where", [0.3, 0.5, 0.7])
def test_a_flipped_bit_in_a_checkpoint_is_found(tmp_path, monkeypatch, where):
    """`torch.load` takes it: the weights would be others without a word."""
    toy, compressed, file = saved(tmp_path, monkeypatch)
    content = bytearray(file.read_bytes())
    content[round(where * len(content))] ^= 64
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        finetune(compressed, toy.folded, toy.data, _QUICK, checkpoint=file)
    assert str(error.value) == (
        f"`resume` must find a whole checkpoint, got {file}, which is damaged; remove that file to start anew."
    )


def test_a_checkpoint_of_another_fine_tuning_is_refused(tmp_path, monkeypatch):
    toy, compressed, file = saved(tmp_path, monkeypatch)
    message = (
        f"`resume` must continue a fine-tuning with the same settings, plan and data, got others in {file}; "
        "remove that file to start anew."
    )
    other_plan = Compressed(compressed.model, compressed.layers, digits().compressed(0.0, 8, 8)[0].plan)
    other_data = replace(toy.data, calibration_indices=toy.data.calibration_indices[:-1])
    for given, data, settings in [
        (compressed, toy.data, replace(_QUICK, learning_rate=2e-3)),
        (compressed, toy.data, replace(_QUICK, seed=1)),
        (compressed, toy.data, replace(_QUICK, objective=Objective(hard=0.1))),
        (other_plan, toy.data, _QUICK),
        (compressed, other_data, _QUICK),
    ]:
        with pytest.raises(InputError) as caught:
            finetune(given, toy.folded, data, settings, checkpoint=file)
        assert str(caught.value) == message
    assert finetune(compressed, toy.folded, toy.data, _QUICK, checkpoint=file).steps == 1


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path, monkeypatch):
    toy, compressed, file = saved(tmp_path, monkeypatch)
    whole = file.read_bytes()
    contents = [b"", b"nonsense", whole[:100], whole[: len(whole) // 2], whole[:-30], b"\0" * 500 + whole[500:]]
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(InputError) as caught:
            finetune(compressed, toy.folded, toy.data, _QUICK, checkpoint=file)
        assert str(caught.value) == (
            f"`resume` must find a whole checkpoint, got {file}, which is damaged; remove that file to start anew."
        )
    torch.save({"model": {}}, file)
    with pytest.raises(InputError, match="which is damaged"):
        finetune(compressed, toy.folded, toy.data, _QUICK, checkpoint=file)


CHECKPOINT_LIES = {
    "another shape": lambda state: state["model"].update({"linear.bias": torch.zeros(3)}),
    "no tensor": lambda state: state["model"].update({"linear.bias": "a"}),
    "another type": lambda state: state["model"].update({"linear.bias": torch.zeros(10, dtype=torch.float8_e4m3fn)}),
    "a missing part": lambda state: state["best"].popitem(),
    "moments of another shape": lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(1)),
    "other settings": lambda state: state["optimizer"]["param_groups"][0].update(betas=(0.5, "a")),
    "too few numbers": lambda state: state["numbers"].pop(),
    "no step": lambda state: state["scheduler"].update(last_epoch=None),
}


@pytest.mark.parametrize("lie", CHECKPOINT_LIES)
def test_a_checkpoint_whose_parts_are_no_fine_tuning_of_the_model_is_refused(tmp_path, monkeypatch, lie):
    toy, compressed, file = saved(tmp_path, monkeypatch)
    state = torch.load(file, weights_only=True)
    CHECKPOINT_LIES[lie](state)
    torch.save(state, file)
    with pytest.raises(InputError) as caught:
        finetune(compressed, toy.folded, toy.data, _QUICK, checkpoint=file)
    assert str(caught.value) == (
        f"`resume` must find a whole checkpoint, got {file}, which is damaged; remove that file to start anew."
    )
