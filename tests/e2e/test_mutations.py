"""Damaged files by the hundred: read as before, or an error that names the file; no crash, no hang, no silence made up.

Everything is read in processes of their own: a decoder that dies would take the tests with it.
"""

import json
import random
import shutil
import signal
from collections import Counter

import numpy as np
import pytest
import torch
from media_files import counting, sine, write_media
from PIL import Image
from safetensors.torch import load_file

from forked import forked
from mbt_core.errors import MBTError
from mbt_core.media import Clip, MediaError, open_clip
from mbt_core.model import MBT
from mbt_core.training.state import FILE, load_state
from small import mbt

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
FEW, MANY = 8, 250
SECONDS = 120
"""After which a process that hangs is ended, and the test fails."""
amounts = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])


def mutated(data, seed):
    """Cut off, or with some bits flipped, or with a stretch of zeros or noise, often near the start."""
    rng = random.Random(seed)
    changed = bytearray(data)
    at = rng.randrange(min(len(data), rng.choice([64, 600, len(data)])))
    match rng.randrange(4):
        case 0:
            return bytes(changed[: rng.randrange(len(data))])
        case 1:
            length = rng.randrange(1, 2000)
            changed[at : at + length] = rng.choice([bytes, rng.randbytes])(len(changed[at : at + length]))
        case _:
            for _ in range(rng.choice([1, 1, 3, 30])):
                changed[rng.randrange(min(len(data), rng.choice([64, 600, len(data)])))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def survived(work):
    """What `work` returns from a process that is ended if it hangs."""

    def limited():
        signal.alarm(SECONDS)
        return work()

    return forked(limited)


def names(error, file):
    """The error is one line that begins with the file."""
    assert str(error).startswith(file), error
    assert "\n" not in str(error)


def read(clip):
    """What a clip gives: arrays, or None where it says that it cannot."""
    found = {}
    for name, ask in {
        "frames": lambda: clip.frames([0.7, 0.0, 0.31], short_side=24),
        "sound": lambda: clip.waveform(0.05, max(0.1, min(0.75, clip.duration or 0.75)), 8000),
        "array": clip.array,
        "text": lambda: np.frombuffer(clip.text().encode(), np.uint8),
    }.items():
        try:
            found[name] = ask()
        except MediaError as error:
            names(error, f"{clip.name}: ")
            found[name] = None
    return found


def silent(found, original):
    """Whether nothing was made of what was something."""
    return original.size and np.ptp(original) and (not found.size or not np.ptp(found))


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    video, sound = counting(20, 32, 48), sine(0.8, 16000)
    rng = np.random.default_rng(0)
    write_media(folder / "a.mp4", video, sound)
    write_media(folder / "fast.mp4", video, sound, options={"movflags": "faststart"})
    write_media(folder / "a.mkv", video, sound)
    write_media(folder / "a.avi", video, sound, codec="mpeg4", audio_codec="pcm_s16le")
    write_media(
        folder / "a.webm", video, sound, codec="libvpx-vp9", audio_codec="libopus", rate=48000, video_options={}
    )
    write_media(folder / "a.wav", None, sound, audio_codec="pcm_s16le")
    write_media(folder / "a.flac", None, sound, audio_codec="flac")
    picture = Image.fromarray(rng.integers(0, 256, (32, 48, 3), np.uint8))
    picture.save(folder / "a.png")
    picture.save(folder / "a.jpg")
    series = rng.normal(size=(2, 500)).astype(np.float32)
    np.save(folder / "a.npy", series)
    np.savez_compressed(folder / "a.npz", array=series)
    np.savetxt(folder / "a.csv", series.T, delimiter=",", header="x,y", comments="")
    (folder / "a.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nwords\n\n" * 9)
    return folder


@amounts
def test_media(media, tmp_path, count):
    outcomes = {}
    for path in sorted(media.iterdir()):
        data, damaged = path.read_bytes(), tmp_path / path.name

        def work(path=path, data=data, damaged=damaged):
            with Clip(path) as clip:
                original = read(clip)
            told = Counter()
            for seed in range(count):
                damaged.write_bytes(mutated(data, f"{path.name} {seed}"))
                with Clip(damaged, timeout=5) as clip:
                    found = read(clip)
                for name, was in original.items():
                    if was is not None:
                        is_now = found[name]
                        told["error" if is_now is None else "silent" if silent(is_now, was) else
                             "same" if np.array_equal(is_now, was) else "other"] += 1  # fmt: skip
            return told

        outcomes[path.name] = survived(work)
    assert all(told["error"] for told in outcomes.values()), outcomes
    # what has no checksum (pixels, samples) may come out different, but not as nothing
    silences = {name: told["silent"] for name, told in outcomes.items() if told["silent"]}
    assert sum(silences.values()) <= 0.01 * sum(told.total() for told in outcomes.values()), silences


@pytest.fixture(scope="module")
def shards(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "shards"
    rows = demo.read_text().splitlines(keepends=True)[:5]
    (folder.parent / "few.csv").write_text("".join(rows))
    for row in rows[1:]:
        source = next(cell for cell in row.split(",") if cell.endswith(".mp4"))
        (folder.parent / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(demo.parent / source, folder.parent / source)
    done = mbt("data", "pack", folder.parent / "few.csv", "--modalities", "rgb,audio", "--out", folder, "--workers", 1)
    assert done.code == 0, done.err
    return folder


@amounts
@pytest.mark.parametrize("name", ["shard-000000.tar", "shard-000000.index.npy"])
def test_shards(shards, tmp_path, name, count):
    """Any change of what is read is found: the index holds checksums of the members. It has none of itself."""
    data = (shards / name).read_bytes()

    def read_all(folder):
        found = []
        for row in range(4):
            try:
                with open_clip(f"{folder}/shard-000000.tar/{row:09d}/path", timeout=5) as clip:
                    found.append((clip.frames([0.0, 0.7], short_side=32), clip.waveform(0.1, 1.0, 16000)))
            except MediaError as error:
                names(error, str(folder))
                found.append(None)
        return found

    def work():
        original, told = read_all(shards), Counter()
        assert all(original)
        for seed in range(count):
            folder = tmp_path / str(seed)
            shutil.copytree(shards, folder)
            (folder / name).write_bytes(mutated(data, f"{name} {seed}"))
            for was, now in zip(original, read_all(folder), strict=True):
                same = now is not None and all(map(np.array_equal, was, now))
                told["error" if now is None else "same" if same else "other"] += 1
            shutil.rmtree(folder)
        return told

    told = survived(work)
    assert told["error"]
    assert told["other"] <= (0 if name.endswith(".tar") else 0.05 * told.total()), told


@amounts
def test_checkpoints(run, tmp_path, count):
    """Any change is found: both files hold checksums."""
    files = ("model.safetensors", f"state/{FILE}")
    (tmp_path / "state").mkdir()
    shutil.copy(run.path / "config.json", tmp_path)
    originals = [load_file(run.path / name) for name in files]

    def work():
        told = Counter()
        for name, original, load in zip(files, originals, (MBT.from_pretrained, lambda p: load_state(p / "state")),
                                        strict=True):  # fmt: skip
            data = (run.path / name).read_bytes()
            for seed in range(count):
                changed = mutated(data, f"{name} {seed}")
                (tmp_path / name).write_bytes(changed)
                try:
                    load(tmp_path)
                except MBTError as error:
                    names(error, str(tmp_path / name))
                    told["error"] += 1
                    continue
                if b'"crc32":' in changed:  # else it is a file without a checksum, of which nobody can tell
                    read_back = load_file(tmp_path / name)
                    assert all(torch.equal(read_back[key], original[key]) for key in original)
                told["same"] += 1
        return told

    told = survived(work)
    assert told["error"] > told["same"], told


def test_the_command_on_damaged_files(run, media, tmp_path):
    """One line for each file that cannot be read, the others are classified."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a.mp4", "fast.mp4", "a.mkv", "a.avi", "a.wav", "a.flac", "a.jpg"):
        for seed in range(4):
            (folder / f"{seed} {name}").write_bytes(mutated((media / name).read_bytes(), f"{seed}"))
    done = survived(lambda: mbt("predict", run.path, folder, "--json"))
    answers = json.loads(done.out)
    failed = [answer for answer in answers if "error" in answer]
    assert len(answers) == 28
    assert 0 < len(failed) < 28
    assert (done.code, done.err) == (1, f"Error: {len(failed)} of 28 could not be classified\n")
    assert all("\n" not in answer["error"] for answer in failed)
