import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from mbt_core import MBT, Clip, ConfigError, DataError, PatchTokenizer, Window, registry
from mbt_core.modality.patch_weights import VitWeights
from mbt_rgb.config import RgbConfig
from mbt_rgb.modality import Rgb
from mbt_rgb.tokenizer import SampledFramesTokenizer, sampled_frames
from mbt_rgb.transforms import (
    drop_colours,
    jitter_colours,
    resample,
)
from rgb_clips import Broken, Pattern, inputs, rgb, write_png, write_video

RELEASED = {"frames": 32, "stride": 2, "tubelet": 2, "scale_jitter": (0.9, 1.33), "colour_drop": 0.1}
SMALL = {"frames": 4, "seconds": 2.0, "size": 32, "patch": 16, "short_side": 40}
ALL_ON = SMALL | {"scale_jitter": (0.9, 1.33), "colour_drop": 0.5}


# Configuration


def test_defaults_are_the_papers_input():
    modality = rgb()
    assert modality.tokenizer(8).grid == (8, 14, 14)
    assert modality.seconds == 8.0
    assert modality.decode_settings() == {"short_side": 256}
    assert modality.config.scale_jitter is None
    assert modality.config.colour_drop == 0


def test_released_settings():
    modality = rgb(**RELEASED)
    assert modality.tokenizer(8).grid == (16, 14, 14)
    assert modality.seconds == pytest.approx(2.56)
    assert rgb(**modality.config.model_dump()).config == modality.config  # a resolved configuration loads again


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frame": 8}, r"modalities\.rgb\.frame: unknown key\. Did you mean 'frames'\?"),
        ({"stride": 2, "seconds": 8}, "stride and seconds are both given.*set seconds to null"),
        ({"size": 8}, "patch 16 is larger than size 8"),
        ({"frames": 1, "tubelet": 2}, "tubelet 2 is longer than frames 1"),
        ({"sample_frames": 4, "tubelet": 2}, r"set tubelet to 1 \(got: 2\)"),
        ({"short_side": 200}, "short_side 200 is less than the 224 pixels"),
        ({"short_side": 240, "scale_jitter": [0.9, 1.33]}, "less than the 250 pixels .*with scale_jitter"),
        ({"contrast": [1.4, 0.6]}, r"contrast is a range \[low, high\], got \[1\.4, 0\.6\]"),
        ({"flip": 1.5}, r"modalities\.rgb\.flip: .*less than or equal to 1"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        rgb(**settings)


def test_every_field_has_help():
    assert [name for name, field in RgbConfig.model_fields.items() if not field.description] == []


def test_auto_must_be_filled():
    with pytest.raises(ConfigError, match="frames is still 'auto'"):
        rgb(frames="auto").tokenizer(8)
    with pytest.raises(ConfigError, match="seconds is still 'auto'"):
        _ = rgb(seconds="auto").seconds


def test_hooks_and_settings_import_no_torch():
    code = "import sys, mbt_rgb; assert 'pydantic' not in sys.modules; import mbt_rgb.config"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)
    assert registry().modality("rgb").modality == "mbt_rgb.modality:Rgb"


# Times


def test_frames_are_spread_over_the_window():
    clip = Pattern(256, 300)
    rgb(frames=8, seconds=8, size=224).read(clip, Window(1.0, 9.0), None)
    assert clip.asked == [1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5]
    assert clip.short_side == 256


def test_stride_counts_frames_of_the_rate():
    times = rgb(frames=4, stride=2).times(Window(1.0, 1.32))
    assert (np.floor(times * 25) - 25).tolist() == [0, 2, 4, 6]
    assert np.all(times * 25 % 1 > 0.4)  # well inside a frame's time


def test_whole_clip():
    modality = rgb(frames=2, seconds=None)
    assert modality.seconds is None
    assert modality.times(Window(0, 20)).tolist() == [5, 15]


def test_real_frames_at_the_right_times(tmp_path):
    levels = np.array([[16, 80, 140, 200][i // 25] for i in range(100)], np.uint8)
    path = write_video(tmp_path / "steps.mp4", np.broadcast_to(levels[:, None, None, None], (100, 48, 64, 3)).copy())
    with Clip(path) as clip:
        sample = rgb(frames=4, seconds=4, size=32).read(clip, Window(0, 4), None)
        strided = rgb(frames=3, stride=25, size=32).read(clip, Window(1, 4), None)
    assert sample["frames"].float().mean((1, 2, 3)).tolist() == pytest.approx([16, 80, 140, 200], abs=2)
    assert strided["frames"].float().mean((1, 2, 3)).tolist() == pytest.approx([80, 140, 200], abs=2)


# Samples


@pytest.mark.parametrize("settings", [SMALL, ALL_ON, SMALL | {"colour_jitter": 0}])
def test_training_evaluation_and_blank_agree(settings):
    modality, clip = rgb(**settings), Pattern()
    samples = [
        modality.read(clip, Window(0, 2), np.random.default_rng(0)),
        modality.read(clip, Window(0, 2), None),
        modality.blank(),
    ]
    described = [{k: (v.shape, v.dtype) for k, v in sample.items()} for sample in samples]
    assert described[0] == described[1] == described[2]
    assert samples[0]["frames"].dtype == torch.uint8
    assert inputs(modality, *samples).shape == (3, 3, 4, 32, 32)


def test_same_seed_same_sample():
    modality, clip = rgb(**ALL_ON), Pattern()
    one, two, other = (modality.read(clip, Window(0, 2), np.random.default_rng(s)) for s in (3, 3, 4))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["frames"], other["frames"])


def test_one_setting_does_not_change_what_others_draw():
    clip = Pattern()
    both = rgb(**SMALL).read(clip, Window(0, 2), np.random.default_rng(5))
    crop = rgb(**SMALL, colour_jitter=0).read(clip, Window(0, 2), np.random.default_rng(5))
    assert torch.equal(both["frames"], crop["frames"])


@pytest.mark.parametrize("settings", [SMALL, ALL_ON, SMALL | {"size": [24, 40]}])
def test_evaluation_is_the_normalised_central_crop(settings):
    modality, clip = rgb(**settings), Pattern(40, 61)
    x = inputs(modality, modality.read(clip, Window(0, 2), None))
    height, width = modality.config.sides
    top, left = (40 - height) // 2, (61 - width) // 2
    crop = torch.from_numpy(clip.picture[top : top + height, left : left + width]).permute(2, 0, 1)
    expected = (crop / 127.5 - 1).unsqueeze(1).expand(-1, 4, -1, -1)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x[0], expected, atol=2e-6, rtol=0)


def test_random_crops_reach_all_corners_and_flips_half():
    modality, clip = rgb(frames=1, size=16, patch=16, short_side=18, colour_jitter=0), Pattern(18, 19)
    found: dict[tuple[int, int, bool], int] = {}
    crops = {
        (top, left, flip): np.ascontiguousarray(
            clip.picture[top : top + 16, left : left + 16][:, :: -1 if flip else 1]
        ).tobytes()
        for top in range(3)
        for left in range(4)
        for flip in (False, True)
    }
    names = {content: place for place, content in crops.items()}
    for seed in range(600):
        sample = modality.read(clip, Window(0, 8), np.random.default_rng(seed))
        place = names[sample["frames"][0].numpy().tobytes()]
        found[place] = found.get(place, 0) + 1
    assert set(found) == set(crops)
    assert min(found.values()) >= 8  # 25 expected of each
    assert 250 < sum(n for (_, _, flip), n in found.items() if flip) < 350


def test_no_augmentation_where_it_is_off():
    modality, clip = rgb(**SMALL, random_crop=False, flip=0, colour_jitter=0), Pattern()
    plain = modality.read(clip, Window(0, 2), None)
    drawn = modality.read(clip, Window(0, 2), np.random.default_rng(0))
    assert plain.keys() == {"frames"}
    assert torch.equal(plain["frames"], drawn["frames"])


@pytest.mark.parametrize("seed", range(6))
def test_scale_jitter_is_a_crop_of_the_scaled_frame(seed):
    modality, clip = rgb(**SMALL, scale_jitter=(0.9, 1.33), colour_jitter=0, mean=0, std=1), Pattern()
    draws = np.random.default_rng(seed).random(11)
    factors = 0.9 + draws[:2] * (1.33 - 0.9)
    frame = torch.from_numpy(clip.picture).permute(2, 0, 1).unsqueeze(0) / 255
    start = draws[2:4] * (np.array((40, 60)) - 32 / factors)
    # the same by torch: an affine grid over the whole frame
    theta = torch.zeros(1, 2, 3)
    for row, axis, extent in ((0, 1, 60), (1, 0, 40)):
        theta[0, row, row] = 32 / factors[axis] / extent
        theta[0, row, 2] = (2 * start[axis] + 32 / factors[axis]) / extent - 1
    expected = F.grid_sample(frame, F.affine_grid(theta, (1, 3, 32, 32), align_corners=False), align_corners=False)
    if draws[4] < 0.5:
        expected = expected.flip(-1)
    x = inputs(modality, modality.read(clip, Window(0, 2), np.random.default_rng(seed)))
    torch.testing.assert_close(x[0, :, 0], expected[0], atol=2e-4, rtol=0)
    torch.testing.assert_close(x[0, :, 3], x[0, :, 0], atol=0, rtol=0)


def test_resample_enlarges_as_interpolation_does():
    x = torch.rand(2, 3, 2, 8, 10)
    box = torch.tensor([[0.0, 0.0, 8.0, 10.0], [2.0, 3.0, 4.0, 5.0]])
    out = resample(x, box, (16, 20))
    whole = F.interpolate(x[0].transpose(0, 1), size=(16, 20), mode="bilinear")
    torch.testing.assert_close(out[0].transpose(0, 1), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(resample(x, box, (4, 5))[1], x[1, :, :, 2:6, 3:8], atol=1e-5, rtol=0)


def test_wide_video_and_tall_crop():
    modality, clip = rgb(frames=1, size=[48, 16], short_side=40), Pattern(40, 60)
    frames = modality.read(clip, Window(0, 8), None)["frames"]
    assert frames.shape == (1, 48, 16, 3)
    enlarged = tv.resize(torch.from_numpy(clip.picture).permute(2, 0, 1), [48, 72], antialias=True)
    expected = enlarged[:, :, 28:44].permute(1, 2, 0)
    assert (frames[0].int() - expected.int()).abs().max() <= 1


def test_colours_are_drawn_in_their_ranges_with_their_probability():
    modality, clip = rgb(**SMALL, colour_drop=0.1), Pattern()
    samples = [modality.read(clip, Window(0, 2), np.random.default_rng(s)) for s in range(500)]
    colour = torch.stack([s["colour"] for s in samples])
    changed = colour[:, 0] != 0
    assert 0.75 < changed.float().mean() < 0.85
    assert torch.equal(colour[~changed], torch.tensor([[0.0, 1, 1, 0]]).expand(int((~changed).sum()), -1))
    low, high = colour[changed].amin(0), colour[changed].amax(0)
    torch.testing.assert_close(low, torch.tensor([-32 / 255, 0.6, 0.6, -0.2]), atol=0.02, rtol=0)
    torch.testing.assert_close(high, torch.tensor([32 / 255, 1.4, 1.4, 0.2]), atol=0.02, rtol=0)
    assert 0.06 < torch.stack([s["grey"] for s in samples]).float().mean() < 0.15


def test_each_sample_has_its_own_augmentation():
    modality, clip = rgb(**SMALL, random_crop=False, flip=0, colour_drop=0.5, mean=0, std=1), Pattern()
    plain, jittered, grey = (modality.read(clip, Window(0, 2), None) for _ in range(3))
    jittered["colour"] = torch.tensor([0.1, 1.2, 0.8, 0.1])
    grey["grey"] = torch.tensor(True)
    batch = inputs(modality, plain, jittered, grey)
    torch.testing.assert_close(batch[0], plain["frames"].permute(3, 0, 1, 2) / 255, atol=1e-6, rtol=0)
    torch.testing.assert_close(batch[1:2], jitter_colours(batch[:1], jittered["colour"][None]))
    torch.testing.assert_close(batch[2:], drop_colours(batch[:1]))
    assert not torch.allclose(batch[1], batch[0], atol=0.05)


# Tokenizers


@pytest.mark.parametrize("settings", [{}, {"tubelet": 2}, {"size": [40, 50], "patch": [8, 12]}, {"sample_frames": 2}])
def test_tokens_fill_the_grid_and_gradients_flow(settings):
    modality = rgb(**SMALL | settings)
    tokenizer = modality.tokenizer(24)
    tokens = tokenizer(inputs(modality, *[modality.read(Pattern(64, 80), Window(0, 2), None)] * 2))
    assert tokens.x.shape == (2, int(np.prod(tokenizer.grid)), 24)
    assert tokens.mask is None
    tokens.x.square().mean().backward()
    assert tokenizer.weight.grad.abs().sum() > 0
    assert tokenizer.bias.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("frames", "count", "indices"),
    [
        (4, 2, [1, 3, 3]),  # one more than asked for
        (4, 6, [0, 1, 2, 3]),
        (5, 1, [2]),  # half to even
        (8, 2, [3, 5, 7]),
        (8, 6, [1, 2, 3, 5, 6, 7, 7]),
        (10, 3, [2, 5, 8]),
        (10, 8, [1, 2, 3, 4, 6, 7, 8, 9]),
        (25, 8, [3, 6, 8, 11, 14, 17, 19, 22]),
        (32, 2, [11, 21, 31]),
        (32, 8, [4, 7, 11, 14, 18, 21, 25, 28]),
    ],
)
def test_sampled_frames_are_the_references(frames, count, indices):
    assert sampled_frames(frames, count) == indices


def test_sampled_frames_tokenizer_is_a_convolution_over_the_tall_picture():
    tokenizer = SampledFramesTokenizer((10, 24, 24), (8, 12), 3, 16)
    assert tokenizer.weight.shape == (16, 3, 8, 12)
    assert tokenizer.grid == (3, 3, 2)
    x = torch.rand(2, 3, 10, 24, 24)
    tall = torch.cat([x[:, :, i] for i in (2, 5, 8)], 2)
    expected = F.conv2d(tall, tokenizer.weight, tokenizer.bias, stride=(8, 12)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokenizer(x).x, expected, atol=1e-5, rtol=0)


def test_sampled_frames_across_borders():
    tokenizer = SampledFramesTokenizer((4, 20, 27), (8, 12), 2, 4)
    assert tokenizer.chosen == [1, 3, 3]
    assert tokenizer.grid == (7, 2)  # 60 rows of pixels
    x = torch.rand(1, 3, 4, 20, 27)
    tall = torch.cat([x[:, :, i] for i in (1, 3, 3)], 2)
    expected = F.conv2d(tall, tokenizer.weight, tokenizer.bias, stride=(8, 12)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokenizer(x).x, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"input is \[B, 3, 3, 20, 27\], expected \[B, 3, 4, 20, 27\]"):
        tokenizer(x[:, :, :3])


def vit(patch: int = 16, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)) -> VitWeights:
    generator = torch.Generator().manual_seed(0)
    state = {
        "patch_embed.proj.weight": torch.randn(24, 3, patch, patch, generator=generator) * 0.05,
        "patch_embed.proj.bias": torch.randn(24, generator=generator),
        "pos_embed": torch.zeros(1, 197, 24),
    }
    return VitWeights(state, (14, 14), 1, mean, std)


@pytest.mark.parametrize("settings", [{}, {"tubelet": 2}, {"tubelet": 2, "inflate": "average"}, {"sample_frames": 4}])
def test_adapted_tokenizer_sees_what_the_image_model_saw(settings):
    modality, source = rgb(**SMALL | settings), vit()
    tokenizer = modality.tokenizer(24)
    tokenizer.load_state_dict(modality.adapt(source))
    sample = modality.read(Pattern(), Window(0, 2), None)
    tokens = tokenizer(inputs(modality, sample)).x
    mean, std = (torch.tensor(v)[:, None, None] for v in (source.mean, source.std))
    image = (sample["frames"][0].permute(2, 0, 1) / 255 - mean) / std
    expected = F.conv2d(image[None], source.kernel, source.bias, stride=16).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens[:, :4], expected, atol=1e-4, rtol=0)


def test_central_and_average_inflation_differ_in_time():
    kernels = {how: rgb(**SMALL, tubelet=2, inflate=how).adapt(vit())["weight"] for how in ("central", "average")}
    assert kernels["central"][:, :, 0].abs().max() == 0
    torch.testing.assert_close(kernels["average"][:, :, 0], kernels["central"][:, :, 1] / 2)


def test_statistics_per_channel():
    modality = rgb(**SMALL, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], colour_jitter=0)
    sample = modality.read(Pattern(), Window(0, 2), None)
    expected = tv.normalize(sample["frames"].permute(0, 3, 1, 2) / 255, *modality.image_statistics)
    torch.testing.assert_close(inputs(modality, sample)[0].transpose(0, 1), expected, atol=1e-5, rtol=0)
    assert rgb().image_statistics == ((0.5,) * 3, (0.5,) * 3)


# fit


def test_fit_from_stills(tmp_path):
    path = write_png(tmp_path / "still.png", Pattern().picture)
    config = rgb(frames="auto", seconds="auto", tubelet=2, size=32, flip=0).config
    with Clip(path) as clip:
        fitted = Rgb.fit(config, [(clip, None)] * 3)
        modality = Rgb("rgb", fitted)
        sample = modality.read(clip, Window(0, 8), None)
    assert (fitted.frames, fitted.tubelet, fitted.size, fitted.flip) == (1, 1, 32, 0)
    assert fitted.auto_fields() == []
    assert inputs(modality, sample).shape == (1, 3, 1, 32, 32)


def test_a_still_is_repeated(tmp_path):
    with Clip(write_png(tmp_path / "still.png", Pattern().picture)) as clip:
        frames = rgb(**SMALL).read(clip, Window(0, 2), None)["frames"]
    assert (frames == frames[:1]).all()


def test_fit_from_videos():
    config = rgb(frames="auto", seconds="auto").config
    clips = [(Pattern(duration=d), None) for d in (1.0, 2.0, 3.0, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5, 60.0)]
    fitted = Rgb.fit(config, iter([*clips, (Broken(), None)]))
    assert (fitted.frames, fitted.seconds) == (8, 3.5)
    assert Rgb.fit(config, [(Pattern(duration=60.0), None)]).seconds == 8
    assert Rgb.fit(config, [(Pattern(duration=60.0), Window(10.0, 12.5))]).seconds == 2.5
    assert Rgb.fit(config, [(Pattern(duration=0.0), None)]).seconds == 0.04  # a single frame
    assert config.frames == "auto"


@pytest.mark.parametrize(
    ("height", "settings", "size"),
    [
        (28, {}, 64),  # 4 patches at least
        (64, {}, 128),  # twice as large
        (720, {}, 224),  # 14 patches at most
        (720, {"patch": 14}, 196),
        (720, {"frames": "auto", "tubelet": 2}, 128),  # 8 x 8 patches in each of 4 tubelets
        (28, {"patch": 14}, 56),
    ],
)
def test_fit_chooses_a_size_by_that_of_the_pictures(height, settings, size):
    config = rgb(**{"frames": 1, "seconds": 1.0, "size": "auto", "patch": "auto", **settings}).config
    fitted = Rgb.fit(config, [(Pattern(height, 2 * height), None)] * 3)
    assert (fitted.size, fitted.patch) == (size, settings.get("patch", 16))
    assert fitted.auto_fields() == []


def test_sizes_left_open():
    config = rgb(frames=1, size="auto", patch=14).config
    for what in ("sides", "scaled_side"):
        with pytest.raises(ConfigError, match="size is still 'auto'"):
            getattr(config, what)
    assert config.largest() == {"size": 196}
    assert rgb(size=32).config.largest() == {}
    with pytest.raises(ConfigError, match=r"saturation is a range"):
        rgb(size="auto", saturation=[2, 1])


def test_fit_changes_nothing_that_is_given():
    config = rgb(frames=4, seconds=2.0).config
    assert Rgb.fit(config, []) is config


def test_fit_needs_a_clip():
    with pytest.raises(DataError, match="no readable clip to fill frames from"):
        Rgb.fit(rgb(frames="auto").config, [(Broken(), None)])


# Pictures, pickling, the whole model


def test_draw_puts_heat_where_relevance_is():
    modality, clip = rgb(**SMALL, tubelet=2), Pattern()
    sample = modality.read(clip, Window(0, 2), None)
    plain = modality.draw(sample, None)
    assert [p.shape for p in plain.stills] == [(32, 128, 3)]
    assert len(plain.frames) == 4
    assert np.abs(plain.frames[0].astype(int) - sample["frames"][0].numpy().astype(int)).max() <= 1
    relevance = np.zeros((2, 2, 2))
    relevance[1, 0, 1] = 5.0  # second tubelet, top right
    heated = modality.draw(sample, relevance)
    change = np.stack(
        [np.abs(a.astype(int) - b.astype(int)).sum(-1) for a, b in zip(plain.frames, heated.frames, strict=True)]
    )
    assert change[:2].max() == 0
    assert change[2:, :8, 24:].min() > 20
    assert change[2:, 24:, :8].max() == 0
    assert heated.frames[0].dtype == np.uint8


@pytest.mark.parametrize("size", [32, 40])
def test_draw_of_sampled_frames(size):
    modality = rgb(frames=4, size=size, sample_frames=2, colour_jitter=0)
    sample = modality.read(Pattern(80, 90), Window(0, 8), None)
    picture = modality.draw(sample, np.ones(modality.tokenizer(4).grid))
    assert [p.shape for p in picture.stills] == [(size, 3 * size, 3)]


def test_draw_shows_what_the_model_gets():
    modality = rgb(**ALL_ON)
    sample = modality.read(Pattern(), Window(0, 2), np.random.default_rng(0))
    expected = ((inputs(modality, sample)[0] * 0.5 + 0.5) * 255).round().byte().permute(1, 2, 3, 0).numpy()
    assert np.array_equal(np.stack(modality.draw(sample, None).frames), expected)


def test_pickles():
    modality, clip = rgb(**ALL_ON), Pattern()
    copy = pickle.loads(pickle.dumps(modality))
    one, two = (m.read(clip, Window(0, 2), np.random.default_rng(7)) for m in (modality, copy))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_card_is_complete():
    card = Rgb.card
    assert all((card.title, card.units, card.shape, card.normalisation, card.citation))
    assert card.foreign_keys["scenic"] == "rgb"


def test_preprocessor_has_no_state():
    preprocessor = rgb(**ALL_ON).preprocessor()
    assert list(preprocessor.parameters()) == []
    assert preprocessor.state_dict() == {}


def test_from_a_file_through_the_model(tmp_path):
    frames = np.stack([np.roll(Pattern(48, 64).picture, i, 1) for i in range(50)])
    path = write_video(tmp_path / "clip.mp4", frames)
    model = MBT(
        {
            "modalities": {"rgb": ALL_ON | {"tubelet": 2}},
            "backbone": {"dim": 32, "depth": 2, "heads": 2},
            "fusion": {"layer": 1},
            "head": {"classes": 3},
        }
    )
    modality = model.modalities["rgb"]
    with Clip(io.BytesIO(path.read_bytes()), "clip.mp4") as clip:
        samples = [modality.read(clip, Window(0, 2), np.random.default_rng(i)) for i in range(2)]
    model({"rgb": inputs(modality, *samples)}).logits.square().sum().backward()
    assert model.streams["rgb"].grid == (2, 2, 2)
    assert isinstance(model.streams["rgb"].tokenizer, PatchTokenizer)


def test_stays_in_float32_under_autocast():
    modality = rgb(**ALL_ON)
    batch = modality.collate([modality.read(Pattern(), Window(0, 2), np.random.default_rng(i)) for i in range(3)])
    preprocessor = modality.preprocessor()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = preprocessor(batch)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, preprocessor(batch))
