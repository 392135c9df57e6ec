"""Every command of every page is run as it is printed, or is in `NOT_RUN` with the reason."""

import csv
import re
import shutil
from itertools import pairwise

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import mbt_benchmarks.demo
from mbt_core.config.recipes import says_length
from page_commands import PAGES, commands_of
from small import clips_of, mbt, read_csv, write_csv
from small_fixtures import demo

__all__ = ["demo"]

NOT_RUN = {
    r"python3 -m venv|\. \.venv|pip install \.": "installs this very package",
    r"pip install mbt-fusion": "asks the package index",
    r"pytest|OMP_NUM_THREADS=1 python benchmarks|python benchmarks": "the tests and benchmarks themselves, for minutes",
    r"benchmarks/device\.sh": "minutes of a GPU: tests/e2e/test_device_table.py",
    r"mbt serve|curl ": "goes on until it is stopped: tests/cli/test_serve.py",
    r"torchrun|srun": "several machines: tests/e2e/test_many_processes.py, tests/core/distributed/test_distributed.py",
    r"wget|hf download|mbt predict runs/theirs": "downloads: tests/e2e/test_hub.py has a hub on loopback",
    r"mbt .*(s3://|https://)": "servers: tests/core/data/test_remote_shards.py has one on loopback",
    r"mbt convert scenic|mbt \w+ runs/(mbt|as-mini)": "the released weights: tests/core/pretrained/test_scenic.py",
    r"mbt .*audioset|mbt .*--data shards": "official annotations: tests/e2e/test_benchmarks.py has small ones",
    r"mbt train .*vit_tiny_patch16_224|mbt train .*vit_base_patch16_224": "weights of timm: tests/core/pretrained",
}
"""Commands, as patterns, and why they are not run here."""
WHOLE = {"production.md", "writing-a-dataset.md", "writing-a-fusion-strategy.md", "writing-a-plugin.md"}
"""Pages whose snippets make what their commands need: tests of their own run both."""
READ_ONLY = {"writing-a-fusion-strategy.md", "writing-a-plugin.md"}
"""Those of them whose blocks without a language are run, too, by `run_read_only` of their tests."""
SIZES = {
    "rgb": ("size=32", "short_side=32", "frames=2"),
    "audio": ("mel_bins=32",),
    "signal": (),
}
SMALL = ("model.backbone.dim=48", "model.backbone.heads=6", "train.batch_size=4", "data.workers=0")
COMMANDS = [(page.name, list(commands_of(page))) for page in PAGES]


def why_not_run(text):
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, text)), None)


def test_what_is_not_run_is_on_a_page():
    texts = [command.text for _, commands in COMMANDS for command in commands]
    assert len(texts) > 80
    for pattern in NOT_RUN:
        assert any(re.match(pattern, text) for text in texts), f"{pattern!r} is on no page any more"


def test_the_commands_of_pages_with_tests_of_their_own_are_run():
    """In `sh` blocks by `run_page`, in blocks without a language by `run_read_only`, or not, with the reason."""
    others = {
        command.text.partition(" ")[0]
        for name, commands in COMMANDS
        for command in commands
        if name in WHOLE - READ_ONLY and command.language == "" and not why_not_run(command.text)
    }
    assert not others


def small(words):
    """A command with settings for size in front of its own, which win, and with fewer cells or folds of a sweep."""
    command = words[0]
    given = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    if command not in ("train", "compare", "transfer") or "--resume" in words:
        return words
    named = dict(pairwise(words))
    text = named.get("--modalities") or named.get("-m") or "rgb,audio"
    weights = "--pretrained" in words or command == "transfer"  # the geometry is theirs
    ours = [setting for setting in SMALL if not (weights and setting.startswith("model.backbone."))]
    sets = [*ours, *([] if any(map(says_length, given)) else ["train.steps=2"])]
    for part in text.split(","):
        name, _, kind = part.partition("=")
        sets += [f"modalities.{name}.{setting}" for setting in SIZES[kind or name]]
    more = [word for setting in sets for word in ("--set", setting)]
    fewer = {"compare": ["--seeds", "1"], "transfer": ["--seeds", "1", "--fractions", "1"]}.get(command, [])
    fewer += ["--folds", "2"] if "--folds" in words else []
    return [command, *more, *words[1:], *fewer]


@pytest.fixture
def desk(demo, tmp_path, monkeypatch):
    """A folder with what a reader of the pages has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MBT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mbt_benchmarks.demo, "make_demo", lambda *_: demo.parent / "manifest.csv")  # fewer videos
    clips = [*clips_of(demo, "train")[:15], *clips_of(demo)]
    labels = {demo.parent / row["path"]: row["label.sum"] for row in read_csv(demo)}
    rows = [
        {"id": str(i), "path": clip, "label": labels[clip], "split": "train" if i < 15 else "test"}
        for i, clip in enumerate(clips)
    ]
    for name in ("manifest.csv", "clips.csv"):
        write_csv(tmp_path / name, rows)
    write_csv(tmp_path / "new.csv", [{"id": row["id"], "path": row["path"]} for row in rows[-3:]])
    columns = ("left", "right", "audio")
    write_csv(tmp_path / "stereo.csv", [{**dict.fromkeys(columns, row.pop("path")), **row} for row in rows])
    for folder in ("folder", "clips"):
        (tmp_path / folder).mkdir()
        shutil.copy(clips[-1], tmp_path / folder / "one.mp4")
    shutil.copy(clips[-1], tmp_path / "clip.mp4")
    recordings(tmp_path)
    torch.manual_seed(0)
    for name in ("vit_small_patch16_224", "vit_small_patch14_dinov2"):
        vit = timm.models.VisionTransformer(
            img_size=32, patch_size=16, embed_dim=384, depth=2, num_heads=6, num_classes=0
        )
        save_file(vit.state_dict(), tmp_path / f"{name}.safetensors")
    return tmp_path


def recordings(folder):
    """``motions.csv``: two sensors, four activities."""
    rng = np.random.default_rng(0)
    (folder / "motions").mkdir()
    with (folder / "motions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "accel", "gyro", "label", "split"])
        for i in range(24):
            names = [f"motions/{i}-{sensor}.npy" for sensor in ("accel", "gyro")]
            for name in names:
                np.save(folder / name, rng.normal(i % 4, 1, (3, 100)).astype(np.float32))
            writer.writerow([i, *names, f"c{i % 4}", "train" if i < 16 else "test"])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "commands"), [(n, c) for n, c in COMMANDS if n not in WHOLE and c])
def test_the_commands_of_a_page_run_as_printed(desk, name, commands):
    for run in BEFORE.get(name, ()):
        assert mbt(*small(run.split())).code == 0
    for command in commands:
        if why_not_run(command.text):
            continue
        assert command.words[0] == "mbt", f"{name}:{command.line}: {command.text}"
        done = mbt(*small(list(command.words[1:])))
        assert done.code == 0, f"{name}:{command.line}: {command.text}\n{done.out}\n{done.err}"


BEFORE = {
    "explaining.md": ["train --out runs/demo-rgb-audio"],
}
"""What a page takes from another one."""
