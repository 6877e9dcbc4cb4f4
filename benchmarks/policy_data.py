"""Data of the zoo that a policy is trained on, as NumPy archives: clothes, sentences and spoken words.

    python benchmarks/policy_data.py --out DATA --fashion FOLDER --sst2 FOLDER --speech FILE

Fashion-MNIST as IDX files (Debian: dataset-fashion-mnist), SST-2 as tab-separated `train.tsv` and `dev.tsv`, Speech
Commands as a safetensors file with `mfcc` and `label`. Sentences become the numbers of their words: the 2,046 most
common ones have numbers from 2 on, all others the number 1, and 0 fills up to 32.
"""

from __future__ import annotations

import argparse
import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

WORDS, LENGTH = 2048, 32


def main() -> None:
    """Write the archives that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the archives")
    parser.add_argument("--fashion", type=Path, help="folder with Fashion-MNIST as IDX files")
    parser.add_argument("--sst2", type=Path, help="folder with train.tsv and dev.tsv")
    parser.add_argument("--speech", type=Path, help="safetensors file with mfcc and label")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    makers = {"fashion": (asked.fashion, fashion), "sst2": (asked.sst2, sentences), "speech": (asked.speech, speech)}
    for name, (source, make) in makers.items():
        if source is not None:
            np.savez_compressed(asked.out / f"{name}.npz", **make(source))
            print(asked.out / f"{name}.npz")


def fashion(folder: Path) -> dict[str, npt.NDArray[np.generic]]:
    """60,000 and 10,000 grey images of 28 x 28 pixels, ten classes."""
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for split, name in {"train": "train", "test": "t10k"}.items():
        images = gzip.decompress((folder / f"{name}-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((folder / f"{name}-labels-idx1-ubyte.gz").read_bytes())
        arrays[f"x_{split}"] = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)
        arrays[f"y_{split}"] = np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)
    return arrays


def sentences(folder: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Numbers of words, and 0 or 1 for negative and positive sentences."""
    rows = {
        split: [line.split("\t") for line in (folder / f"{file}.tsv").read_text(encoding="utf-8").splitlines()]
        for split, file in {"train": "train", "test": "dev"}.items()
    }
    counts = Counter(word for sentence, _ in rows["train"] for word in sentence.lower().split())
    numbers = {word: number for number, (word, _) in enumerate(counts.most_common(WORDS - 2), 2)}
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for split, lines in rows.items():
        tokens = np.zeros((len(lines), LENGTH), dtype=np.int64)
        for row, (sentence, _) in zip(tokens, lines, strict=True):
            words = [numbers.get(word, 1) for word in sentence.lower().split()][:LENGTH]
            row[: len(words)] = words
        arrays[f"x_{split}"] = tokens
        arrays[f"y_{split}"] = np.array([int(label) for _, label in lines])
    return arrays


def speech(file: Path) -> dict[str, npt.NDArray[np.generic]]:
    """101 frames of 40 coefficients a word, twelve classes; every eighth clip is for the test."""
    content = load_file(file)
    frames, labels = content["mfcc"].astype(np.float32), content["label"].astype(np.int64)
    frames = ((frames - frames.mean((0, 1))) / frames.std((0, 1)))[:, None]  # (800, 1, 101, 40)
    is_test = np.arange(len(frames)) % 8 == 0
    return {
        "x_train": frames[~is_test],
        "y_train": labels[~is_test],
        "x_test": frames[is_test],
        "y_test": labels[is_test],
    }


if __name__ == "__main__":
    main()
