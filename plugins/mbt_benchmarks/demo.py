"""The demo's data: short mp4 files (H.264 + AAC) of one moving shape and one sound, made on first use.

A clip lasts 1.2 s: 12 frames of 64 x 64 pixels at 10 frames a second, and 16 kHz mono sound. It shows a
`disc`, a `square` or a `triangle` and plays a steady `tone`, upward `sweep`s or pulsed `bursts`. All nine
pairs come equally often and make two tasks:

- `kind`: the pair, as in `disc+sweep`. Either modality alone leaves three pairs open: 1/3 at best.
- `sum`: (index of the shape + index of the sound) mod 3. Given one modality all three answers are equally
  likely. Nor does adding logits help: by symmetry, the least cross-entropy that a sum of one table of logits for
  each modality can reach is that of calling all answers equally likely. Only an exchange between them solves it.

What differs between clips of one class, independently of both classes (`Nuisance` has the ranges):

- picture: size (as area, so that brightness does not tell the shapes apart), position, tilt, speed and
  direction (straight, reflected at the borders), colours of shape and background, noise drawn anew for each
  pixel and frame;
- sound: pitch, strength of the overtone, phase, loudness (RMS, the same range for all sounds), white noise,
  and the rate of repetition, which sweeps and bursts share.
"""

import csv
import json
import math
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from mbt_core.errors import ConfigError, MBTError

VERSION = 1
"""Part of the cache folder's name: raise it with every change of what the files hold."""

SHAPES = ("disc", "square", "triangle")
SOUNDS = ("tone", "sweep", "bursts")
PAIRS = tuple((shape, sound) for shape in range(3) for sound in range(3))

SIZE = 64  # pixels, height and width
FPS = 10
FRAMES = 12
RATE = 16_000  # samples a second
SAMPLES = RATE * FRAMES // FPS
MAX_WORKERS = 8


@dataclass(frozen=True)
class Nuisance:
    """Strengths of what tells no class: (low, high) are ranges of uniform draws, in log scale for `pitch`."""

    radius: tuple[float, float] = (13.0, 18.0)  # pixels; of the disc of the same area
    speed: tuple[float, float] = (10.0, 30.0)  # pixels a second
    tilt: float = 10.0  # degrees, to either side
    shape_luma: tuple[float, float] = (0.65, 0.95)  # 0 black, 1 white
    background_luma: tuple[float, float] = (0.05, 0.35)
    tint: float = 0.25  # most a colour channel departs from the luma, about
    pixel_noise: float = 0.03  # standard deviation; white is 1
    pitch: tuple[float, float] = (400.0, 1200.0)  # hertz; of a sweep its middle
    overtone: tuple[float, float] = (0.1, 0.5)  # amplitude at twice the pitch, relative
    repetition: tuple[float, float] = (3.0, 5.0)  # sweeps or bursts a second
    sweep_octaves: float = 2.0
    loudness: tuple[float, float] = (-30.0, -15.0)  # dB RMS; full scale is 0
    signal_to_noise: tuple[float, float] = (15.0, 30.0)  # dB


@dataclass(frozen=True)
class DemoClip:
    """One row of the manifest, with the indices of its two classes."""

    split: str
    index: int  # within the split
    shape: int
    sound: int

    @property
    def id(self) -> str:
        return f"{self.split}-{self.index:05d}"

    @property
    def path(self) -> str:
        return f"clips/{self.id}.mp4"

    @property
    def kind(self) -> str:
        return f"{SHAPES[self.shape]}+{SOUNDS[self.sound]}"

    @property
    def sum(self) -> str:
        return str((self.shape + self.sound) % 3)


def make_demo(
    folder: Path | None = None,
    *,
    train: int = 2000,
    test: int = 400,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> Path:
    """Return the path of the demo's manifest; make its files first if they are not there.

    The same arguments give the same bytes on one machine, whatever `workers` is. The folder appears only when
    it is complete: several processes may ask for it at once, and an interrupted call never leaves half of it.

    Args:
        folder: where the manifest lies, or is to lie. Default: a folder named after the other arguments in
            `$MBT_CACHE`, or `~/.cache/mbt`.
        train: number of clips in the split `train`.
        test: number of clips in the split `test`.
        seed: of all that is drawn.
        progress: called with (clips made, clips in all), only if clips have to be made.
        workers: number of processes. Default: one a core.

    Raises:
        MBTError: the folder cannot be written, or holds something else.
        ConfigError: negative numbers, or no clips at all.
    """
    if min(train, test, seed) < 0 or train + test == 0:
        raise ConfigError(
            f"the demo got train={train}, test={test}, seed={seed}; expected none below 0 and at least one clip"
        )
    if folder is None:
        cache = Path(os.environ.get("MBT_CACHE") or Path.home() / ".cache" / "mbt")
        folder = cache / f"demo-v{VERSION}-{train}-{test}-{seed}"
    folder = Path(folder).expanduser().absolute()
    settings = {"version": VERSION, "train": train, "test": test, "seed": seed}
    manifest = folder / "manifest.csv"
    if _is_complete(folder, settings):
        return manifest
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        (draft / "clips").mkdir(parents=True)
        clips = plan_clips(train, test, seed)
        _encode_in_processes(draft, settings, len(clips), progress, workers or _cores())
        _write_manifest(draft, clips, settings)
        if folder.exists():
            folder.rmdir()  # an empty folder is taken over
        draft.rename(folder)
    except OSError as error:
        # Another process may have been faster.
        if not _is_complete(folder, settings):
            raise MBTError(
                f"the demo's files cannot be written to {folder}: {error}. "
                "Make room there or choose another folder (environment variable MBT_CACHE)."
            ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return manifest


def plan_clips(train: int, test: int, seed: int) -> list[DemoClip]:
    """Rows of the manifest, shuffled in each split; the counts of the nine pairs differ by one at most."""
    clips = []
    for number, (split, count) in enumerate({"train": train, "test": test}.items()):
        pairs = np.random.default_rng((seed, number)).permutation(np.arange(count) % len(PAIRS))
        clips += [DemoClip(split, index, *PAIRS[pair]) for index, pair in enumerate(pairs)]
    return clips


def render_frames(shape: str, rng: np.random.Generator, nuisance: Nuisance) -> np.ndarray:
    """Pictures of a moving `shape`: uint8 [12, 64, 64, 3], RGB.

    The signed distance to the shape's border, in pixels, gives smooth edges without sampling.
    """
    radius, speed = rng.uniform(*nuisance.radius), rng.uniform(*nuisance.speed)
    tilt, heading = math.radians(rng.uniform(-nuisance.tilt, nuisance.tilt)), rng.uniform(0, 2 * math.pi)
    low, span = 1.1 * radius, SIZE - 2.2 * radius
    travel_T2 = np.outer(np.arange(FRAMES) * speed / FPS, (math.cos(heading), math.sin(heading)))
    path_T2 = (rng.uniform(0, span, 2) + travel_T2) % (2 * span)
    centre_T2 = low + span - np.abs(path_T2 - span)

    grid_HW = np.mgrid[:SIZE, :SIZE] + 0.5
    dx_THW = (grid_HW[1] - centre_T2[:, 0, None, None]).astype(np.float32)
    dy_THW = (grid_HW[0] - centre_T2[:, 1, None, None]).astype(np.float32)
    x_THW = dx_THW * math.cos(tilt) + dy_THW * math.sin(tilt)
    y_THW = dy_THW * math.cos(tilt) - dx_THW * math.sin(tilt)
    if shape == "disc":
        distance_THW = np.hypot(x_THW, y_THW) - radius
    elif shape == "square":
        distance_THW = np.maximum(np.abs(x_THW), np.abs(y_THW)) - radius * math.sqrt(math.pi) / 2
    else:  # equilateral, pointing up
        sides_THW = np.maximum(np.abs(x_THW) * math.sqrt(0.75) - y_THW / 2, y_THW)
        distance_THW = sides_THW - radius * math.sqrt(math.pi / math.sqrt(27))

    cover_THW1 = np.clip(0.5 - distance_THW, 0, 1)[..., None]
    front_C, back_C = (
        _colour(rng.uniform(*luma), rng, nuisance.tint) for luma in (nuisance.shape_luma, nuisance.background_luma)
    )
    noise_THW1 = rng.standard_normal((FRAMES, SIZE, SIZE, 1), dtype=np.float32) * nuisance.pixel_noise
    frames_THWC = back_C + cover_THW1 * (front_C - back_C) + noise_THW1
    return (np.clip(frames_THWC, 0, 1) * 255).round().astype(np.uint8)


def render_sound(sound: str, rng: np.random.Generator, nuisance: Nuisance) -> np.ndarray:
    """Waveform of a `sound`: float32 [19200] in [-1, 1], 16 kHz."""
    pitch = np.exp(rng.uniform(*np.log(nuisance.pitch)))
    overtone, repetition = rng.uniform(*nuisance.overtone), rng.uniform(*nuisance.repetition)
    start, overtone_start = rng.uniform(0, 2 * np.pi, 2)
    cycle_N = (np.arange(SAMPLES) / RATE * repetition + rng.random()) % 1
    octaves_N = nuisance.sweep_octaves * (cycle_N - 0.5) if sound == "sweep" else np.zeros(SAMPLES)
    phase_N = 2 * np.pi / RATE * np.cumsum(pitch * 2**octaves_N) + start
    signal_N = np.sin(phase_N) + overtone * np.sin(2 * phase_N + overtone_start)
    if sound == "bursts":
        signal_N *= np.clip(20 * np.minimum(cycle_N, 0.5 - cycle_N), 0, 1)  # on for half of each cycle

    rms = 10 ** (rng.uniform(*nuisance.loudness) / 20)
    noise_rms = rms / 10 ** (rng.uniform(*nuisance.signal_to_noise) / 20)
    signal_N *= rms / np.sqrt(np.mean(signal_N**2))
    return np.clip(signal_N + noise_rms * rng.standard_normal(SAMPLES), -1, 1).astype(np.float32)


def _colour(luma: float, rng: np.random.Generator, tint: float) -> np.ndarray:
    """Draw an RGB colour of the given luma (BT.601)."""
    tint_C = rng.uniform(-tint, tint, 3)
    return np.clip(luma + tint_C - tint_C @ (0.299, 0.587, 0.114), 0, 1).astype(np.float32)


def _write_clip(path: str, frames_THWC: np.ndarray, waveform_N: np.ndarray) -> None:
    """Encode with one thread and without version tags: the same bytes each time.

    x264's macroblock tree is off since it makes the bytes of pictures this small differ from run to run.
    """
    options = {"preset": "veryfast", "crf": "23", "x264-params": "mbtree=0"}
    with av.open(path, "w", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", FPS, options=options)
        video.width, video.height, video.pix_fmt = SIZE, SIZE, "yuv420p"
        audio = container.add_stream("aac", RATE, layout="mono", options={"aac_coder": "fast"})
        audio.bit_rate = 64_000
        for context in (video.codec_context, audio.codec_context):
            context.thread_count = 1
            context.flags |= av.codec.context.Flags.bitexact
        for picture_HWC in frames_THWC:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture_HWC, format="rgb24")))
        container.mux(video.encode())
        sound = av.AudioFrame.from_ndarray(waveform_N[None], format="fltp", layout="mono")
        sound.sample_rate, sound.time_base, sound.pts = RATE, Fraction(1, RATE), 0
        container.mux(audio.encode(sound))
        container.mux(audio.encode())


def encode_share(settings: dict[str, Any], part: int, parts: int) -> None:
    """Make every `parts`-th clip in the working directory and print a line for each: what a process does."""
    seed = settings["seed"]
    for clip in plan_clips(settings["train"], settings["test"], seed)[part::parts]:
        # Picture and sound draw from generators of their own: neither's class touches the other's draws.
        key = (seed, 1 + (clip.split == "test"), clip.index)
        frames_THWC = render_frames(SHAPES[clip.shape], np.random.default_rng((*key, 0)), Nuisance())
        waveform_N = render_sound(SOUNDS[clip.sound], np.random.default_rng((*key, 1)), Nuisance())
        _write_clip(clip.path, frames_THWC, waveform_N)
        print(flush=True)


def _encode_in_processes(
    draft: Path,
    settings: dict[str, Any],
    total: int,
    progress: Callable[[int, int], None] | None,
    workers: int,
) -> None:
    """Run `encode_share` in fresh interpreters, which, unlike those of multiprocessing, never import the main
    module again: that may import torch, or lack the guard that multiprocessing needs.
    """
    workers = max(1, min(workers, total))
    code = f"import json, sys; from {__name__} import encode_share; encode_share(*json.loads(sys.argv[1]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)}
    read_end, write_end = os.pipe()  # shared by all processes: one line a clip
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryFile() as complaints, os.fdopen(read_end) as lines:
        try:
            with os.fdopen(write_end, "w") as output:
                for part in range(workers):
                    command = [sys.executable, "-c", code, json.dumps([settings, part, workers])]
                    processes.append(
                        subprocess.Popen(command, cwd=draft, env=environment, stdout=output, stderr=complaints)
                    )
            for done, _ in enumerate(lines, 1):
                if progress:
                    progress(done, total)
            codes = [process.wait() for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if any(codes):
            complaints.seek(0)
            reason = complaints.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise OSError(reason or f"a process of the encoding ended with exit code {max(codes, key=abs)}")


def _write_manifest(folder: Path, clips: Sequence[DemoClip], settings: dict[str, Any]) -> None:
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "path", "label.kind", "label.sum", "split"))
        writer.writerows((clip.id, clip.path, clip.kind, clip.sum, clip.split) for clip in clips)
    kinds = [f"{SHAPES[shape]}+{SOUNDS[sound]}" for shape, sound in PAIRS]
    classes = {"kind": kinds, "sum": ["0", "1", "2"]}
    (folder / "manifest.classes.json").write_text(json.dumps(classes, indent=1), encoding="utf-8")
    (folder / "demo.json").write_text(json.dumps(settings), encoding="utf-8")


def _is_complete(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds the demo made with these settings.

    Raises:
        MBTError: it holds something else.
    """
    found, occupied = None, False
    # In this order: another process may complete the folder in between.
    with suppress(OSError):
        occupied = any(folder.iterdir()) if folder.is_dir() else folder.exists()
    with suppress(OSError, ValueError):
        found = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    if found is None and not occupied:
        return False
    if found != settings:
        holds = f"the demo made with {found}" if found else "other files"
        raise MBTError(
            f"{folder} holds {holds}, expected an empty folder or the demo made with {settings}. "
            "Choose another folder or delete this one."
        )
    return True


def _cores() -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(available or 1, MAX_WORKERS)
