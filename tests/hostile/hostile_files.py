"""The clean files that the suite damages: a run, a comparison, a cache, data, weights and a policy, all small.

python tests/hostile/hostile_files.py FOLDER

A process of its own makes them, because a process that has computed gradients must not be forked.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow
import torch
from PIL import Image
from pyarrow import parquet

RUN = {
    "search_samples": 64, "calibration_samples": 64, "recalibration_samples": 0, "dtype": "float32",
    "selection_samples": 0, "sparsity_levels": 2, "target": "packed",
}  # fmt: skip
SUITE = """\
base: {model: digits, data: digits, target: packed, search_samples: 64, calibration_samples: 64, dtype: float32,
  sparsity_levels: 2}
budgets: [size=0.12]
methods: [uniform, {name: second, method: random}]
seeds: 1
episodes: 4
test: false
"""
RECIPE = """\
networks:
- {name: little, model: "autocompress.models.small_nets:SmallResNet", data: digits, epochs: 0.05, augmentation: none,
   model_args: {blocks: [1], width: 8, channels: 1}}
tasks:
- name: joint
  budgets: [{resource: size, low: 0.3, high: 0.9}]
  options: {target: packed, sparsity_levels: 2}
data: {digits: digits}
budgets: 3
plans: 4
search_samples: 64
fitting: {steps: 60, width: 8}
reinforcement: {steps: 0}
"""


def make(folder: Path) -> None:
    """Make everything below `folder`."""
    os.environ["AUTOCOMPRESS_CACHE"], os.environ["XDG_STATE_HOME"] = str(folder / "cache"), str(folder / "state")
    torch.set_num_threads(1)
    (folder / "suite").mkdir()
    (folder / "suite" / "suite.yaml").write_text(SUITE)
    (folder / "recipe").mkdir()
    (folder / "recipe" / "recipe.yaml").write_text(RECIPE)
    _data(folder)
    _weights(folder / "weights")
    _experience(folder / "experience")
    _run(folder)
    _policy(folder / "policy")


def _run(folder: Path) -> None:
    import hostile_tools as kinds

    import autocompress
    import autocompress.execute.finetune
    from autocompress.checked_tensors import save_checked
    from autocompress.comparison.run import compare

    finetuning = sys.modules["autocompress.execute.finetune"]
    from autocompress.job.base import save_base

    autocompress.search("digits", budget="size=0.12", episodes=6, out=folder / "run", **RUN)
    compare(folder / "suite" / "suite.yaml", out=folder / "comparison")
    tools = kinds.tools(folder)
    tools.cached(folder / "cache")  # every file that reading needs is there, effects included
    (folder / "stage").mkdir()
    save_base(folder / "stage", tools.job.base)
    (folder / "checkpoint").mkdir()
    finetuning._SAVE_SECONDS = 0.0
    tools.tuned(folder / "checkpoint" / "finetune.pt")
    network, data = kinds.zoo_network(folder)
    (folder / "zoo").mkdir()
    from autocompress.models import load_model
    from autocompress.policy_training.zoo import weights_file

    torch.manual_seed(0)
    model = load_model(network.model, None, network.model_args)
    file = weights_file(network, data, folder / "zoo")
    save_checked(file, model.state_dict(), file.stem)
    (folder / "settled").mkdir()
    picks = {"training little": "float32", "little joint": {"dtype": "float32", "batch_size": 64}}
    (folder / "settled" / "settled.json").write_text(json.dumps(picks))


def _data(folder: Path) -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, (12, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(12) % 3
    for name in ("npz", "parquet", "images"):
        (folder / name).mkdir()
    np.savez_compressed(
        folder / "npz" / "data.npz",
        x_train=images[:9, ..., 0].astype(np.float32) / 255,
        y_train=labels[:9],
        x_test=images[9:, ..., 0].astype(np.float32) / 255,
        y_test=labels[9:],
    )
    kinds = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]
    for part, where in (("train", slice(0, 9)), ("test", slice(9, 12))):
        encoded = []
        for index, (image, label) in enumerate(zip(images[where], labels[where], strict=True)):
            out, kind = io.BytesIO(), kinds[index % len(kinds)]
            Image.fromarray(image).save(out, kind)
            encoded.append(out.getvalue())
            place = folder / "images" / part / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{index}.{kind.lower()}").write_bytes(out.getvalue())
        table = pyarrow.table({"image": encoded, "label": labels[where]})
        parquet.write_table(table, folder / "parquet" / f"{part}.parquet")


def _weights(folder: Path) -> None:
    from safetensors.torch import save_file

    from autocompress.models import load_model

    folder.mkdir()
    state = load_model("digits", None, {}).state_dict()
    save_file(state, folder / "weights.safetensors")
    torch.save(state, folder / "weights.pt")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)


def _experience(folder: Path) -> None:
    from autocompress.evaluation.effects import Effects
    from autocompress.policy_training.experience import Experience
    from autocompress.policy_training.experience_files import save_experience
    from autocompress_envs.problem import Labeling
    from autocompress_envs.testing import toy_problem

    draw, (problem, _) = np.random.default_rng(0), toy_problem()
    effects = Effects(draw.random((3, 2, 4, 2)).astype(np.float32), draw.random((3, 3, 4, 2)).astype(np.float32), 1.0)
    none = np.zeros((5, 3), dtype=np.int64)
    plans = Labeling(none, draw.integers(0, 3, (5, 3)), none)
    shifts = draw.random((5, 4, 2)).astype(np.float16)
    found = Experience(problem, np.full((4, 2), 0.5), effects, plans, draw.random(5), shifts, ({"bitops": 512},))
    folder.mkdir()
    save_experience(folder / "experience.npz", "made for", found)


def _policy(folder: Path) -> None:
    import autocompress.policies

    shutil.copytree(Path(autocompress.policies.__file__).parent / "default", folder)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    make(Path(sys.argv[1]))
