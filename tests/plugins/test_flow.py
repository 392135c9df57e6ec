import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import write_image, write_media

from modality_contract import check_adapt, check_card, check_samples, check_tokens, inputs, model_of, small_vit

cv2 = pytest.importorskip("cv2")

from mbt_core import Clip, ConfigError, DataError, Window, registry  # noqa: E402
from mbt_core.config import DataConfig, parse_modalities  # noqa: E402
from mbt_core.data.dataset import ClipDataset, Draw  # noqa: E402
from mbt_core.data.manifest import Manifest  # noqa: E402
from mbt_core.media import MediaError, decode_all  # noqa: E402
from mbt_flow.config import FlowConfig  # noqa: E402
from mbt_flow.fields import dense_flow, flow_colours, scaled  # noqa: E402
from mbt_flow.modality import Flow  # noqa: E402

SMALL = {"frames": 4, "seconds": 1.0, "size": 32, "patch": 16, "short_side": 40, "std": 2.0}
STORED = SMALL | {"source": "npy", "rate": 10.0}
JPEG = SMALL | {"source": "jpeg", "rate": 10.0}


def flow(**settings) -> Flow:
    return Flow("flow", parse_modalities({"flow": settings})["flow"])


def texture(height: int, width: int) -> np.ndarray:
    """Smooth random grey levels, uint8 [H, W, 3]."""
    noise = cv2.GaussianBlur(np.random.default_rng(0).random((height, width), np.float32), (0, 0), 3)
    levels = 255 * (noise - noise.min()) / (noise.max() - noise.min())
    return np.repeat(levels.astype(np.uint8)[..., None], 3, 2)


def moving(frames: int, right: int, down: int = 0, height: int = 80, width: int = 120) -> np.ndarray:
    """[T, H, W, 3]: a picture that moves by so many pixels a frame."""
    margin = frames * max(abs(right), abs(down), 1)
    big = texture(height + 2 * margin, width + 2 * margin)
    corners = [(margin - i * down, margin - i * right) for i in range(frames)]
    return np.stack([big[top : top + height, left : left + width] for top, left in corners])


def write_fields(folder: Path, levels: np.ndarray, suffix: str = ".jpg") -> Path:
    """uint8 [2, T, H, W] as Epic-Kitchens' u and v pictures."""
    pixels = "rgb24" if suffix == ".png" else "yuvj420p"
    for name, pictures in zip("uv", levels, strict=True):
        (folder / name).mkdir(parents=True)
        for i, picture in enumerate(pictures):
            write_image(folder / name / f"frame_{i + 1:010d}{suffix}", np.repeat(picture[..., None], 3, 2), pixels)
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_media(tmp_path_factory.mktemp("flow") / "a.mp4", moving(50, 2, 1))


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("flow") / "a.npy"
    np.save(path, np.random.default_rng(0).normal(0, 3, (2, 20, 40, 60)).astype(np.float32))
    return path


# The contract


def test_contract_of_computed_fields(video):
    check_contract(flow(**SMALL), Clip(video))


def test_contract_of_stored_fields(stored):
    check_contract(flow(**STORED), Clip(stored))


def check_contract(modality: Flow, clip: Clip) -> None:
    check_samples(modality, clip, Window(0, 1), augments=True)
    check_tokens(modality, modality.read(clip, Window(0, 1), None))
    check_card(modality)


def test_kernel_is_folded_from_three_channels():
    kernel = small_vit(8).kernel
    adapted = check_adapt(flow(**SMALL | {"tubelet": 2, "patch": 8}))["weight"]
    assert adapted.shape == (16, 2, 2, 8, 8)
    torch.testing.assert_close(adapted[:, 0, 1], kernel.sum(1) / 2)
    assert adapted[:, :, 0].eq(0).all()


def test_grid_and_input():
    modality = flow(**SMALL | {"tubelet": 2})
    assert modality.tokenizer(8).grid == (2, 2, 2)
    assert inputs(modality, modality.blank())[0].shape == (1, 2, 4, 32, 32)
    assert model_of(modality).streams["flow"].grid == (2, 2, 2)


def test_hooks_and_settings_import_no_torch():
    code = "import sys, mbt_flow; assert 'pydantic' not in sys.modules; import mbt_flow.config"
    subprocess.run([sys.executable, "-c", f"{code}; assert not {{'torch', 'cv2'}} & set(sys.modules)"], check=True)
    spec = registry().modality("flow")
    assert (spec.extra, spec.requires) == ("flow", ("cv2",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"souce": "npy"}, r"unknown key\. Did you mean 'source'\?"),
        ({"source": "jpg"}, r"Did you mean 'jpeg'\?"),
        ({"size": 8}, "patch 16 is larger than size 8"),
        ({"frames": 1, "tubelet": 2}, "tubelet 2 is longer than frames 1"),
        ({"short_side": 200}, "short_side 200 is less than the 224 pixels of the crop"),
        ({"interval": 2.0}, "interval: .*less than or equal to 0.5"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        flow(**settings)


def test_auto_must_be_filled():
    with pytest.raises(ConfigError, match="seconds is still 'auto'"):
        _ = flow(seconds="auto").seconds
    with pytest.raises(ConfigError, match="std is still 'auto'"):
        flow().preprocessor()


# Computed fields


@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
def test_a_moving_picture(preset):
    frames = moving(2, 3, -2)
    field = dense_flow(frames[:1], frames[1:], preset)
    assert field.shape == (1, 80, 120, 2)
    inner = field[0, 16:-16, 16:-16]
    np.testing.assert_allclose(np.median(inner, (0, 1)), [3, -2], atol=0.2)


def test_threads_are_left_as_they_were():
    before = cv2.getNumThreads()
    dense_flow(moving(1, 0), moving(1, 0), "ultrafast")
    assert cv2.getNumThreads() == before


def test_motion_of_a_video_in_scaled_pixels(video):
    sample = flow(**SMALL).read(Clip(video), Window(0, 1), None).float()
    # 2 and 1 pixels a frame of 25 a second, at half the size
    np.testing.assert_allclose(sample.flatten(1).median(1).values, [1.0, 0.5], atol=0.1)
    sample = flow(**SMALL | {"short_side": 80, "size": 64}).read(Clip(video), Window(0, 1), None).float()
    np.testing.assert_allclose(sample.flatten(1).median(1).values, [2.0, 1.0], atol=0.1)


@pytest.mark.parametrize("fps", [10, 20, 50])
def test_motion_does_not_depend_on_the_frame_rate(tmp_path, fps):
    """100 pixels a second are 4 in 40 ms."""
    clip = Clip(write_media(tmp_path / "a.mp4", moving(fps, 100 // fps), fps=fps))
    sample = flow(**SMALL | {"short_side": 80, "size": 64}).read(clip, Window(0, 0.8), None).float()
    assert sample[0].median() == pytest.approx(4, abs=0.3)


def test_decoded_clips_read_the_same(video):
    modality = flow(**SMALL)
    held = decode_all(Clip(video), {"frames"}, 0, 2, modality.decode_settings()["short_side"], 0)
    assert torch.equal(modality.read(held, Window(0, 2), None), modality.read(Clip(video), Window(0, 2), None))


def test_nothing_moves_in_a_still(tmp_path):
    clip = Clip(write_image(tmp_path / "a.png", texture(40, 40)))
    with pytest.raises(MediaError, match=r"a\.png: a still, in which nothing moves; expected a video"):
        flow(**SMALL).read(clip, Window(0, 0), None)


# Stored fields


def test_arrays(tmp_path):
    """Field i is shown from i / rate seconds on; displacements are in its own pixels, here scaled to half."""
    array = np.zeros((2, 20, 80, 80), np.float32)
    array[0], array[1] = np.arange(20)[:, None, None], -2 * np.arange(20)[:, None, None]
    np.save(tmp_path / "a.npy", array)
    clip = Clip(tmp_path / "a.npy")
    modality = flow(**STORED | {"bound": 10.0})
    assert modality.reads == "array"
    assert modality.duration(clip) == 2
    sample = modality.read(clip, Window(0, 1), None)
    assert sample.shape == (2, 4, 32, 32)
    assert sample[:, :, 0, 0].tolist() == [[0.5, 1.5, 3, 4], [-1, -3, -6, -8]]
    past = modality.read(clip, Window(1.5, 2.5), None)
    assert past[:, :, 0, 0].tolist() == [[8, 9, 9.5, 9.5], [-10, -10, -10, -10]]  # clipped; the last field is held
    assert inputs(modality, sample)[0][0, :, 1, 0, 0].tolist() == [0.75, -1.5]


def test_folders_of_pictures(tmp_path):
    levels = np.full((2, 12, 40, 40), 128, np.uint8)
    levels[0] += 5 * np.arange(12, dtype=np.uint8)[:, None, None]
    levels[1] -= 10
    folder = write_fields(tmp_path / "P01_01", levels, ".png")
    clip = Clip(folder)
    modality = flow(**JPEG)
    assert clip.has(modality.reads)
    assert clip.shape == (2, 12, 40, 40)
    assert modality.duration(clip) == pytest.approx(1.2)
    sample = modality.read(clip, Window(0, 1.2), None)
    step = 40 / 255
    np.testing.assert_allclose(sample[0, :, 0, 0], np.array([5, 20, 35, 50]) * step, rtol=2e-3)
    np.testing.assert_allclose(sample[1], -10 * step, rtol=2e-3)
    held = decode_all(clip, {"array"}, 0, 2, None, 0)
    assert torch.equal(modality.read(held, Window(0, 1.2), None), sample)


def test_jpegs_are_near(tmp_path):
    levels = np.stack([texture(48, 64)[None, ..., 0].repeat(3, 0)] * 2)
    sample = flow(**JPEG | {"short_side": 48}).read(Clip(write_fields(tmp_path / "a", levels)), Window(0, 0.3), None)
    expected = (levels[:, 0, 8:40, 16:48].astype(float) - 128) * 40 / 255
    assert np.abs(sample[:, 0].numpy() - expected).mean() < 0.5


def test_the_rate_of_stored_fields_may_differ_from_clip_to_clip(tmp_path):
    levels = np.arange(20, dtype=np.float32)[:, None, None] * np.ones((2, 1, 48, 64), np.float32)
    np.save(tmp_path / "a.npy", levels)
    rows = ["id,flow,flow.fps,fps,start,end,label", "a,a.npy,5,50,1,2,x", "b,a.npy,,50,1,2,x", "c,a.npy,10,50,1,2,x"]
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    modality = flow(**STORED | {"frames": 1, "seconds": 1.0, "rate": 4.0, "bound": 50.0})
    manifest = Manifest.read(tmp_path / "m.csv", {"flow": "array"}, DataConfig())
    dataset = ClipDataset(manifest, {"flow": modality}, {}, config=DataConfig(), seed=0, training=False)
    scale = modality.config.scaled_side / 48  # displacements are in pixels of the scaled picture
    found = [dataset[Draw(0, i)][0].samples["flow"].float().mean().item() / scale for i in range(3)]
    assert found == pytest.approx([7, 6, 15], rel=0.01)  # at 1.5 s


@pytest.mark.parametrize("shape", [(3, 5, 8, 8), (2, 8, 8), (2, 0, 8, 8)])
def test_arrays_of_other_shapes(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.float32))
    with pytest.raises(MediaError, match=r"a\.npy: an array of .*, expected \[2, fields, height, width\]"):
        flow(**STORED).read(Clip(tmp_path / "a.npy"), Window(0, 1), None)


def test_missing_displacements(tmp_path):
    np.save(tmp_path / "a.npy", np.full((2, 5, 40, 40), np.nan, np.float32))
    with pytest.raises(MediaError, match=r"a\.npy: some displacements are missing or infinite"):
        flow(**STORED).read(Clip(tmp_path / "a.npy"), Window(0, 1), None)


def test_rows_of_a_manifest(tmp_path):
    array = np.broadcast_to(np.arange(100, dtype=np.float32)[:, None, None] / 10, (2, 100, 40, 40))
    np.save(tmp_path / "a.npy", array)
    (tmp_path / "m.csv").write_text("id,flow,start,end,label,split\na,a.npy,2,8,x,train\n")
    modalities = {"flow": flow(**STORED)}
    manifest = Manifest.read(tmp_path / "m.csv", {"flow": "array"}, DataConfig())
    dataset = ClipDataset(manifest, modalities, {}, config=DataConfig(), seed=0, training=False, views=2)
    first, last = (example.samples["flow"][0, :, 0, 0].tolist() for example in dataset[Draw(0, 0)])
    assert first == pytest.approx([2.1, 2.3, 2.6, 2.8], abs=2e-3)
    assert last == pytest.approx([7.1, 7.3, 7.6, 7.8], abs=5e-3)


# Crop, flip, scale


def test_flip_mirrors_and_negates_the_horizontal(stored):
    modality = flow(**STORED | {"random_crop": False, "flip": 1.0})
    plain = modality.read(Clip(stored), Window(0, 1), None)
    flipped = modality.read(Clip(stored), Window(0, 1), np.random.default_rng(0))
    assert torch.equal(flipped[0], -plain[0].flip(-1))
    assert torch.equal(flipped[1], plain[1].flip(-1))
    unflipped = flow(**STORED | {"random_crop": False, "flip": 0.0})
    assert torch.equal(unflipped.read(Clip(stored), Window(0, 1), np.random.default_rng(0)), plain)


def test_crops_lie_anywhere_inside(tmp_path):
    rows, columns = np.mgrid[:40, :60]
    np.save(tmp_path / "a.npy", np.stack([columns, rows])[:, None].repeat(5, 1).astype(np.float32) / 4)
    clip = Clip(tmp_path / "a.npy")
    modality = flow(**STORED | {"flip": 0.0})
    corners = {
        tuple(modality.read(clip, Window(0, 1), np.random.default_rng(seed))[:, 0, 0, 0].mul(4).tolist())
        for seed in range(200)
    }
    lefts, tops = zip(*corners, strict=True)
    assert (min(lefts), max(lefts), min(tops), max(tops)) == (0, 28, 0, 8)
    assert modality.read(clip, Window(0, 1), None)[:, 0, 0, 0].mul(4).tolist() == [14, 4]


def test_scaling_covers_the_crop():
    field = np.ones((1, 20, 100, 2), np.float32)
    assert scaled(field, 20, (20, 20)) is field
    half = scaled(field, 10, (10, 10))
    assert half.shape == (1, 10, 50, 2)
    np.testing.assert_allclose(half, 0.5)
    tall = scaled(field, 20, (40, 30))
    assert tall.shape == (1, 40, 200, 2)
    np.testing.assert_allclose(tall, 2.0)


# Fit


def test_fit(tmp_path, video):
    config = Flow.fit(FlowConfig(**SMALL | {"std": "auto", "seconds": "auto"}), [(Clip(video), None)])
    assert config.seconds == 2.0
    assert config.std == pytest.approx(np.sqrt((1 + 0.25) / 2), rel=0.15)
    assert Flow.fit(config, iter(())) is config
    np.save(tmp_path / "a.npy", np.zeros((2, 30, 40, 40), np.float32))
    still = FlowConfig(**STORED | {"std": "auto", "seconds": "auto"})
    assert Flow.fit(still, [(Clip(tmp_path / "a.npy"), None)]).std == 1.0
    assert Flow.fit(still, [(Clip(tmp_path / "a.npy"), Window(0, 1.5))]).seconds == 1.5
    sized = Flow.fit(FlowConfig(**SMALL | {"size": "auto", "patch": "auto", "short_side": None}), [(Clip(video), None)])
    assert (sized.size, sized.patch) == (128, 16)  # pictures of 80 x 120 in 4 tubelets: at most 256 patches
    with pytest.raises(DataError, match="flow: no readable clip to fill seconds, std from"):
        Flow.fit(still, [(Clip(tmp_path / "none.npy"), None)])


# Pictures


def test_colours():
    field = np.array([[0, 0], [1, 0], [-1, 0], [0, -1], [0, 2], [9, 0]], float)
    colours = flow_colours(field, 1.0)
    assert colours[0].tolist() == [255, 255, 255]
    assert colours[1].tolist() == colours[5].tolist() == [255, 0, 0]
    assert colours[2].tolist() == [0, 255, 255]
    assert colours[3].tolist() == [128, 255, 0]
    assert colours[4].tolist() == [128, 0, 255]
    assert flow_colours(field * 0.5, 1.0)[1].tolist() == [255, 128, 128]


def test_pictures(stored):
    modality = flow(**STORED | {"tubelet": 2})
    sample = modality.read(Clip(stored), Window(0, 1), None)
    relevance = np.zeros((2, 2, 2))
    relevance[1, 0, 0] = 1
    plain, shaded = modality.draw(sample, None), modality.draw(sample, relevance)
    assert plain.stills[0].shape == (32, 128, 3)
    assert len(plain.frames) == 4
    changed = [(a != b).any() for a, b in zip(plain.frames, shaded.frames, strict=True)]
    assert changed == [False, False, True, True]
    assert modality.draw(sample[:, :1], None).frames == ()
