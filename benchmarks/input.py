"""How fast clips are read on one core: the paper's input, 8 frames of 224 x 224 and 8 s of sound.

    python benchmarks/input.py [--clips N] [--video FILE]

Compares reading from 720p mp4, 256p mp4 and packed shards with the bare cost of the same decoding in plain PyAV (and
libjpeg-turbo for shards), in the same run: for an mp4, the one pass of the decoder up to the last frame that is needed,
these frames scaled, and the sound decoded and resampled; for a shard, the same 8 JPEGs and the FLAC. Also compares the
spectrograms of a batch with a bare Fourier transform and mel product. Each figure is the median of several rounds.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from mbt_core.config import DataConfig
from mbt_core.data.collate import Collate
from mbt_core.data.dataset import ClipDataset, Draw
from mbt_core.data.manifest import Manifest
from mbt_core.data.packing import pack
from mbt_core.media import open_clip
from mbt_core.media.pictures import FLAGS

SECONDS, FRAMES, RATE, SIDE = 8.0, 8, 16_000, 256
LENGTH = 10.0
READS = {"rgb": "frames", "audio": "waveform"}


def make_video(path: Path, height: int, width: int, fps: int = 25) -> None:
    """10 s of drifting textured noise, H.264 with a keyframe every 250 frames at most, and stereo AAC at 44.1 kHz."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (height // 8 + 64, width // 8 + 64, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": "23"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = out.add_stream("aac", rate=44100, layout="stereo")
        for i in range(round(LENGTH * fps)):
            top, left = (i % 256), (2 * i) % 256
            picture = texture[top : top + height, left : left + width]
            out.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        out.mux(video.encode(None))
        sound = (0.1 * rng.standard_normal((2, round(LENGTH * 44100)))).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="stereo")
        frame.sample_rate = 44100
        out.mux(audio.encode(frame))
        out.mux(audio.encode(None))


def times_of(start: float) -> list[float]:
    return [start + (i + 0.5) * SECONDS / FRAMES for i in range(FRAMES)]


def bare_mp4(path: Path, start: float) -> None:
    """The frames and the sound of a window with nothing but PyAV."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        wanted, base = times_of(start), float(stream.time_base)
        scale = SIDE / min(stream.width, stream.height)
        scaled = {
            "width": round(stream.width * scale),
            "height": round(stream.height * scale),
            "format": "rgb24",
            "interpolation": FLAGS,
            "threads": 1,
        }
        reformatter = VideoReformatter()
        container.seek(int(wanted[0] / base), stream=stream)
        held, pictures = None, []
        for frame in container.decode(stream):
            while wanted and frame.pts * base > wanted[0] + 1e-3:
                pictures.append(reformatter.reformat(held, **scaled).to_ndarray())
                wanted.pop(0)
            if not wanted:
                break
            held = frame
        np.stack(pictures)
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        stream.codec_context.thread_count = 1
        container.seek(int(max(0.0, start - 0.25) / float(stream.time_base)), stream=stream)
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=RATE)
        parts = []
        for frame in container.decode(stream):
            if frame.pts * float(stream.time_base) > start + SECONDS:
                break
            parts += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        np.concatenate(parts)[: round(SECONDS * RATE)]


def bare_shard(frames: list[bytes], sound: bytes, turbo: bool) -> None:
    """The same JPEGs and FLAC, from memory."""
    if turbo:
        from torchvision.io import ImageReadMode, decode_jpeg

        decoded = (decode_jpeg(torch.frombuffer(bytearray(x), dtype=torch.uint8), ImageReadMode.RGB) for x in frames)
        np.stack([x.permute(1, 2, 0).numpy() for x in decoded])
    else:
        pictures = []
        for data in frames:
            context = av.CodecContext.create("mjpeg", "r")
            context.thread_count = 1
            picture = [*context.decode(av.Packet(data)), *context.decode(None)][0]
            pictures.append(picture.reformat(format="rgb24", interpolation=FLAGS, threads=1).to_ndarray())
        np.stack(pictures)
    with av.open(io.BytesIO(sound), format="flac") as container:
        np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


def read_window(path: str, start: float) -> None:
    """What the core does for a window, without augmentation and collation."""
    with open_clip(path) as clip:
        clip.frames(times_of(start), short_side=SIDE)
        clip.waveform(start, start + SECONDS, RATE)


def modalities() -> dict:
    from mbt_audio.config import AudioConfig
    from mbt_audio.modality import Audio
    from mbt_rgb.config import RgbConfig
    from mbt_rgb.modality import Rgb

    return {"rgb": Rgb("rgb", RgbConfig()), "audio": Audio("audio", AudioConfig(mean=0.0, std=1.0))}


def race(contestants: dict[str, Callable[[float], None]], rounds: int) -> dict[str, float]:
    """Median seconds of a call, the contestants taking turns, each at the same drawn windows."""
    starts = np.random.default_rng(0).random(rounds + 1) * (LENGTH - SECONDS)
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for number, start in enumerate(starts.tolist()):
        for name, call in contestants.items():
            begin = time.perf_counter()
            call(start)
            if number:  # the first round opens files and loads libraries
                found[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in found.items()}


def line(name: str, seconds: float, bare: float) -> str:
    return f"{name:<34}{1000 * seconds:>10.1f}{1 / seconds:>12.1f}{seconds / bare:>10.2f}{bare / seconds:>10.2f}"


def run_source(name: str, path: Path, folder: Path, rounds: int) -> None:
    """mp4: the core's reading, the whole data set with augmentation and collation, against bare PyAV."""
    (folder / "m.csv").write_text(f"id,path\na,{path}\n")
    manifest, parts = Manifest.read(folder / "m.csv", READS, DataConfig()), modalities()
    found = race(
        {
            "bare": lambda start: bare_mp4(path, start),
            "read": lambda start: read_window(str(path), start),
            "dataset": sampler_of(manifest, parts),
        },
        rounds,
    )
    print(line(f"{name}: bare PyAV", found["bare"], found["bare"]))
    print(line(f"{name}: read", found["read"], found["bare"]))
    print(line(f"{name}: data set and collate", found["dataset"], found["bare"]))


def sampler_of(manifest: Manifest, parts: dict) -> Callable[[float], None]:
    dataset = ClipDataset(manifest, parts, {}, config=DataConfig(), seed=0, training=True)
    collate, epochs = Collate(parts), iter(range(10**9))
    return lambda start: collate([dataset[Draw(next(epochs), 0)]]) and None


def run_shards(path: Path, folder: Path, rounds: int) -> None:
    (folder / "m.csv").write_text(f"id,path\na,{path}\n")
    pack(folder / "m.csv", READS, DataConfig(), folder / "shards", workers=1)
    manifest, parts = Manifest.read(folder / "shards", READS, DataConfig()), modalities()
    packed = manifest.row(0).sources["rgb"].path
    clip = open_clip(packed)
    since, records = clip._frames
    jpegs = clip._shard.read(records, clip.timeout)
    flac = clip._shard.read([clip._member("path.flac")], clip.timeout)[0]

    def bare(turbo: bool) -> Callable[[float], None]:
        def call(start: float) -> None:
            wanted = np.searchsorted(since, times_of(start), side="right") - 1
            bare_shard([jpegs[i] for i in wanted], flac, turbo)

        return call

    found = race(
        {
            "pyav": bare(False),
            "turbo": bare(True),
            "read": lambda start: read_window(packed, start),
            "dataset": sampler_of(manifest, parts),
        },
        rounds,
    )
    print(line("shards: bare PyAV", found["pyav"], found["pyav"]))
    print(line("shards: bare libjpeg-turbo + PyAV", found["turbo"], found["pyav"]))
    print(line("shards: read", found["read"], found["pyav"]))
    print(line("shards: data set and collate", found["dataset"], found["pyav"]))
    print(f"  read against bare libjpeg-turbo + PyAV: {found['turbo'] / found['read']:.2f} of its speed")
    print(f"  a clip takes {(folder / 'shards/shard-000000.tar').stat().st_size / 1e6:.1f} MB")


def run_spectrogram(rounds: int, batch: int = 16) -> None:
    """The device side of sound, on this machine's processor."""
    audio = modalities()["audio"]
    preprocess = audio.preprocessor()
    log_mel = preprocess.log_mel
    wave = torch.randint(-9999, 9999, (batch, round(SECONDS * RATE)), dtype=torch.int16)
    sample = {"waveform": wave, **{f"{k}_masks": torch.zeros(batch, 0, 2, dtype=torch.int32) for k in ("time", "freq")}}

    def bare(start: float) -> None:
        padded = torch.nn.functional.pad(wave.float(), (432, 432))
        spectrum = torch.stft(padded, 1024, 160, 400, log_mel.window, center=False, return_complex=True)
        torch.matmul(spectrum.abs().square().transpose(1, 2), log_mel.filters[::2])

    found = race({"bare": bare, "ours": lambda start: preprocess(sample) is None}, rounds)
    print(line(f"spectrograms of {batch}: bare FFT and mel", found["bare"], found["bare"]))
    print(line(f"spectrograms of {batch}: preprocessor", found["ours"], found["bare"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=30, help="rounds of each measurement")
    parser.add_argument("--video", type=Path, help="a 720p video of at least 10 s, in place of a made one")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'one core':<34}{'ms a clip':>10}{'clips/s':>12}{'x bare':>10}{'speed':>10}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large = given.video.resolve() if given.video else folder / "720p.mp4"
        if given.video is None:
            make_video(large, 720, 1280)
        make_video(folder / "256p.mp4", 256, 456)
        run_source("720p mp4", large, folder, given.clips)
        run_source("256p mp4", folder / "256p.mp4", folder, given.clips)
        run_shards(large, folder, given.clips)
    run_spectrogram(given.clips)


if __name__ == "__main__":
    main()
