"""Files that kill, hang or starve the process that reads them: they count as unreadable, and all else is as without."""

import csv
import faulthandler
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest

from forked import children
from mbt_core.data import packing, readers
from mbt_core.media import Clip
from small import clips_of, mbt, read_csv, tiny_run, tiny_sets, write_csv

KILLED = "the process that read it died (SIGSEGV)"
LEFT = "the process that read it died (exit code 3)"
HUNG = "reading it did not end within 1 s"
HUNGRY = "Unable to allocate 6.00 GiB"
SAID = {"kills.mp4": KILLED, "exits.mp4": LEFT, "hangs.mp4": HUNG, "starves.mp4": HUNGRY}

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def deadly(monkeypatch):
    """Files of these names do to the process that opens them what they say; never to this one."""
    main, opened = os.getpid(), Clip._opened

    def open_(self):
        name = os.path.basename(self.name)
        if name in SAID:
            assert os.getpid() != main, "read in the main process"
            match name:
                case "kills.mp4":
                    faulthandler.disable()  # pytest would print where
                    os.kill(os.getpid(), signal.SIGSEGV)
                case "exits.mp4":
                    os._exit(3)
                case "hangs.mp4":
                    time.sleep(1000)
                case "starves.mp4":
                    np.empty(6 << 30, np.uint8)
        return opened(self)

    monkeypatch.setattr(Clip, "_opened", open_)
    monkeypatch.setattr(packing, "free_memory", lambda: 0)
    monkeypatch.setattr(readers, "PATIENCE", 0.0)
    monkeypatch.setattr(readers, "MIN_PATIENCE", 1.0)


@pytest.fixture
def nothing_left():
    before = children()
    yield
    until = time.monotonic() + 5
    while not children() <= before and time.monotonic() < until:
        time.sleep(0.05)
    assert children() <= before


def manifest_with(demo, folder, names, split, content=None):
    """The demo with these files in place of the first clips of a split: real clips, or files of this content."""
    folder.mkdir()
    rows = read_csv(demo)
    clips = clips_of(demo, split)
    for row in rows:
        row["path"] = str(demo.parent / row["path"])
    replaced = [row for row in rows if row["split"] == split][: len(names)]
    for row, clip, name in zip(replaced, clips, names, strict=False):
        row["path"] = str(folder / name)
        if content is None:
            shutil.copy(clip, folder / name)
        else:
            (folder / name).write_bytes(content)
    (folder / "m.classes.json").write_text(demo.with_suffix(".classes.json").read_text())
    return write_csv(folder / "m.csv", rows)


def reading(run, folder, **changes):
    """A copy of a run that reads in processes."""
    copy = shutil.copytree(run.path, folder / "copy")
    config = (copy / "config.yaml").read_text().replace("workers: 0", "workers: 1")
    for old, new in changes.items():
        config = config.replace(f"{old}: ", f"{old}: {new} #")
    (copy / "config.yaml").write_text(config)
    return copy


def unreadable(data):
    """Name of a file -> the error that `mbt data check` reports, and the counts of each modality of the train split."""
    done = mbt("data", "check", data, "-m", "rgb,audio", "--json")
    assert done.code == 0
    result = json.loads(done.out)["splits"]["train"]["modalities"]
    problems = {problem.partition(": ")[0].rpartition("/")[2]: problem for problem in result["rgb"]["problems"]}
    return problems, {name: (m["present"], m["unreadable"]) for name, m in result.items()}


def test_check(demo, tmp_path, deadly, nothing_left):
    problems, counts = unreadable(manifest_with(demo, tmp_path / "data", list(SAID), "train"))
    assert problems.keys() == SAID.keys()
    assert all(SAID[name] in problem for name, problem in problems.items())
    assert counts == {"rgb": (23, 4), "audio": (23, 4)}
    assert mbt("data", "check", tmp_path / "data" / "m.csv", "-m", "rgb,audio", "--strict").code == 1


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["auto", "none", "disk"])
def test_train(demo, tmp_path, deadly, nothing_left, monkeypatch, cache):
    """To the same weights as with files that are damaged in other ways."""
    monkeypatch.setenv("MBT_CACHE", str(tmp_path / "cache"))
    names = list(SAID) if cache == "auto" else ["kills.mp4", "starves.mp4"]
    sets = ("data.max_missing=0.2", f"data.cache={cache}", "train.steps=8")  # two passes
    run = tiny_run(manifest_with(demo, tmp_path / "d", names, "train"), tmp_path / "run", *sets, "data.workers=1")
    with (run.path / "bad_clips.csv").open() as file:
        errors = [row["error"] for row in csv.DictReader(file)]
    assert len(errors) == len(names)
    assert all(name in error and SAID[name] in error for name, error in zip(names, errors, strict=True))
    damaged = manifest_with(demo, tmp_path / "e", [f"bad{i}.mp4" for i in range(len(names))], "train", b"nothing")
    other = tiny_run(damaged, tmp_path / "other", *sets, "data.workers=0")
    assert (run.path / "model.safetensors").read_bytes() == (other.path / "model.safetensors").read_bytes()


def test_training_stops_above_the_limit(demo, tmp_path, deadly, nothing_left):
    data = manifest_with(demo, tmp_path / "data", ["kills.mp4"], "train")
    sets = [x for s in tiny_sets("rgb,audio", "data.workers=1") for x in ("--set", s)]
    done = mbt("train", "--data", data, "-m", "rgb,audio", "--out", tmp_path / "run", "-q", *sets)
    assert done.code == 1
    assert "0 of 27 named files are missing and 1 cannot be read, more than the 1.00% that data.max_missing" in done.err
    assert f"kills.mp4: {KILLED}" in done.err


def test_auto_fields_are_filled_without_them(demo, tmp_path, deadly, nothing_left):
    data = manifest_with(demo, tmp_path / "data", ["kills.mp4"], "train")
    stats = json.loads(mbt("data", "stats", data, "-m", "rgb,audio", "--json").out)
    damaged = manifest_with(demo, tmp_path / "other", ["bad.mp4"], "train", b"nothing")
    expected = json.loads(mbt("data", "stats", damaged, "-m", "rgb,audio", "--json", "--set", "data.workers=0").out)
    assert stats == expected
    assert (stats["failed"], stats["rows"]) == (1, 27)


@pytest.mark.slow
def test_eval_and_embed(run, demo, tmp_path, deadly, nothing_left):
    names = ["kills.mp4", "starves.mp4"]
    data = manifest_with(demo, tmp_path / "data", names, "test")
    damaged = manifest_with(demo, tmp_path / "other", ["a.mp4", "b.mp4"], "test", b"nothing")
    copy = reading(run, tmp_path)
    done = mbt("eval", copy, "--data", data, "--max-missing", 0.3, "--json")
    assert done.code == 0
    other = mbt("eval", run.path, "--data", damaged, "--max-missing", 0.3, "--json")
    assert json.loads(done.out)["metrics"] == json.loads(other.out)["metrics"]
    done = mbt("eval", copy, "--data", data)
    assert done.code == 1
    assert f"kills.mp4: {KILLED}" in done.err
    embed = ("--max-missing", 0.3, "--split", "test")
    assert mbt("embed", copy, "--data", data, "--out", tmp_path / "e.npy", *embed).code == 0
    assert mbt("embed", run.path, "--data", damaged, "--out", tmp_path / "f.npy", *embed).code == 0
    result, expected = np.load(tmp_path / "e.npy"), np.load(tmp_path / "f.npy")
    assert np.isnan(result).all(1).tolist() == [True, True] + [False] * 7
    assert np.array_equal(result, expected, equal_nan=True)


@pytest.mark.parametrize("every", [1, pytest.param(None, marks=pytest.mark.slow)])
def test_predict(run, demo, tmp_path, deadly, nothing_left, every):
    clips = clips_of(demo)
    for name in SAID:
        shutil.copy(clips[0], tmp_path / name)
    files = [clips[1], *(tmp_path / name for name in SAID), clips[2]]
    options = [] if every is None else ["--every", every]
    copy = reading(run, tmp_path)
    done = mbt("predict", copy, *files, "--json", *options)
    answers = json.loads(done.out)
    errors = {os.path.basename(answer["file"]): answer["error"] for answer in answers if "error" in answer}
    assert done.code == 1
    assert errors.keys() == SAID.keys()
    assert all(SAID[name] in error for name, error in errors.items())
    good = mbt("predict", copy, clips[1], clips[2], "--json", *options)
    assert good.code == 0
    assert [answer for answer in answers if "error" not in answer] == json.loads(good.out)


def test_explain(run, demo, tmp_path, deadly, nothing_left):
    shutil.copy(clips_of(demo)[0], tmp_path / "kills.mp4")
    files = (tmp_path / "kills.mp4", clips_of(demo)[1])
    done = mbt("explain", reading(run, tmp_path), *files, "--out", tmp_path / "page.html")
    assert done.code == 1
    assert f"kills.mp4: {KILLED}" in done.out + done.err
    assert clips_of(demo)[1].name in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_pack(demo, tmp_path, deadly, nothing_left, workers):
    """The shards hold what the others hold, and why these cannot be read."""
    names = ["kills.mp4", "starves.mp4"]
    options = ("-m", "rgb,audio", "--shard-size", 20, "--json", "--workers", workers)
    reports = []
    for folder, content in (("data", None), ("other", b"nothing")):
        data = manifest_with(demo, tmp_path / folder, names, "train", content)
        done = mbt("data", "pack", data, "--out", tmp_path / f"{folder}-shards", *options)
        assert done.code == 0
        reports.append(json.loads(done.out))
    assert (reports[0]["rows"], reports[0]["unreadable"], reports[0]["frames"]) == (45, 2, reports[1]["frames"])
    assert f"kills.mp4: {KILLED}" in reports[0]["examples"][0]
    assert HUNGRY in reports[0]["examples"][1]
    checked = json.loads(mbt("data", "check", tmp_path / "data-shards", "-m", "rgb,audio", "--json").out)
    result = checked["splits"]["train"]["modalities"]["rgb"]
    assert (result["present"], result["unreadable"]) == (25, 2)
    assert KILLED in result["problems"][0]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["compare", "transfer"])
def test_sweeps(demo, tmp_path, deadly, nothing_left, command):
    data = manifest_with(demo, tmp_path / "data", ["kills.mp4"], "train")
    sets = [x for s in tiny_sets("rgb,audio", "data.workers=1", "data.max_missing=0.2") for x in ("--set", s)]
    more = ["--over", "model.fusion.layer=1,2", "--seeds", 1]
    if command == "transfer":
        earlier = tiny_run(demo, tmp_path / "earlier").path
        more = ["--init", f"none,{earlier}", "--tune", "all", "--fractions", 1, "--seeds", 1]
    done = mbt(command, "--data", data, "-m", "rgb,audio", "--out", tmp_path / "out", *more, *sets)
    assert done.code == 0, done.err
    noted = [path.read_text() for path in (tmp_path / "out").rglob("bad_clips.csv")]
    assert noted
    assert all(KILLED in text for text in noted)
