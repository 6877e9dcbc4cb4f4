"""`audio:FOLDER`: sounds in one folder a class, or without labels, as waveforms or spectra (`spectra`).

Files are those that libsndfile reads: WAV, FLAC, OGG, MP3 and others. Several channels are averaged. The layout of
Speech Commands is known: `testing_list.txt` names the test split, and `_background_noise_` is no class.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autocompress.budget import format_bytes
from autocompress.data.class_folders import FileKind, Files, Found, find_files
from autocompress.data.pixels import Normalization
from autocompress.data.sources import Splits
from autocompress.data.spectra import AudioFeatures, Spectra
from autocompress.errors import InputError, reason_of
from autocompress.files import check_regular
from autocompress.memory import memory_limit

SUFFIXES = (".aif", ".aiff", ".flac", ".mp3", ".ogg", ".opus", ".wav")
_KIND = FileKind("audio", "sound", SUFFIXES, no_classes=("_background_noise_",))
_TEST_LIST = "testing_list.txt"
_BYTES_A_SAMPLE = 16  # of a batch of waveforms: float32, and their spectra


@dataclass(frozen=True)
class Header:
    """What the header of a sound says: samples a second, and number of samples in each channel."""

    rate: int
    samples: int

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.samples / self.rate


@dataclass(frozen=True, eq=False)
class AudioSource:
    """Sound files that are decoded on demand.

    Attributes:
        files: files with their labels.
        samples: samples of every waveform; shorter ones are padded with zeros at the end, longer ones are cut.
        rate: samples a second; files of other rates are resampled.
        spectra: features of waveforms.
        normalization: normalization that is applied on loading.
    """

    files: Files
    samples: int
    rate: int
    spectra: Spectra
    normalization: Normalization

    def __len__(self) -> int:
        return len(self.files.paths)

    def load(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        chosen = [self.files.paths[index] for index in indices]
        limit, wanted = memory_limit(None), len(chosen) * self.samples * _BYTES_A_SAMPLE
        if wanted > limit:
            raise InputError(
                f"`audio_seconds` must be short enough for {len(chosen):,} sounds to fit into the "
                f"{format_bytes(limit)} of memory that are left, got {self.samples / self.rate:g}, which take "
                f"{format_bytes(wanted)}."
            )
        with ThreadPoolExecutor() as pool:  # libsndfile decodes without holding the interpreter lock
            waveforms = torch.stack(list(pool.map(self._read, chosen)))
        labels = None if self.files.labels is None else self.files.labels[torch.tensor(list(indices))]
        return self.normalization.apply(self.spectra.of(waveforms)), labels

    def _read(self, path: Path) -> Tensor:
        """(samples,) float32 of one file. Raises InputError where it can't be decoded, or holds NaN or infinity."""
        library = _soundfile()
        try:
            with library.SoundFile(path) as opened:
                rate = opened.samplerate
                sound = opened.read(math.ceil(self.samples * rate / self.rate), dtype="float32", always_2d=True)
        except (library.LibsndfileError, RuntimeError) as error:
            raise _broken(path, error) from error
        sound = sound.mean(1)
        if not np.isfinite(sound).all():
            raise InputError(f"{path} must hold finite samples, got NaN or infinity.")
        if rate != self.rate:
            from scipy.signal import resample_poly

            shared = math.gcd(rate, self.rate)
            sound = resample_poly(sound, self.rate // shared, rate // shared).astype(np.float32)
        waveform = torch.zeros(self.samples)
        waveform[: len(sound)] = torch.from_numpy(sound[: self.samples])
        return waveform


def load_audio(
    folder: str, seconds: float | None, normalization: Normalization, arguments: Mapping[str, Any]
) -> Splits:
    """Training and test source of a folder, and the class names.

    Args:
        folder: path of the folder.
        seconds: length that all sounds are brought to. Default: that of the longest training file.
        normalization: normalization that sources apply on loading.
        arguments: options of `AudioFeatures`.

    Raises:
        InputError: soundfile is not installed, a folder is missing or holds no sounds, a file can't be read, sample
            rates differ and none is named, or the features can't be taken of sounds so short.
    """
    features = AudioFeatures.parse(arguments)
    _soundfile()
    found = _renumbered(_split_by_list(find_files(Path(folder), _KIND), Path(folder)), features.classes)
    headers = {part: _headers(files) for part, files in _parts(found).items()}
    rate = features.sample_rate or _only_rate(found, headers)
    longest = max(header.seconds for header in headers["train"])
    samples = max(1, round((longest if seconds is None else seconds) * rate))
    spectra = Spectra(features, rate)
    if samples < spectra.least_samples:
        raise InputError(
            f"`n_fft` must be less than twice the {samples:,} samples of a sound in {folder}, got {features.n_fft:,}."
        )
    sources = {part: AudioSource(files, samples, rate, spectra, normalization) for part, files in _parts(found).items()}
    lengths = [round(header.seconds * rate) for part in headers.values() for header in part]
    notes = (*found.notes, *_length_notes(lengths, samples, rate))
    return Splits(sources["train"], sources.get("test"), found.classes, notes)


def _parts(found: Found) -> dict[str, Files]:
    """The files of every split."""
    return {"train": found.train} | ({} if found.test is None else {"test": found.test})


def _soundfile() -> ModuleType:
    """The library. Raises InputError where it is not installed."""
    try:
        import soundfile  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except (ModuleNotFoundError, OSError) as error:  # OSError: the C library that it wraps is missing
        raise InputError(
            "`data` of sounds needs the package soundfile, got none; run pip install 'autocompress[audio]'."
        ) from error
    library: ModuleType = soundfile
    return library


def _split_by_list(found: Found, root: Path) -> Found:
    """The files with those apart that `testing_list.txt` names, as in Speech Commands."""
    listed = root / _TEST_LIST
    if found.test is not None or found.train.labels is None or not listed.is_file():
        return found
    check_regular("`data`", listed)
    names = set(listed.read_text(errors="replace").split())
    tested = torch.tensor([path.relative_to(root).as_posix() in names for path in found.train.paths])
    if not tested.any() or tested.all():
        raise InputError(f"{listed} must name some of the sounds beside it, such as yes/1.wav, got none or all.")

    def chosen(mask: Tensor) -> Files:
        assert found.train.labels is not None
        paths = tuple(path for path, wanted in zip(found.train.paths, mask.tolist(), strict=True) if wanted)
        return Files(root, paths, found.train.labels[mask])

    return Found(chosen(~tested), chosen(tested), found.classes, found.notes)


def _renumbered(found: Found, classes: Sequence[str] | None) -> Found:
    """The files with labels that count in `classes`. Raises InputError where a folder is none of them."""
    if classes is None:
        return found
    if sorted(classes) != sorted({*classes} | {*found.classes}) or not found.classes:
        other = sorted({*found.classes} - {*classes}) or ["none"]
        raise InputError(f"`classes` must name every class folder of {found.train.folder} once, got also {other[0]}.")
    numbers = torch.tensor([list(classes).index(name) for name in found.classes])

    def renumbered(files: Files) -> Files:
        return Files(files.folder, files.paths, None if files.labels is None else numbers[files.labels])

    test = None if found.test is None else renumbered(found.test)
    return Found(renumbered(found.train), test, tuple(classes), found.notes)


def _headers(files: Files) -> list[Header]:
    """The headers of all files. Raises InputError where one can't be read."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_header, files.paths))


def _header(path: Path) -> Header:
    library = _soundfile()
    check_regular("A sound", path)
    try:
        info = library.info(path)
    except (library.LibsndfileError, RuntimeError) as error:
        raise _broken(path, error) from error
    if info.frames < 1 or info.samplerate < 1:
        raise InputError(f"{path} must hold at least 1 sample, got {info.frames}.")
    return Header(info.samplerate, info.frames)


def _broken(path: Path, error: BaseException) -> InputError:
    reason = reason_of(error).removeprefix(f"Error opening {str(path)!r}: ")
    return InputError(f"{path} must be a readable sound, got a broken one: {reason}.")


def _only_rate(found: Found, headers: Mapping[str, Sequence[Header]]) -> int:
    """The sample rate that all files have. Raises InputError where there are several."""
    first: dict[int, Path] = {}
    for part, files in _parts(found).items():
        for path, header in zip(files.paths, headers[part], strict=True):
            first.setdefault(header.rate, path)
    if len(first) > 1:
        (rate, path), (other, second) = list(first.items())[:2]
        raise InputError(
            f"`data` audio:FOLDER must hold sounds of one sample rate, got {rate} Hz in {path} and {other} Hz in "
            f"{second}; pass --data-args '{{sample_rate: {rate}}}' to resample them."
        )
    return next(iter(first))


def _length_notes(lengths: Sequence[int], samples: int, rate: int) -> tuple[str, ...]:
    """A line on sounds that are padded or cut, from the samples that each has and gets."""
    counts = Counter((length > samples) - (length < samples) for length in lengths)
    if not counts[1] + counts[-1]:
        return ()
    return (
        f"of {len(lengths):,} sounds, {counts[-1]:,} are padded with zeros to {samples / rate:g} s and {counts[1]:,} "
        "are cut; --audio-seconds sets the length",
    )
