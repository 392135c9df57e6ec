import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from mbt_core import MBT, Clip, ConfigError, DataError, Window, registry
from mbt_core.config import DataConfig, parse_modalities
from mbt_core.data.dataset import ClipDataset, Draw
from mbt_core.data.manifest import Manifest
from mbt_core.media import MediaError, decode_all
from mbt_signal.config import SignalConfig
from mbt_signal.drawing import HEIGHT, LINE, WIDTH, curves
from mbt_signal.modality import Signal
from mbt_signal.transforms import FLOOR, LogSpectrogram, interpolated, window_of
from modality_contract import check_adapt, check_card, check_samples, check_tokens, inputs, model_of, small_vit

NEUTRAL = {"rate": 50, "seconds": 2.0, "mean": 0.0, "std": 1.0, "channels": 2, "patch": 10}
AUGMENTED = NEUTRAL | {"jitter": 0.05, "scaling": 0.1, "time_masks": 2}
SPECTRAL = NEUTRAL | {"view": "spectrogram", "patch": [8, 8], "fft": 32, "hop": 4, "log_mean": -2.0, "log_std": 3.0}
NO_SCALE = ([0.0], [1.0])


def signal(**settings) -> Signal:
    return Signal("signal", parse_modalities({"signal": settings})["signal"])


def save(path: Path, array: np.ndarray) -> Clip:
    np.save(path, array.astype(np.float32))
    return Clip(path)


def waves(seconds: float, rate: float, hertz=(1.0, 3.0)) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([np.sin(2 * np.pi * f * time) for f in hertz]).astype(np.float32)


def write_wav(path: Path, samples: np.ndarray, rate: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(samples))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.rint(samples.T * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture
def clip(tmp_path) -> Clip:
    return save(tmp_path / "a.npy", waves(4, 50) + np.random.default_rng(0).normal(0, 0.1, (2, 200)))


# The contract


@pytest.mark.parametrize("settings", [NEUTRAL, AUGMENTED, SPECTRAL, SPECTRAL | {"jitter": 0.1}])
def test_contract(settings, clip):
    modality = signal(**settings)
    check_samples(modality, clip, Window(1, 3), augments="jitter" in settings)
    check_tokens(modality, modality.read(clip, Window(1, 3), None))
    check_adapt(modality)
    check_card(modality)


def test_evaluation_is_training_without_augmentation(clip):
    modality = signal(**NEUTRAL)
    trained = modality.read(clip, Window(1, 3), np.random.default_rng(0))
    assert torch.equal(trained, modality.read(clip, Window(1, 3), None))


def test_hooks_and_settings_import_no_torch():
    code = "import sys, mbt_signal; assert 'pydantic' not in sys.modules; import mbt_signal.config"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)
    assert registry().modality("signal").modality == "mbt_signal.modality:Signal"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chanels": 2}, r"unknown key\. Did you mean 'channels'\?"),
        ({"patch": [4, 4]}, r"patch .* does not fit view 'patches': expected a number of samples"),
        ({"patch": 4, "view": "spectrogram"}, r"expected \[time, frequency\]"),
        ({"select": [0, 1], "channels": 3}, "channels is 3, but select names 2"),
        ({"columns": ["x", "y"], "channels": 3}, "channels is 3, but columns names 2"),
        ({"columns": ["x"], "select": [0]}, "select and columns both say which channels to take: give one"),
        ({"select": []}, "select: .*at least 1 item"),
        ({"mean": [0.0, 1.0], "channels": 3}, "mean has 2 values for 3 channels"),
        ({"std": [1.0, 0.0]}, r"std must be above 0, got \[1.0, 0.0\]"),
        ({"fft": 32, "hop": 64}, "fft 32 must be even and not less than hop 64"),
        ({"rate": 10, "seconds": 2, "patch": 30}, "patch 30 is larger than the input of 20 that 2.0 s at rate 10.0"),
        ({"seconds": 0}, "seconds: .*greater than 0"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        signal(**settings)


def test_auto_must_be_filled():
    with pytest.raises(ConfigError, match="signal: channels is still 'auto'"):
        signal().blank()
    with pytest.raises(ConfigError, match="signal: rate is still 'auto'"):
        _ = signal(channels=2).blank()


def test_auto_fields_are_those_of_the_view():
    assert "fft" not in SignalConfig().auto_fields()
    assert "fft" in SignalConfig(view="spectrogram").auto_fields()


# Reading


def test_window_is_cut_normalised_and_padded(tmp_path):
    clip = save(tmp_path / "a.npy", np.stack([np.arange(100), 10 - 2 * np.arange(100)]))
    modality = signal(**NEUTRAL | {"mean": [10.0, 10.0], "std": [2.0, 4.0]})
    sample = modality.read(clip, Window(1.5, 3.5), None)
    time = np.arange(75, 100)
    np.testing.assert_allclose(sample[0, :25], (time - 10) / 2, rtol=1e-6)
    np.testing.assert_allclose(sample[1, :25], (-2 * time) / 4, rtol=1e-6)
    assert sample[:, 25:].eq(0).all()
    assert sample.shape == (2, 100)


def test_kinds_of_files_are_the_same(tmp_path):
    data = waves(4, 50)
    np.save(tmp_path / "a.npy", data)
    np.savez(tmp_path / "a.npz", data)
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"{a!r},{b!r}\n" for a, b in data.T.tolist()))
    modality = signal(**NEUTRAL)
    expected = modality.read(Clip(tmp_path / "a.npy"), Window(0, 2), None)
    for name in ("a.npz", "a.csv"):
        assert torch.equal(modality.read(Clip(tmp_path / name), Window(0, 2), None), expected)
    assert modality.duration(Clip(tmp_path / "a.npy")) == 4


def test_a_wav_carries_its_rate(tmp_path):
    clip = Clip(write_wav(tmp_path / "a.wav", 0.5 * waves(4, 200), 200))
    modality = signal(**NEUTRAL | {"rate": 200, "source_rate": 999})
    assert clip.has("array")
    assert modality.duration(clip) == 4
    np.testing.assert_allclose(modality.read(clip, Window(1, 3), None), 0.5 * waves(4, 200)[:, 200:600], atol=1e-4)
    assert signal(**NEUTRAL).read(clip, Window(1, 3), None).shape == (2, 100)


def test_decoded_clips_read_the_same(tmp_path):
    clip = Clip(write_wav(tmp_path / "a.wav", 0.5 * waves(4, 200), 200))
    modality = signal(**NEUTRAL)
    held = decode_all(clip, {"array"}, 0, 4, None, 0)
    assert modality.duration(held) == 4
    assert torch.equal(modality.read(held, Window(1, 3), None), modality.read(clip, Window(1, 3), None))


def test_chosen_channels(tmp_path):
    clip = save(tmp_path / "a.npy", np.arange(6)[:, None] + np.zeros((6, 200)))
    sample = signal(**NEUTRAL | {"select": [4, 1]}).read(clip, Window(0, 2), None)
    assert sample[:, 0].tolist() == [4, 1]
    with pytest.raises(MediaError, match=r"a\.npy: select asks for channel 6, it has 0 to 5"):
        signal(**NEUTRAL | {"select": [0, 6]}).read(clip, Window(0, 2), None)
    with pytest.raises(MediaError, match=r"a\.npy: it has 6 channels, expected 2"):
        signal(**NEUTRAL).read(clip, Window(0, 2), None)


def test_gaps(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n,0\n1,\n,\n3,6\n,\n" + "0,0\n" * 100)
    clip = Clip(tmp_path / "a.csv")
    with pytest.raises(MediaError, match=r"a\.csv: 6 values are missing .* channel 0 at sample 0; .*gaps=interpolate"):
        signal(**NEUTRAL).read(clip, Window(0, 2), None)
    sample = signal(**NEUTRAL | {"gaps": "interpolate"}).read(clip, Window(0, 2), None)
    assert sample[:, :6].tolist() == [[1, 1, 2, 3, 1.5, 0], [0, 2, 4, 6, 3, 0]]
    empty = np.full((1, 4), np.nan, np.float32)
    assert np.isnan(interpolated(empty)).all()


def test_chosen_columns_are_counted_in_the_file(tmp_path):
    settings = NEUTRAL | {"select": [1, 2], "gaps": "interpolate"}
    for first in ("20", ""):
        (tmp_path / "a.csv").write_text("temp,ax,ay,az\n" + f"{first},1,2,3\n" * 100)
        assert signal(**settings).read(Clip(tmp_path / "a.csv"), Window(0, 2), None)[:, 0].tolist() == [1, 2]
    (tmp_path / "a.csv").write_text("temp,ax,ay,az\n20,1,2,3\nERR,1,2,3\n")
    with pytest.raises(MediaError, match=r"a\.csv: .*column 'temp' holds numbers, but 'ERR' at sample 1: empty the"):
        signal(**settings).read(Clip(tmp_path / "a.csv"), Window(0, 2), None)


def test_columns_chosen_by_name(tmp_path):
    (tmp_path / "a.csv").write_text("timestamp,ax,ay,az\n" + "".join(f"{i},1,2,3\n" for i in range(100)))
    settings = NEUTRAL | {"columns": ["az", "ax"]}
    clip = Clip(tmp_path / "a.csv")
    assert signal(**settings).read(clip, Window(0, 2), None)[:, 0].tolist() == [3, 1]
    held = decode_all(clip, {"array"}, 0, 2, None, 0)
    held.save(tmp_path / "a.clip")
    for kept in (held, type(held).load(tmp_path / "a.clip")):
        assert signal(**settings).read(kept, Window(0, 2), None)[:, 0].tolist() == [3, 1]
    with pytest.raises(MediaError, match=r"a\.csv: columns asks for 'gx', its channels are 'ax', 'ay', 'az'"):
        signal(**NEUTRAL | {"columns": ["ax", "gx"]}).read(clip, Window(0, 2), None)
    with pytest.raises(MediaError, match=r"b\.npy: columns asks for 'az', its channels are unnamed"):
        signal(**settings).read(save(tmp_path / "b.npy", waves(4, 50)), Window(0, 2), None)


def test_a_file_that_says_its_rate_counts_in_seconds(tmp_path):
    (tmp_path / "a.csv").write_text("1574084410.0, 1574084410.0\n32.0, 32.0\n" + "1,2\n" * 320)
    clip, modality = Clip(tmp_path / "a.csv"), signal(**NEUTRAL)
    assert modality.duration(clip) == 10
    assert modality.read(clip, Window(0, 2), None).shape == (2, 100)
    assert Signal.fit(parse_modalities({"signal": {}})["signal"], [(clip, None)]).rate == 32


def test_arrays_of_other_dimensions(tmp_path):
    clip = save(tmp_path / "a.npy", np.zeros((2, 3, 4)))
    with pytest.raises(MediaError, match=r"an array of \[2, 3, 4\], expected \[channels, samples\]"):
        signal(**NEUTRAL).read(clip, Window(0, 2), None)


# Resampling


@pytest.mark.parametrize(("own_rate", "rate"), [(100, 50), (50, 100), (44.1, 16), (12.5, 10)])
def test_resampled_sine(own_rate, rate):
    source = waves(20, own_rate, (0.5,))
    window = window_of(source, own_rate, NO_SCALE, rate, 5.0, round(10 * rate))
    time = 5 + np.arange(round(10 * rate)) / rate
    np.testing.assert_allclose(window[0], np.sin(2 * np.pi * 0.5 * time), atol=0.01)


def test_windows_agree_where_they_overlap():
    source = np.random.default_rng(0).normal(size=(2, 900)).astype(np.float32)
    scale = ([0.3, -2.0], [2.0, 0.5])
    whole = window_of(source, 90, scale, 64, -1.0, 12 * 64)
    for start in (0.0, 2.5, 9.0):
        part = window_of(source, 90, scale, 64, start, 128)
        np.testing.assert_allclose(part, whole[:, round((start + 1) * 64) :][:, :128], atol=1e-5)
    assert not whole[:, :64].any()
    assert not whole[:, 11 * 64 :].any()


@pytest.mark.parametrize(("own_rate", "rate"), [(99.97, 100), (30.003, 30), (1 / 0.0195, 50), (100, 50), (44.1, 16)])
def test_windows_do_not_drift_with_the_recording(own_rate, rate):
    source = np.zeros((1, round(3700 * own_rate)), np.float32)
    source[0, round(3600 * own_rate)] = 1
    window = window_of(source, own_rate, NO_SCALE, rate, 3590, round(20 * rate))
    assert np.abs(window[0]).argmax() / rate == pytest.approx(10, abs=2 / min(own_rate, rate))
    end = window_of(np.ones_like(source), own_rate, NO_SCALE, rate, 3695, round(10 * rate))
    assert np.flatnonzero(end).max() / rate == pytest.approx(5, abs=2 / rate)


def test_what_would_alias_is_filtered():
    source = waves(10, 1000, (400.0,))
    assert np.abs(window_of(source, 1000, NO_SCALE, 100, 2.0, 500)).max() < 0.02


def test_a_constant_stays_constant():
    source = np.full((1, 1000), 9.81, np.float32)
    window = window_of(source, 100, ([9.81], [0.1]), 37, 1.0, 100)
    assert np.abs(window).max() < 1e-4


def test_rates_too_far_apart():
    with pytest.raises(DataError, match="0.01 samples a second cannot be resampled to 100"):
        window_of(np.zeros((1, 10), np.float32), 0.01, NO_SCALE, 100, 0, 100)


# Fit


def test_fit_without_any_setting(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.normal([[3], [-1], [0]], [[2], [0.5], [0]], (3, 100)) for _ in range(10)]
    clips = [(save(tmp_path / f"{i}.npy", x), None) for i, x in enumerate(arrays)]
    config = Signal.fit(SignalConfig(), clips)
    assert config.auto_fields() == []
    assert (config.channels, config.rate, config.seconds, config.patch) == (3, 1.0, 100.0, 4)
    np.testing.assert_allclose(config.mean, [3, -1, 0], atol=0.3)
    np.testing.assert_allclose(config.std, [2, 0.5, 1], rtol=0.1)
    values = torch.stack([Signal("a", config).read(clip, Window(0, 100), None) for clip, _ in clips])
    np.testing.assert_allclose(values[:, :2].mean((0, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(values[:, :2].std((0, 2)), 1, atol=1e-3)
    assert Signal("a", config).tokenizer(8).grid == (25,)
    assert Signal.fit(config, iter(())) is config


def test_fit_of_long_recordings(tmp_path):
    clips = [(save(tmp_path / "a.npy", waves(60, 500)), None)]
    config = Signal.fit(SignalConfig(source_rate=500), clips)
    assert (config.rate, config.patch, config.samples) == (500, 64, 128 * 64)
    config = Signal.fit(SignalConfig(source_rate=500, rate=100, seconds=10), clips)
    assert (config.rate, config.patch, config.samples) == (100, 8, 1000)
    config = Signal.fit(SignalConfig(source_rate=500, rate=100, patch=4), clips)
    assert (config.patch, config.samples) == (4, 512)


@pytest.mark.parametrize(
    ("samples", "patch", "conv"), [(60, 4, 4), (128, 4, 4), (200, 4, 8), (286, 4, 16), (1000, 8, 32), (9000, 64, 64)]
)
def test_fit_makes_fewer_tokens_for_convolutions(tmp_path, samples, patch, conv):
    clips = [(save(tmp_path / "a.npy", waves(1, samples)), None)]
    assert Signal.fit(SignalConfig(), clips).patch == patch
    assert Signal.fit(SignalConfig(stem="conv"), clips).patch == conv


def test_fit_of_a_spectrogram(tmp_path):
    rng = np.random.default_rng(0)
    clips = [(save(tmp_path / f"{i}.npy", rng.normal(5, 3, (2, 5000))), None) for i in range(4)]
    config = Signal.fit(SignalConfig(source_rate=500, view="spectrogram"), clips)
    assert (config.hop, config.fft, config.patch) == (40, 256, (16, 16))
    assert config.size == (125, 128)
    # the logarithm of an exponential distribution: minus Euler's constant, pi / sqrt(6)
    assert config.log_mean == pytest.approx(-0.577, abs=0.05)
    assert config.log_std == pytest.approx(1.28, abs=0.05)
    short = Signal.fit(SignalConfig(view="spectrogram"), [(save(tmp_path / "b.npy", rng.normal(0, 1, (2, 12))), None)])
    assert short.patch == (12, 16)


def test_fit_takes_a_wav_files_rate(tmp_path):
    clips = [(Clip(write_wav(tmp_path / f"{r}{i}.wav", 0.5 * waves(1, r), r)), None) for r, i in
             ((8000, 0), (8000, 1), (4000, 2))]  # fmt: skip
    config = Signal.fit(SignalConfig(), clips)
    assert (config.rate, config.channels) == (8000, 2)
    assert config.samples == 8000


def test_fit_takes_the_rows_spans(tmp_path):
    x = np.concatenate([np.zeros((1, 100)), np.full((1, 100), 7.0)], 1)
    clip = save(tmp_path / "a.npy", x)
    config = Signal.fit(SignalConfig(source_rate=10), [(clip, Window(10, 20))])
    assert config.mean == [7.0]
    assert config.std == [1.0]
    assert config.seconds == 10
    with pytest.raises(DataError, match="rows start or end at given seconds, .*give source_rate"):
        Signal.fit(SignalConfig(), [(clip, Window(10, 20))])


def test_fit_refuses(tmp_path):
    with pytest.raises(DataError, match=r"signal: no readable clip to fill channels, rate, .*the first: .*none\.npy: "):
        Signal.fit(SignalConfig(), [(Clip(tmp_path / "none.npy"), None)])
    tall = save(tmp_path / "tall.npy", np.zeros((100, 3)))
    with pytest.raises(DataError, match=r"\[100, 3\]: expected \[channels, samples\]; transpose"):
        Signal.fit(SignalConfig(), [(tall, None)])
    flat = save(tmp_path / "flat.npy", np.zeros((3, 100)))
    with pytest.raises(DataError, match=r"channels: 3 in 2, 100 in 1 \(.*tall\.npy has 100\); choose some by"):
        Signal.fit(SignalConfig(), [(flat, None), (flat, None), (tall, None)])
    with pytest.raises(DataError, match=r"no file has 2 channels; .*flat\.npy has 3"):
        Signal.fit(SignalConfig(channels=2), [(flat, None), (flat, None)])


@pytest.mark.parametrize("settings", [{"select": [0, 1, 2]}, {"channels": 3}])
def test_fit_refuses_transposed_arrays(tmp_path, settings):
    tall = save(tmp_path / "tall.npy", np.random.default_rng(0).normal(size=(100, 3)))
    with pytest.raises(DataError, match=r"\[100, 3\]: expected \[channels, samples\]; transpose"):
        Signal.fit(SignalConfig(**settings), [(tall, None)])
    assert Signal.fit(SignalConfig(select=[0, 1], channels=2), [(tall, None)]).seconds == 3  # really so short


def test_fit_leaves_out_files_with_other_channels(tmp_path):
    rng = np.random.default_rng(0)
    clips = [(save(tmp_path / f"{i}.npy", rng.normal(size=(5 if i == 1 else 3, 40))), None) for i in range(4)]
    config = Signal.fit(SignalConfig(channels=3), clips)
    assert (config.channels, len(config.mean)) == (3, 3)
    assert config == Signal.fit(SignalConfig(channels=3), clips[:1] + clips[2:])


# Augmentation


def read_training(settings: dict, clip: Clip, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    modality = signal(**NEUTRAL | settings)
    window = Window(1, 3)
    return modality.read(clip, window, np.random.default_rng(seed)), modality.read(clip, window, None)


def test_scaling_is_one_factor_per_channel(clip):
    trained, evaluated = read_training({"scaling": 0.1}, clip)
    factor = trained / evaluated
    assert factor.std(1).max() < 1e-5
    assert 0.5 < factor[0, 0] < 1.5
    assert factor[0, 0] != factor[1, 0]


def test_jitter_has_the_deviation(clip):
    trained, evaluated = read_training({"jitter": 0.05}, clip)
    assert (trained - evaluated).std() == pytest.approx(0.05, rel=0.2)


def test_time_masks_are_spans_of_all_channels(clip):
    lengths = []
    for seed in range(30):
        trained, evaluated = read_training({"time_masks": 1, "time_mask_seconds": 1.0}, clip, seed)
        masked = trained.eq(0).all(0)
        assert torch.equal(trained[:, ~masked], evaluated[:, ~masked])
        assert int(masked.int().diff().abs().sum()) <= 2
        lengths.append(int(masked.sum()))
    assert max(lengths) < 50
    assert np.mean(lengths) == pytest.approx(24.5, abs=8)


def test_nothing_is_added_past_the_end(clip):
    modality = signal(**AUGMENTED)
    assert modality.read(clip, Window(3, 5), np.random.default_rng(0))[:, 50:].eq(0).all()


# Views


def test_spectrogram_of_a_sine():
    fft, hop, rate, hertz = 64, 16, 640, 100
    x = torch.from_numpy(waves(2, rate, (hertz,)))[None]
    spectrogram = LogSpectrogram(fft, hop)(x)
    assert spectrogram.shape == (1, 1, 80, 32)
    assert (spectrogram[0, 0, 4:-4].argmax(1) == hertz * fft // rate).all()
    window = np.hanning(fft + 1)[:-1]
    part = x[0, 0, 40 * hop + hop // 2 - fft // 2 :][:fft].numpy() * window
    expected = np.log(np.abs(np.fft.rfft(part)) ** 2 / (window**2).sum() + FLOOR)[:-1]
    np.testing.assert_allclose(spectrogram[0, 0, 40], expected, atol=1e-3)


def test_spectrogram_patches_take_an_image_kernel():
    modality = signal(**SPECTRAL)
    assert modality.tokenizer(8).grid == (3, 2)
    kernel = small_vit(8).kernel
    adapted = modality.adapt(small_vit(8))["weight"]
    torch.testing.assert_close(adapted, (kernel.sum(1, keepdim=True) / 2).expand(-1, 2, -1, -1))


def test_pictures(clip):
    modality = signal(**NEUTRAL)
    sample = modality.read(clip, Window(0, 2), None)
    plain, shaded = modality.draw(sample, None).stills[0], modality.draw(sample, np.eye(10)[3]).stills[0]
    assert plain.shape == shaded.shape == (2 * HEIGHT, WIDTH, 3)
    changed = (plain != shaded).any((0, 2)).nonzero()[0] / WIDTH
    assert changed.min() > 0.2
    assert changed.max() < 0.5
    modality = signal(**SPECTRAL)
    still = modality.draw(modality.read(clip, Window(0, 2), None), np.ones((3, 2))).stills[0]
    assert still.dtype == np.uint8
    assert still.shape == (2 * (16 * 15 + 1), 25 * 15, 3)


@pytest.mark.parametrize("samples", [1, 2, 100, 5000])
def test_curves_of_all_lengths(samples):
    ramp = np.linspace(0, 1, samples)[None]
    traced = (curves(ramp) == LINE).all(2)
    assert traced.any(0).all()
    rows = traced.argmax(0)
    assert (np.diff(rows) <= 0).all()


# In a model


def test_several_instances_in_one_model(tmp_path, clip):
    fitted = Signal.fit(SignalConfig(source_rate=50), [(clip, None)])
    config = {
        "modalities": {"accel": fitted, "gyro": fitted.model_copy(update={"view": "patches", "patch": 20})},
        "backbone": {"dim": 16, "depth": 2, "heads": 2},
        "fusion": {"layer": 1},
        "head": {"classes": 3},
    }
    model = MBT(config)
    given = {name: inputs(m, m.read(clip, Window(0, 4), None))[0] for name, m in model.modalities.items()}
    out = model(given)
    assert out.logits.shape == (1, 3)
    assert out.tokens["accel"].shape[1] == 1 + 50
    assert out.tokens["gyro"].shape[1] == 1 + 10
    model_of(signal(**SPECTRAL))


def test_windows_are_placed_by_the_configured_rate(tmp_path):
    save(tmp_path / "a.npy", np.tile(np.arange(500), (2, 1)))
    (tmp_path / "m.csv").write_text("id,signal,label,split\na,a.npy,x,train\n")
    modalities = {"signal": signal(**NEUTRAL)}
    manifest = Manifest.read(tmp_path / "m.csv", {"signal": "array"}, DataConfig())
    dataset = ClipDataset(manifest, modalities, {}, config=DataConfig(), seed=0, training=False, views=3)
    first = [int(example.samples["signal"][0, 0]) for example in dataset[Draw(0, 0)]]
    assert first == [0, 200, 400]
    training = ClipDataset(manifest, modalities, {}, config=DataConfig(), seed=0, training=True)
    starts = [int(training[Draw(epoch, 0)][0].samples["signal"][0, 0]) for epoch in range(20)]
    assert len(set(starts)) > 15
    assert 0 <= min(starts) <= max(starts) <= 400
