import pickle
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mbt_audio.config import AudioConfig
from mbt_audio.modality import Audio, LogMel, covered_by, draw_masks
from mbt_core import MBT, Clip, ConfigError, DataError, Window, registry
from mbt_core.config import parse_modalities
from mbt_core.media import MediaError
from mbt_core.modality.patch_weights import VitWeights

STATISTICS = {"mean": -3.0, "std": 2.0}
SMALL = {"seconds": 1.0, "mel_bins": 64} | STATISTICS
MASKED = SMALL | {"time_masks": 2, "time_mask_frames": 40, "freq_masks": 1, "freq_mask_bins": 24}


class Sound:
    """A stand-in for a clip that holds one waveform, zero outside of it."""

    def __init__(self, samples: np.ndarray, rate: int = 16_000) -> None:
        self.samples, self.rate = samples.astype(np.float32), rate

    def duration_of(self, reads: str) -> float:
        return len(self.samples) / self.rate

    def waveform(self, start: float, stop: float, rate: int) -> np.ndarray:
        assert rate == self.rate
        index = round(start * rate) + np.arange(round((stop - start) * rate))
        inside = (index >= 0) & (index < len(self.samples))
        return np.where(inside, self.samples[np.where(inside, index, 0)], np.float32(0))


class Broken:
    def duration_of(self, reads: str) -> float:
        return 1.0

    def waveform(self, start: float, stop: float, rate: int) -> np.ndarray:
        raise MediaError("gone")


def audio(**settings) -> Audio:
    return Audio("audio", parse_modalities({"audio": settings})["audio"])


def noise(seconds: float, rate: int = 16_000, seed: int = 0, loudness: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, loudness, round(seconds * rate)).clip(-1, 1)


def sine(hertz: float, seconds: float, rate: int = 16_000) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def inputs(modality: Audio, *samples) -> torch.Tensor:
    return modality.preprocessor()(modality.collate(samples))


def write_wav(path: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.rint(samples * 32767).astype("<i2").tobytes())
    return path


def plain_log_mel(samples: np.ndarray, mel_bins: int = 128, rate: int = 16_000, points: int = 1024) -> np.ndarray:
    """The front end written anew from its definition, in numpy and float64: [frames, mel_bins]."""
    hop, length = rate // 100, round(rate * 0.025)
    window = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(length) / length)
    rows = []
    for frame in range(len(samples) // hop):
        begin = frame * hop + hop / 2 - length / 2
        index = int(np.ceil(begin)) + np.arange(length)
        inside = (index >= 0) & (index < len(samples))
        rows.append(np.where(inside, samples[np.where(inside, index, 0)], 0.0) * window)
    power = np.abs(np.fft.rfft(rows, points)) ** 2
    to_mel = lambda hertz: 2595 * np.log10(1 + hertz / 700)  # noqa: E731
    edges = 700 * (10 ** (np.linspace(0, to_mel(min(8000, rate / 2)), mel_bins + 2) / 2595) - 1)
    hertz = np.arange(points // 2 + 1) * rate / points
    filters = np.stack(
        [np.interp(hertz, edges[i : i + 3], [0, 1, 0], left=0, right=0) for i in range(mel_bins)], axis=1
    )
    return np.log(power @ filters + 1e-6)


# Configuration


def test_defaults_are_the_papers_input():
    modality = audio()
    assert modality.tokenizer(8).grid == (50, 8)
    assert modality.seconds == 8.0
    assert modality.decode_settings() == {"rate": 16_000}
    assert (modality.config.samples, modality.config.frames) == (128_000, 800)
    assert (modality.config.time_masks, modality.config.freq_masks) == (0, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mel_bin": 64}, r"modalities\.audio\.mel_bin: unknown key\. Did you mean 'mel_bins'\?"),
        ({"rate": 22_050}, r"modalities\.audio\.rate: .*multiple of 100, got 22050"),
        ({"mel_bins": 8}, r"patch \[16, 16\] spans more mel bins than mel_bins 8"),
        ({"seconds": 0.1}, r"more frames than the 10 of 0\.1 s; give at least 0\.16 seconds"),
        ({"std": 0}, r"modalities\.audio\.std: .*greater than 0"),
        ({"patch": [16]}, r"modalities\.audio\.patch"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        audio(**settings)


def test_every_field_has_help():
    assert [name for name, field in AudioConfig.model_fields.items() if not field.description] == []


def test_auto_must_be_filled():
    with pytest.raises(ConfigError, match=r"mean and std are still 'auto'.*mean 1\.102, std 2\.762"):
        audio().preprocessor()
    with pytest.raises(ConfigError, match="seconds is still 'auto'"):
        audio(seconds="auto").tokenizer(8)


def test_hooks_and_settings_import_no_torch():
    code = "import sys, mbt_audio; assert 'pydantic' not in sys.modules; import mbt_audio.config"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)
    assert registry().modality("audio").modality == "mbt_audio.modality:Audio"


# The front end


@pytest.mark.parametrize(
    ("seconds", "mel_bins", "rate", "points"),
    [
        (8.0, 128, 16_000, 1024),
        (1.0, 64, 16_000, 1024),
        (0.45, 31, 16_000, 1024),
        (1.0, 64, 8_000, 512),
        (1.0, 40, 11_100, 1024),
    ],
)
def test_log_mel_is_its_definition(seconds, mel_bins, rate, points):
    samples = (noise(seconds, rate) + sine(1000, seconds, rate)) / 2
    samples[: len(samples) // 3] *= 0.01
    whole = np.rint(samples * 32768).astype(np.int16)
    expected = plain_log_mel(whole / 32768, mel_bins, rate, points)
    out = LogMel(rate, mel_bins)(torch.from_numpy(whole)[None])
    assert out.shape == (1, round(seconds * 100), mel_bins)
    np.testing.assert_allclose(out[0].numpy(), expected, atol=2e-4)


def test_input_is_the_normalised_spectrogram():
    samples = noise(8.0)
    modality = audio(mean=1.102, std=2.762, channels=3)
    x = inputs(modality, modality.read(Sound(samples), Window(0, 8), None))
    assert x.shape == (1, 3, 800, 128)
    assert x.dtype == torch.float32
    expected = (plain_log_mel(samples) - 1.102) / 2.762
    np.testing.assert_allclose(x[0, 2].numpy(), expected, atol=5e-3)  # the waveform is rounded to 16 bits
    assert torch.equal(x[0, 0], x[0, 2])


def test_frames_lie_at_their_time_and_bins_at_their_pitch():
    pulse = np.zeros(16_000)
    pulse[5_360] = 0.9  # 0.335 s: the middle of frame 33
    tone = sine(1000, 1.0)
    modality = audio(**SMALL)
    x = inputs(modality, *(modality.read(Sound(s), Window(0, 1), None) for s in (pulse, tone)))[:, 0]
    assert x[0].mean(1).argmax() == 33
    assert torch.allclose(x[0, 32], x[0, 34], atol=0.02)
    edges = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 66)
    assert x[1].mean(0).argmax() == np.abs(edges[1:-1] - 2595 * np.log10(1 + 1000 / 700)).argmin()


def test_rounding_to_16_bits_does_not_matter():
    """Noise of a third of a step beside loud noise; log-mel values usually have a deviation of about 2.8."""
    samples = noise(2.0)
    samples[:16_000] *= 1e-4
    modality = audio(seconds=2.0, mean=0, std=1)
    x = inputs(modality, modality.read(Sound(samples), Window(0, 2), None))
    error = np.abs(x[0, 0].numpy() - plain_log_mel(samples))
    assert np.sqrt((error[:99] ** 2).mean()) < 0.06
    assert error[101:].max() < 0.02
    silence = inputs(modality, modality.read(Sound(np.zeros(32_000)), Window(0, 2), None))
    np.testing.assert_allclose(silence.numpy(), np.log(1e-6), atol=1e-5)


def test_stays_in_float32_under_autocast():
    modality = audio(**SMALL)
    batch = modality.collate([modality.read(Sound(noise(1.0)), Window(0, 1), None)])
    preprocessor = modality.preprocessor()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = preprocessor(batch)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, preprocessor(batch))


def test_batch_is_its_samples():
    modality = audio(**SMALL)
    samples = [modality.read(Sound(noise(1.0, seed=i)), Window(0, 1), np.random.default_rng(i)) for i in range(3)]
    torch.testing.assert_close(inputs(modality, *samples), torch.cat([inputs(modality, s) for s in samples]))


# Samples


@pytest.mark.parametrize("settings", [SMALL, MASKED])
def test_training_evaluation_and_blank_agree(settings):
    modality, clip = audio(**settings), Sound(noise(1.0))
    samples = [
        modality.read(clip, Window(0, 1), np.random.default_rng(0)),
        modality.read(clip, Window(0, 1), None),
        modality.blank(),
    ]
    described = [{k: (v.shape, v.dtype) for k, v in sample.items()} for sample in samples]
    assert described[0] == described[1] == described[2]
    assert samples[0]["waveform"].dtype == torch.int16
    assert inputs(modality, *samples).shape == (3, 1, 100, 64)


def test_same_seed_same_sample():
    modality, clip = audio(**MASKED), Sound(noise(1.0))
    one, two, other = (modality.read(clip, Window(0, 1), np.random.default_rng(s)) for s in (3, 3, 4))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["time_masks"], other["time_masks"])


def test_waveform_is_exact_and_clipped():
    samples = np.arange(-8_000, 8_000) / 32768
    samples[:2] = -1.5, 1.5
    read = audio(**SMALL).read(Sound(samples), Window(0, 1), None)["waveform"].numpy()
    assert read[:2].tolist() == [-32768, 32767]
    assert np.array_equal(read[2:], np.arange(-7_998, 8_000))


def test_length_is_that_of_the_settings_whatever_the_window():
    modality = audio(**SMALL | {"seconds": 0.456})
    assert modality.seconds == 0.46
    read = modality.read(Sound(noise(1.0)), Window(0.7, 1.156), None)
    assert read["waveform"].shape == (7_360,)
    assert (read["waveform"][4_800:] == 0).all()  # past the end
    assert inputs(modality, read).shape == (1, 1, 46, 64)


# Masks


def test_masks_are_drawn_by_the_references_rule():
    rng = np.random.default_rng(0)
    u, v = np.random.default_rng(0).random((5, 2)).T
    masks = draw_masks(rng, 5, 48, 128)
    assert masks[:, 1].tolist() == [int(x * 48) for x in u]
    assert masks[:, 0].tolist() == [int(y * (128 - int(x * 48) + 1)) for x, y in zip(u, v, strict=True)]
    assert draw_masks(None, 5, 48, 128).tolist() == [[0, 0]] * 5


def test_masks_stay_inside_and_reach_their_bounds():
    masks = draw_masks(np.random.default_rng(0), 20_000, 192, 100)
    start, length = masks.T
    assert (start >= 0).all()
    assert (start + length <= 100).all()
    assert length.min() == 0
    assert length.max() == 100  # limited by the axis
    lengths = draw_masks(np.random.default_rng(0), 20_000, 48, 128)[:, 1]
    assert (lengths.min(), lengths.max()) == (0, 47)


def test_covered_by():
    masks = torch.tensor([[[0, 2], [4, 1]], [[1, 0], [3, 3]]], dtype=torch.int32)
    assert covered_by(masks, 6).int().tolist() == [[1, 1, 0, 0, 1, 0], [0, 0, 0, 1, 1, 1]]


def test_masked_values_are_zero_and_others_unchanged():
    modality, clip = audio(**MASKED, channels=3), Sound(noise(1.0))
    plain = modality.read(clip, Window(0, 1), None)
    masked = dict(plain)
    masked["time_masks"] = torch.tensor([[10, 20], [90, 10]], dtype=torch.int32)
    masked["freq_masks"] = torch.tensor([[5, 7]], dtype=torch.int32)
    before, after = inputs(modality, plain, masked)
    expected = before.clone()
    expected[:, 10:30] = expected[:, 90:] = expected[:, :, 5:12] = 0
    assert torch.equal(after, expected)
    assert (before != 0).all()


# Tokenizer


def test_tokens_fill_the_grid_and_gradients_flow():
    modality = audio(seconds=1.1, mel_bins=70, patch=[8, 16], channels=2, **STATISTICS)
    tokenizer = modality.tokenizer(24)
    assert tokenizer.grid == (13, 4)
    tokens = tokenizer(inputs(modality, modality.read(Sound(noise(2.0)), Window(0, 1.1), None), modality.blank()))
    assert tokens.x.shape == (2, 52, 24)
    tokens.x.square().mean().backward()
    assert tokenizer.weight.grad.abs().sum() > 0
    assert tokenizer.bias.grad.abs().sum() > 0


@pytest.mark.parametrize("channels", [1, 3])
def test_adapted_tokenizer_is_the_image_models_on_a_grey_picture(channels):
    generator = torch.Generator().manual_seed(0)
    state = {
        "patch_embed.proj.weight": torch.randn(24, 3, 16, 16, generator=generator),
        "patch_embed.proj.bias": torch.randn(24, generator=generator),
        "pos_embed": torch.zeros(1, 197, 24),
    }
    source = VitWeights(state, (14, 14), 1, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    modality = audio(**SMALL, channels=channels)
    tokenizer = modality.tokenizer(24)
    tokenizer.load_state_dict(modality.adapt(source))
    x = inputs(modality, modality.read(Sound(noise(1.0)), Window(0, 1), None))
    image = x[:, :1].expand(-1, 3, -1, -1)[:, :, :96]
    expected = F.conv2d(image, source.kernel, source.bias, stride=16).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokenizer(x).x, expected, atol=1e-3, rtol=1e-4)


# fit


def test_fit_finds_the_statistics_of_what_the_model_gets():
    clips = [(Sound(noise(s, seed=i, loudness=0.01 * (i + 1))), None) for i, s in enumerate([0.5, 0.7, 1.3, 2.0])]
    fitted = Audio.fit(audio(seconds=1.0, mel_bins=64).config, iter([*clips, (Broken(), None)]))
    modality = Audio("audio", fitted)
    middles = [max(0.0, clip.duration_of("waveform") - 1) / 2 for clip, _ in clips]
    x = inputs(modality, *(modality.read(c, Window(t, t + 1), None) for (c, _), t in zip(clips, middles, strict=True)))
    assert x.mean().item() == pytest.approx(0, abs=1e-3)
    assert x.std().item() == pytest.approx(1, abs=1e-3)


def test_fit_keeps_what_is_given():
    config = audio(seconds=1.0, mean=2.0).config
    fitted = Audio.fit(config, [(Sound(noise(1.0)), None)])
    assert (fitted.mean, fitted.seconds) == (2.0, 1.0)
    assert fitted.std != "auto"
    assert config.std == "auto"
    assert Audio.fit(fitted, []) is fitted


@pytest.mark.parametrize(
    ("durations", "seconds"),
    [([0.3] * 4 + [0.41] * 6, 0.48), ([0.5] * 9 + [30.0], 0.64), ([12.0], 8.0), ([0.05], 0.16), ([0.8], 0.8)],
)
def test_fit_chooses_whole_patches_that_hold_most_clips(durations, seconds):
    fitted = Audio.fit(
        audio(seconds="auto", **STATISTICS).config, [(Sound(np.zeros(round(d * 16_000))), None) for d in durations]
    )
    assert fitted.seconds == pytest.approx(seconds)


@pytest.mark.parametrize(("seconds", "mel_bins", "patch"), [(0.6, 64, (8, 16)), (3.0, 64, (16, 16)), (3.0, 8, (16, 8))])
def test_fit_gives_short_sounds_short_patches(seconds, mel_bins, patch):
    config = audio(seconds="auto", mel_bins=mel_bins, patch="auto", **STATISTICS).config
    with pytest.raises(ConfigError, match="patch is still 'auto'"):
        _ = config.patches
    fitted = Audio.fit(config, [(Sound(np.zeros(round(seconds * 16_000))), None)])
    assert fitted.patch == patch
    assert round(fitted.seconds * 100) % patch[0] == 0


def test_fit_uses_the_rows_window():
    samples = np.concatenate([noise(4.0), np.zeros(4 * 16_000)])
    fitted = Audio.fit(audio(seconds="auto").config, [(Sound(samples), Window(4.0, 6.0))])
    assert fitted.seconds == pytest.approx(2.08)
    assert fitted.mean == pytest.approx(np.log(1e-6), abs=1e-3)
    assert fitted.std == 1.0  # nothing but silence


def test_fit_needs_a_clip():
    with pytest.raises(DataError, match="no readable clip to fill mean, std from"):
        Audio.fit(audio().config, [(Broken(), None)])


# Pictures, pickling, the whole model


def test_draw_puts_heat_where_relevance_is():
    modality = audio(**SMALL)
    sample = modality.read(Sound(sine(1000, 1.0)), Window(0, 1), None)
    (plain,) = modality.draw(sample, None).stills
    assert plain.shape == (64, 100, 3)
    assert plain.dtype == np.uint8
    row = plain.astype(int).sum((1, 2)).argmax()
    assert 64 - row == pytest.approx(64 * 2595 * np.log10(1 + 1000 / 700) / 2840, abs=2)  # low at the bottom
    relevance = np.zeros((6, 4))
    relevance[5, 0] = 2.0  # late and low
    (heated,) = modality.draw(sample, relevance).stills
    change = np.abs(plain.astype(int) - heated.astype(int)).sum(-1)
    assert change[56:, 88:96].min() > 20
    assert change[:32].max() == change[:, :64].max() == change[:, 96:].max() == 0


def test_pickles():
    modality, clip = audio(**MASKED), Sound(noise(1.0))
    copy = pickle.loads(pickle.dumps(modality))
    one, two = (m.read(clip, Window(0, 1), np.random.default_rng(7)) for m in (modality, copy))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_card_is_complete():
    card = Audio.card
    assert all((card.title, card.units, card.shape, card.normalisation, card.citation))
    assert card.foreign_keys["scenic"] == "spectrogram"


def test_preprocessor_has_no_state():
    preprocessor = audio(**MASKED).preprocessor()
    assert list(preprocessor.parameters()) == []
    assert preprocessor.state_dict() == {}


def test_from_a_file_through_the_model(tmp_path):
    path = write_wav(tmp_path / "tone.wav", sine(1000, 2.0, 44_100), 44_100)
    model = MBT(
        {
            "modalities": {"audio": MASKED},
            "backbone": {"dim": 32, "depth": 2, "heads": 2},
            "fusion": {"layer": 1},
            "head": {"classes": 3},
        }
    )
    modality = model.modalities["audio"]
    with Clip(path) as clip:
        samples = [modality.read(clip, Window(0.5, 1.5), np.random.default_rng(i)) for i in range(2)]
        plain = modality.read(clip, Window(0.5, 1.5), None)
    model({"audio": inputs(modality, *samples)}).logits.square().sum().backward()
    assert model.streams["audio"].grid == (6, 4)
    expected = (plain_log_mel(sine(1000, 2.0)[8_000:24_000], 64) + 3) / 2
    loud = expected > expected.max() - 3
    np.testing.assert_allclose(inputs(modality, plain)[0, 0].numpy()[loud], expected[loud], atol=0.02)
