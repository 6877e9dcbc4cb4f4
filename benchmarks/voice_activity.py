"""silero-vad, a voice activity detector with an LSTM, on spoken sentences in noise: the whole job without labels.

pip download --no-deps silero-vad && unzip -o silero_vad-*.whl 'silero_vad/data/*'
apt-get install espeak-ng
python benchmarks/voice_activity.py --weights silero_vad/data/silero_vad_16k.safetensors --lines sst2/train.tsv

espeak-ng says the sentences in several voices, with pauses, and white noise is added at 0 to 20 decibels below the
speech. The original's own probabilities are what the compressed network has to keep, on sentences that it never heard.
"""

from __future__ import annotations

import argparse
import io
import resource
import subprocess
import time
import wave
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import autocompress

RATE, WINDOW, CONTEXT, WINDOWS = 16_000, 512, 64, 62  # samples a second, a window and before it; windows of a clip
BINS, STRIDE, LEAST_SPEECH = 129, 128, 0.5
VOICES = ("en", "en-us", "en-gb-scotland", "en+f2", "en+f4", "en+m3", "en+m7", "en+croak")


class SileroVad(nn.Module):
    """Clips (N, 64 + 512 W) at 16 kHz in, logits (N, W, 2) of silence and speech out, as silero-vad 6 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * BINS, 256, stride=STRIDE, bias=False)
        self.conv1 = nn.Conv1d(BINS, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128, batch_first=True)
        self.head = nn.Linear(128, 1)

    def forward(self, sound: Tensor) -> Tensor:
        windows = sound.unfold(1, WINDOW + CONTEXT, WINDOW)  # (N, W, 576)
        x = F.pad(windows.flatten(0, 1), (0, CONTEXT), mode="reflect").unsqueeze(1)
        x = self.stft_conv(x)
        x = (x[:, :BINS].square() + x[:, BINS:].square()).sqrt()
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(convolution(x))
        states, _ = self.lstm(x.reshape(-1, windows.shape[1], 128))
        logit = self.head(F.relu(states))  # (N, W, 1)
        return torch.cat([-logit / 2, logit / 2], -1)


def silero_vad(weights: str) -> nn.Module:
    """The detector with its own weights, from the package's safetensors file."""
    model, names = SileroVad(), {}
    for name, tensor in load_file(weights).items():
        place, kind = name.split(".")
        if place == "lstm_cell":
            names[f"lstm.{kind}_l0"] = tensor
        elif place == "final_conv":
            names[f"head.{kind}"] = tensor.squeeze(-1) if kind == "weight" else tensor
        else:
            names[name] = tensor
    model.load_state_dict(names)
    return model.eval()


def spoken(text: str, voice: str) -> np.ndarray:
    """A sentence at 16 kHz, in [-1, 1]."""
    done = subprocess.run(["espeak-ng", "-v", voice, "--stdout", text], capture_output=True, check=True)
    with wave.open(io.BytesIO(done.stdout)) as file:
        rate, raw = file.getframerate(), file.readframes(10**9)
    sound = torch.from_numpy(np.frombuffer(raw, np.int16).astype(np.float32) / 32768)
    resampled = F.interpolate(sound[None, None], scale_factor=RATE / rate, mode="linear")
    return resampled[0, 0].numpy()


def clips(sentences: list[str], seed: int) -> Tensor:
    """(N, 64 + 512 x 62) clips of two seconds: one sentence or a part of it, from a random moment on, in noise."""
    rng, length = np.random.default_rng(seed), CONTEXT + WINDOW * WINDOWS
    found = []
    for number, text in enumerate(sentences):
        sound = np.zeros(length, np.float32)
        speech = spoken(text, VOICES[number % len(VOICES)])
        start = rng.integers(0, length * 3 // 4)
        speech = speech[: min(len(speech), length - start, rng.integers(length // 4, length))]
        sound[start : start + len(speech)] = speech * rng.uniform(0.1, 0.9)
        loudness = float(np.sqrt(np.square(sound).sum() / max(1, len(speech))))
        sound += rng.standard_normal(length).astype(np.float32) * loudness * 10 ** (-rng.uniform(0, 20) / 20)
        found.append(sound)
    return torch.from_numpy(np.stack(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="silero_vad_16k.safetensors")
    parser.add_argument("--lines", required=True, help="text file whose lines are said, up to their first tab")
    parser.add_argument("--budget", default="size=0.25")
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--out", default="runs/voice")
    options = parser.parse_args()
    lines = [line.split("\t")[0] for line in Path(options.lines).read_text().splitlines()[:1000]]
    model, started = silero_vad(options.weights), time.perf_counter()
    train, test = clips(lines[:700], 0), clips(lines[700:], 1)
    result = autocompress.search(
        model, ((train, None), (test, None)), options.budget, task="token-classification", episodes=options.episodes,
        search_samples=300, calibration_samples=200, out=options.out, force=True,
    )  # fmt: skip
    runtime = result.verification.runtime
    assert runtime is not None
    with torch.no_grad():
        speech = model(test).softmax(-1)[..., 1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(
        f"{100 * float((speech > LEAST_SPEECH).float().mean()):.1f} % of windows are speech; size "
        f"{100 * result.outcome.resources['size'] / result.original_outcome.resources['size']:.2f} %, divergence "
        f"{result.outcome.kl:.4f}, metrics {result.metrics}, "
        f"agreement of the file with PyTorch {runtime.agreement:.4f}, "
        f"verified: {result.verification.passed}, {time.perf_counter() - started:.0f} s, peak {peak:.1f} GB"
    )


if __name__ == "__main__":
    main()
