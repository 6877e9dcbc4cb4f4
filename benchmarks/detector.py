"""FastestDet, a detector that comes as ONNX: the whole job without labels, and mean average precision before and after.

python benchmarks/detector.py --model fastestdet.onnx --images coco-samples/images.parquet \
    --calibration imagenet-samples/train.parquet                                               # about 10 minutes

The network gives a map (N, 85, 22, 22): an objectness, four numbers of a box, and the probabilities of 80 classes for
each cell. It is searched and calibrated on images of other data, without labels; mAP at 0.5 of the exported file in
ONNX Runtime is compared with that of the original file on the same images with boxes.
"""

from __future__ import annotations

import argparse
import io
import resource
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms

import autocompress
from autocompress.targets.onnxruntime.session import open_session
from autocompress.tasks import TASKS
from autocompress.tasks.metrics import METRICS, Meter

PIXELS, CELLS, MOST_BOXES = 352, 22, 100
LEAST_SCORE, OVERLAP = 0.01, 0.45


def picture(content: bytes) -> Tensor:
    """(3, 352, 352) BGR in [0, 1]."""
    image = Image.open(io.BytesIO(content)).convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)[:, :, ::-1].copy()).permute(2, 0, 1).float() / 255


def pictures(path: str, count: int) -> Tensor:
    """(count, 3, 352, 352) images of a file with a column `image`."""
    column = pq.read_table(path, columns=["image"]).column("image").to_pylist()[:count]
    return torch.stack([picture(each["bytes"] if isinstance(each, dict) else each) for each in column])


def samples(path: str) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 352, 352), BGR in [0, 1], and boxes (N, B, 5): corners in pixels and class, -1 for none."""
    rows = pq.read_table(path).to_pylist()
    boxes = torch.full((len(rows), max(len(row["boxes"]) for row in rows), 5), -1.0)
    images = []
    for number, row in enumerate(rows):
        images.append(picture(row["image"]))
        for place, box in enumerate(row["boxes"]):
            kind, x, y, w, h = box
            corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
            boxes[number, place] = torch.tensor([*(PIXELS * each for each in corners), kind])
    return torch.stack(images), boxes


def decode(outputs: tuple[Tensor, ...]) -> list[dict[str, Tensor]]:
    """Boxes of every image, as FastestDet's own code finds them, after non-maximum suppression by class."""
    found = []
    places = torch.arange(CELLS).float()
    for output in outputs[0]:
        probability, kind = output[5:].max(0)
        scores = output[0] ** 0.6 * probability**0.4
        x, y = output[1].tanh() + places[None, :], output[2].tanh() + places[:, None]
        w, h = output[3].sigmoid() * CELLS, output[4].sigmoid() * CELLS
        corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1).reshape(-1, 4) * (PIXELS / CELLS)
        scores, kind = scores.flatten(), kind.flatten()
        likely = scores > LEAST_SCORE
        corners, scores, kind = corners[likely], scores[likely], kind[likely]
        kept = batched_nms(corners, scores, kind, OVERLAP)[:MOST_BOXES]
        found.append({"boxes": corners[kept], "scores": scores[kept], "labels": kind[kept]})
    return found


def precision(file: str | bytes, images: Tensor, boxes: Tensor) -> float:
    """mAP at 0.5 of a file in ONNX Runtime, in [0, 1]."""
    session, meter = open_session(file), Meter([METRICS["map50"]], 0)
    for image, box in zip(images.split(1), boxes.split(1), strict=True):
        outputs = session.run(image)
        assert isinstance(outputs, Tensor)
        meter.update(decode((outputs,)), box)
    return meter.values()["map50"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="fastestdet.onnx")
    parser.add_argument("--images", required=True, help="Parquet file with columns image and boxes")
    parser.add_argument("--calibration", required=True, help="Parquet file with a column image; boxes are not read")
    parser.add_argument(
        "--samples", type=int, default=400, help="images of it: half to search on, a third to calibrate"
    )
    parser.add_argument("--out", default="runs/detector")
    parser.add_argument("--budget", default="size=0.25")
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--activation-bits", default="8", help="such as 8,32: layers may keep float32 inputs")
    parser.add_argument("--finetune", type=float, default=0.0, help="epochs on the images beside the search split")
    parser.add_argument("--task", default="detection", choices=list(TASKS))
    options = parser.parse_args()
    started = time.perf_counter()
    images, boxes = samples(options.images)
    result = autocompress.search(
        options.model, ((pictures(options.calibration, options.samples), None), (images, None)), options.budget,
        task=options.task, episodes=options.episodes, activation_bits=options.activation_bits,
        finetune=options.finetune, labels="teacher", batch_size=16, out=options.out, force=True,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(
        f"size {100 * result.outcome.resources['size'] / result.original_outcome.resources['size']:.2f} %, divergence "
        f"{result.outcome.kl:.4f}, verified: {result.verification.passed}, {seconds:.0f} s, peak {peak:.1f} GB"
    )
    for line in result.verification.failures():
        print(line)
    compressed = Path(options.out, "model.onnx").read_bytes()
    before, after = (precision(file, images, boxes) for file in (options.model, compressed))
    print(f"mAP50 on {len(images)} images: {100 * before:.2f} before, {100 * after:.2f} after")


if __name__ == "__main__":
    main()
