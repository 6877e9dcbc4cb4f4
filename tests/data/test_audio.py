"""Sounds from folders: what is decoded, what becomes of it, and what is refused."""

import math

import numpy as np
import pytest
import torch
from data_toys import message

from autocompress.data import load_data
from autocompress.data.spectra import AudioFeatures, Spectra
from autocompress.errors import InputError

RATE = 800


def tone(hertz, seconds=0.1, rate=RATE):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


@pytest.fixture
def soundfile():
    return pytest.importorskip("soundfile", reason="needs the extra audio")


@pytest.fixture
def write(soundfile, tmp_path):
    """Function that writes a sound below the test's folder."""

    def written(name, samples, rate=RATE, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, rate, **options)
        return path

    return written


@pytest.fixture
def classes(write, tmp_path):
    """Three sounds of each of two classes to train on, and one of each to test."""
    for split, count in (("train", 3), ("test", 1)):
        for hertz in (100, 200):
            for number in range(count):
                write(f"{split}/tone{hertz}/{number}.wav", tone(hertz))
    return f"audio:{tmp_path}"


def test_waveforms_by_class_folder(classes):
    data = load_data(classes)
    waveforms, labels = data.train.load([0, 5])
    assert waveforms.shape == (2, 1, 80)
    assert labels.tolist() == [0, 1]
    assert waveforms[1, 0].numpy() == pytest.approx(tone(200), abs=1e-4)
    assert (data.classes, len(data.train), len(data.test), data.notes) == (("tone100", "tone200"), 6, 2, ())
    assert not data.are_images


def test_a_flat_folder_has_no_labels_and_no_test_split(write, tmp_path):
    for number in range(3):
        write(f"{number}.flac", tone(100))
    data = load_data(f"audio:{tmp_path}", data_args={"layout": "NT"})
    waveforms, labels = data.train.load(range(3))
    assert (waveforms.shape, labels, data.classes, data.test) == ((3, 80), None, (), None)


def test_shorter_sounds_are_padded_and_longer_ones_cut(write, tmp_path):
    for number, seconds in enumerate((0.05, 0.1, 0.2)):
        write(f"{number}.wav", tone(100, seconds))
    data = load_data(f"audio:{tmp_path}")
    waveforms, _ = data.train.load([0, 2])
    assert waveforms.shape == (2, 1, 160)
    assert waveforms[0, 0, 40:].abs().max() == 0
    assert data.notes == (
        "of 3 sounds, 2 are padded with zeros to 0.2 s and 0 are cut; --audio-seconds sets the length",
    )
    cut = load_data(f"audio:{tmp_path}", audio_seconds=0.1)
    assert torch.equal(cut.train.load([2])[0], waveforms[1:, :, :80])
    assert cut.notes == (
        "of 3 sounds, 1 are padded with zeros to 0.1 s and 1 are cut; --audio-seconds sets the length",
    )


def test_channels_are_averaged(write, tmp_path):
    for number in range(3):
        write(f"{number}.wav", np.stack([tone(100), np.zeros(80)], 1))
    waveforms, _ = load_data(f"audio:{tmp_path}").train.load([0])
    assert waveforms[0, 0].numpy() == pytest.approx(tone(100) / 2, abs=1e-4)


def test_mixed_sample_rates_are_resampled_on_request_only(write, tmp_path):
    first = write("0.wav", tone(100))
    for number in (1, 2):
        other = write(f"{number}.wav", tone(100, rate=2 * RATE), 2 * RATE)
        other = other.with_name("1.wav")
    assert message(f"audio:{tmp_path}") == (
        f"`data` audio:FOLDER must hold sounds of one sample rate, got 800 Hz in {first} and 1600 Hz in {other}; pass "
        "--data-args '{sample_rate: 800}' to resample them."
    )
    waveforms, _ = load_data(f"audio:{tmp_path}", data_args={"sample_rate": RATE}).train.load([0, 1])
    assert waveforms.shape == (2, 1, 80)
    assert (waveforms[0] - waveforms[1])[0, 10:-10].abs().max() < 0.01


def test_layout_of_speech_commands(write, tmp_path):
    for word in ("no", "yes"):
        for number in range(4):
            write(f"{word}/{number}.wav", tone(100))
    write("_background_noise_/hum.wav", tone(50, 3.0))
    (tmp_path / "testing_list.txt").write_text("no/0.wav\nyes/3.wav\n")
    data = load_data(f"audio:{tmp_path}")
    assert (data.classes, len(data.train), len(data.test)) == (("no", "yes"), 6, 2)
    assert [path.name for path in data.test.files.paths] == ["0.wav", "3.wav"]
    assert data.notes == (f"{tmp_path}/_background_noise_ is no class and is left out",)
    ordered = load_data(f"audio:{tmp_path}", data_args={"classes": ["silence", "yes", "no"]})
    assert ordered.test.load([0, 1])[1].tolist() == [2, 1]
    assert message(f"audio:{tmp_path}", data_args={"classes": ["yes"]}) == (
        f"`classes` must name every class folder of {tmp_path} once, got also no."
    )


def test_a_class_without_sounds_is_told(classes, tmp_path):
    (tmp_path / "train/silence").mkdir()
    data = load_data(classes)
    assert data.classes == ("silence", "tone100", "tone200")
    assert data.notes == (f"1 of 3 classes have no sound in {tmp_path}/train: silence",)


def test_files_that_are_no_sounds(classes, write, tmp_path):
    path = tmp_path / "train/tone100/1.wav"
    path.write_bytes(b"RIFF but nothing else")
    assert message(classes).startswith(f"{path} must be a readable sound, got a broken one: ")
    write("train/tone100/1.wav", np.zeros(0))
    assert message(classes) == f"{path} must hold at least 1 sample, got 0."
    write("train/tone100/1.wav", np.array([0.0, np.nan]), subtype="FLOAT")
    data = load_data(classes)
    with pytest.raises(InputError) as error:
        data.train.load([1])
    assert str(error.value) == f"{path} must hold finite samples, got NaN or infinity."


def test_folders_that_hold_something_else(write, tmp_path):
    spec = f"audio:{tmp_path}"
    assert (
        message(spec) == f"{tmp_path} must hold at least 1 sound (.aif, .aiff, .flac, .mp3, .ogg, .opus, .wav), got 0."
    )
    write("a/0.wav", tone(100))
    assert message(spec) == (
        "`data` audio:FOLDER must hold folders train and test, two classes or more, or sounds alone, got the one "
        f"folder a in {tmp_path}."
    )
    write("b/0.wav", tone(100))
    write("loose.wav", tone(100))
    assert message(spec) == f"{tmp_path} must hold every sound in the folder of its class, got loose.wav beside them."
    assert message("audio:nowhere") == "`data` audio:FOLDER must be an existing folder, got nowhere."


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"n_fft": 200}, "`n_fft` must be less than twice the 80 samples of a sound in {folder}, got 200."),
        ({"f_max": 500.0, "n_fft": 64}, "`f_min` and `f_max` must be ascending and at most 400 Hz, half of the sample "
         "rate, got 0 and 500."),
        ({"n_mfcc": 20, "n_mels": 10}, "`n_mfcc` must be at most n_mels (10), got 20."),
        ({"win_length": 500}, "`win_length` must be at most n_fft (400), got 500."),
        ({"layout": "NCT"}, "`layout` of mfcc must be one of NCFT, NCTF, NFT, NTF, got NCT."),
        ({"n_ftt": 64}, "`data_args` of audio: must be of features, sample_rate, n_fft, win_length, hop_length, "
         "n_mels, n_mfcc, f_min, f_max, mel_scale, log, layout, classes, got n_ftt."),
        ({"features": "chroma"}, "`features` must be 'waveform', 'log-mel' or 'mfcc', got 'chroma'."),
        ({"hop_length": 0}, "`hop_length` must be greater than or equal to 1, got 0."),
    ],
)  # fmt: skip
def test_wrong_options(classes, tmp_path, arguments, expected):
    text = message(classes, data_args={"features": "mfcc", **arguments})
    assert text == expected.format(folder=tmp_path)


def test_sounds_that_do_not_fit_into_memory(classes, monkeypatch):
    data = load_data(classes, audio_seconds=100.0)
    monkeypatch.setattr("autocompress.data.audio.memory_limit", lambda _: 2_000_000)
    with pytest.raises(InputError) as error:
        data.train.load([0, 1])
    assert str(error.value) == (
        "`audio_seconds` must be short enough for 2 sounds to fit into the 2 MB of memory that are left, got 100, "
        "which take 3 MB."
    )


def test_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    assert message(f"audio:{tmp_path}") == (
        "`data` of sounds needs the package soundfile, got none; run pip install 'autocompress[audio]'."
    )


def features(waveforms, rate=16_000, **options):
    return Spectra(AudioFeatures.parse(options), rate).of(waveforms)


@pytest.fixture(scope="module")
def noise():
    """Two seconds of noise that grows, at 16 kHz."""
    torch.manual_seed(0)
    return torch.randn(2, 16_000) * torch.linspace(0, 1, 16_000)


def test_layouts_hold_the_same_numbers(noise):
    found = {layout: features(noise, features="mfcc", layout=layout) for layout in ("NCFT", "NCTF", "NFT", "NTF")}
    assert found["NCFT"].shape == (2, 1, 40, 81)
    assert torch.equal(found["NCFT"], features(noise, features="mfcc"))
    assert torch.equal(found["NCFT"][:, 0], found["NFT"])
    assert torch.equal(found["NFT"].transpose(1, 2), found["NTF"])
    assert torch.equal(found["NTF"], found["NCTF"][:, 0])


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_log_mel_as_transformers_computes_it(noise, scale):
    reference = pytest.importorskip("transformers.audio_utils", reason="needs the extra text")
    norm = "slaney" if scale == "slaney" else None
    bands = reference.mel_filter_bank(257, 64, 20.0, 4000.0, 16_000, norm=norm, mel_scale=scale)
    window = reference.window_function(400, "hann")
    options = {"n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 64, "f_min": 20.0, "f_max": 4000.0}
    found = features(noise, features="log-mel", log="ln", mel_scale=scale, layout="NFT", **options)
    for waveform, mine in zip(noise.numpy(), found, strict=True):
        power = reference.spectrogram(
            waveform, window, frame_length=400, hop_length=160, fft_length=512, power=2.0, mel_filters=bands
        )
        assert mine.numpy() == pytest.approx(np.log(power + 1e-6), abs=2e-5)


def test_mfcc_as_torchaudio_computes_them(noise):
    """The numbers are those of torchaudio 2.11's MFCC(16000, 13, log_mels=True) with these options."""
    options = {"n_fft": 480, "hop_length": 160, "n_mels": 40, "f_min": 20.0, "f_max": 4000.0}
    found = features(noise, features="mfcc", n_mfcc=13, log="ln", layout="NTF", **options)
    assert found.shape == (2, 101, 13)
    assert found[0, 50, :4].tolist() == pytest.approx([29.41075, -3.41395, 0.05008, -0.77882], abs=1e-4)


def test_decibels_of_a_sample_do_not_depend_on_its_batch(noise):
    found = features(noise, features="log-mel")
    assert torch.allclose(found[:1], features(noise[:1], features="log-mel"), atol=1e-4)
    assert (found.amax((1, 2, 3)) - found.amin((1, 2, 3))).tolist() == pytest.approx([80.0, 80.0], abs=1e-4)


def test_a_tone_lies_in_its_band():
    rate, hertz = 8_000, 1_000
    wave = torch.from_numpy(tone(hertz, 0.5, rate)).float()[None]
    found = features(wave, rate, features="log-mel", n_mels=32, layout="NFT")[0, :, 10]
    top = 2595 * math.log10(1 + rate / 2 / 700) / 33  # mel between the middles of two bands
    assert found.argmax().item() == round(2595 * math.log10(1 + hertz / 700) / top) - 1
