"""Waveforms, log-mel spectrograms and MFCC, with the names and defaults of torchaudio.

A network understands only the features that it was trained with: all of these numbers must be those of its training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from autocompress.config import one_line
from autocompress.errors import InputError

_TOP_DB = 80.0  # decibels below a sample's peak at which the rest is cut off, as torchaudio's MFCC do
_LEAST_POWER = 1e-10  # which decibels are taken of at least
_LN_OFFSET = 1e-6  # added before the natural logarithm
_LAYOUTS = {"waveform": ("NCT", "NT"), "spectrogram": ("NCFT", "NCTF", "NFT", "NTF")}


class AudioFeatures(BaseModel):
    """What a network hears: the options of `--data-args` for sounds.

    Attributes:
        features: `waveform`, `log-mel` or `mfcc`.
        sample_rate: samples a second that all files are resampled to. Default: that of the files, which have one.
        n_fft: samples of a Fourier transform.
        win_length: samples of its window (Hann, periodic). Default: `n_fft`.
        hop_length: samples between two windows. Default: half of `win_length`.
        n_mels: number of mel bands.
        n_mfcc: number of coefficients, at most `n_mels`.
        f_min: lowest frequency of the bands, in Hz.
        f_max: highest frequency of the bands, in Hz. Default: half of the sample rate.
        mel_scale: `htk` (torchaudio's default; triangles of height 1) or `slaney` (librosa's; of area 1).
        log: `db` (decibels of power, at most 80 below the sample's peak) or `ln` (ln(power + 1e-6)).
        layout: order of the axes: N samples, C one channel, F bands or coefficients, T time. Default: `NCT` for
            waveforms, else `NCFT`, as images are.
        classes: class names in the order of the network's outputs. Default: in alphabetical order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    features: Literal["waveform", "log-mel", "mfcc"] = "waveform"
    sample_rate: int | None = Field(None, ge=1)
    n_fft: int = Field(400, ge=2)
    win_length: int | None = Field(None, ge=1)
    hop_length: int | None = Field(None, ge=1)
    n_mels: int = Field(128, ge=1)
    n_mfcc: int = Field(40, ge=1)
    f_min: float = Field(0.0, ge=0)
    f_max: float | None = Field(None, gt=0)
    mel_scale: Literal["htk", "slaney"] = "htk"
    log: Literal["db", "ln"] = "db"
    layout: str | None = None
    classes: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, arguments: Mapping[str, Any]) -> AudioFeatures:
        """The features of keyword arguments.

        Raises:
            InputError: an unknown argument, or a value that breaks a rule.
        """
        unknown = sorted(set(arguments) - set(cls.model_fields))
        if unknown:
            known = ", ".join(cls.model_fields)
            raise InputError(f"`data_args` of audio: must be of {known}, got {', '.join(unknown)}.")
        try:
            made = cls(**arguments)
        except ValidationError as error:
            raise InputError(one_line(error)) from None
        made._check()
        return made

    def _check(self) -> None:
        """Raise InputError where two options contradict each other."""
        layouts = _LAYOUTS["waveform" if self.features == "waveform" else "spectrogram"]
        if self.layout is not None and self.layout not in layouts:
            raise InputError(f"`layout` of {self.features} must be one of {', '.join(layouts)}, got {self.layout}.")
        if self.window > self.n_fft:
            raise InputError(f"`win_length` must be at most n_fft ({self.n_fft}), got {self.window}.")
        if self.features == "mfcc" and self.n_mfcc > self.n_mels:
            raise InputError(f"`n_mfcc` must be at most n_mels ({self.n_mels}), got {self.n_mfcc}.")

    @property
    def window(self) -> int:
        """Samples of the window."""
        return self.win_length or self.n_fft

    @property
    def hop(self) -> int:
        """Samples between two windows."""
        return self.hop_length or max(1, self.window // 2)


class Spectra:
    """The features of waveforms of one sample rate.

    Args:
        features: kind of the features.
        rate: samples a second.

    Raises:
        InputError: the bands' frequencies don't fit the sample rate.
    """

    def __init__(self, features: AudioFeatures, rate: int) -> None:
        self._features = features
        self._rate = rate
        self._top = rate / 2 if features.f_max is None else features.f_max
        if features.features != "waveform" and not features.f_min < self._top <= rate / 2:
            raise InputError(
                f"`f_min` and `f_max` must be ascending and at most {rate / 2:g} Hz, half of the sample rate, got "
                f"{features.f_min:g} and {self._top:g}."
            )

    @property
    def least_samples(self) -> int:
        """Fewest samples of a waveform: its ends are mirrored by half of a transform's length."""
        return 1 if self._features.features == "waveform" else self._features.n_fft // 2 + 1

    def of(self, waveforms: Tensor) -> Tensor:
        """The features of waveforms (N, samples) float32, float32 with the axes of `layout`."""
        kind = self._features.features
        if kind == "waveform":
            return waveforms if self._features.layout == "NT" else waveforms[:, None]
        found = self._log(self._mel_power(waveforms))  # (N, F, T)
        if kind == "mfcc":
            found = _cosines(self._features.n_mels, self._features.n_mfcc).T @ found
        return _laid_out(found, self._features.layout or "NCFT")

    def _mel_power(self, waveforms: Tensor) -> Tensor:
        """(N, n_mels, T) power in every band."""
        chosen = self._features
        window = torch.hann_window(chosen.window)
        spectrum = torch.stft(
            waveforms, chosen.n_fft, chosen.hop, chosen.window, window, center=True, pad_mode="reflect",
            return_complex=True,
        )  # fmt: skip
        return self._bands.T @ spectrum.abs().square()

    @cached_property
    def _bands(self) -> Tensor:
        """(n_fft // 2 + 1, n_mels) weight of every frequency in every band."""
        chosen = self._features
        frequencies = torch.linspace(0, self._rate // 2, chosen.n_fft // 2 + 1, dtype=torch.float64)
        to_mel, to_hertz = _SCALES[chosen.mel_scale]
        low, high = to_mel(torch.tensor([chosen.f_min, self._top], dtype=torch.float64)).tolist()
        corners = to_hertz(torch.linspace(low, high, chosen.n_mels + 2, dtype=torch.float64))
        widths = corners.diff()
        distances = corners[None] - frequencies[:, None]  # (frequencies, n_mels + 2)
        rising, falling = -distances[:, :-2] / widths[:-1], distances[:, 2:] / widths[1:]
        bands = torch.minimum(rising, falling).clamp_min(0)
        if chosen.mel_scale == "slaney":
            bands = bands * 2 / (corners[2:] - corners[:-2])
        return bands.float()

    def _log(self, power: Tensor) -> Tensor:
        if self._features.log == "ln":
            return torch.log(power + _LN_OFFSET)
        decibels = 10 * torch.log10(power.clamp_min(_LEAST_POWER))
        return torch.maximum(decibels, decibels.amax((1, 2), keepdim=True) - _TOP_DB)


def _laid_out(found: Tensor, layout: str) -> Tensor:
    """Features (N, F, T) with the axes of `layout`."""
    found = found if layout.index("F") < layout.index("T") else found.transpose(1, 2)
    return (found[:, None] if "C" in layout else found).contiguous()


def _cosines(bands: int, coefficients: int) -> Tensor:
    """(bands, coefficients) orthonormal discrete cosine transform, type II."""
    places = (torch.arange(bands, dtype=torch.float64) + 0.5) * math.pi / bands
    basis = torch.cos(places[:, None] * torch.arange(coefficients, dtype=torch.float64)) * math.sqrt(2 / bands)
    basis[:, 0] /= math.sqrt(2)
    return basis.float()


def _htk_mel(hertz: Tensor) -> Tensor:
    return 2595 * torch.log10(1 + hertz / 700)


def _htk_hertz(mel: Tensor) -> Tensor:
    return 700 * (10 ** (mel / 2595) - 1)


# Slaney's Auditory Toolbox: linear up to 1,000 Hz, which is 15 mel; from there 27 mel for a factor of 6.4.
_BREAK_HERTZ, _BREAK_MEL, _MEL_AN_E = 1000.0, 15.0, 27 / math.log(6.4)


def _slaney_mel(hertz: Tensor) -> Tensor:
    above = _BREAK_MEL + _MEL_AN_E * torch.log(hertz.clamp_min(_BREAK_HERTZ) / _BREAK_HERTZ)
    return torch.where(hertz < _BREAK_HERTZ, hertz * _BREAK_MEL / _BREAK_HERTZ, above)


def _slaney_hertz(mel: Tensor) -> Tensor:
    above = _BREAK_HERTZ * torch.exp((mel - _BREAK_MEL) / _MEL_AN_E)
    return torch.where(mel < _BREAK_MEL, mel * _BREAK_HERTZ / _BREAK_MEL, above)


_SCALES = {"htk": (_htk_mel, _htk_hertz), "slaney": (_slaney_mel, _slaney_hertz)}
