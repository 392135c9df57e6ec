"""What goes wrong around a run: a full disk, killed and hanging processes. It says so, ends, and nothing is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file

from forked import children, forked, state_of
from mbt_core.data import readers
from mbt_core.data.collate import Collate
from mbt_core.data.dataset import ClipDataset
from mbt_core.errors import ConfigError, MBTError, MBTWarning
from mbt_core.training.events import Listener
from mbt_core.training.folder import RunFolder
from mbt_core.training.loggers import JsonLines
from mbt_core.training.loop import Interrupted
from mbt_core.training.state import FILE, read_progress
from small import clips_of, mbt, read_csv, tiny_run, tiny_sets

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="limits and finds processes as Linux does"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
SETS = ("train.steps=8", "train.eval_every=4", "train.log_every=2", "train.lr=0.02")
UNTOUCHED = "What was saved before is untouched"


@pytest.fixture(scope="module")
def unbroken(demo, tmp_path_factory):
    return tiny_run(demo, tmp_path_factory.mktemp("unbroken") / "run", *SETS).path


class Stop(Listener):
    """Asks the run to stop when a step is logged."""

    def __init__(self, at):
        self.at = at

    def step(self, step, metrics):
        if step == self.at:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def stopped(demo, tmp_path):
    """A run that was stopped after 2 of 8 steps."""
    with pytest.raises(Interrupted):
        tiny_run(demo, tmp_path / "run", *SETS, listeners=[Stop(2)])
    return tmp_path / "run"


def assert_same(run, unbroken):
    assert (run / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()
    one, other = (load_file(path / "state" / FILE) for path in (run, unbroken))
    assert one.keys() == other.keys()
    assert all((one[key] == other[key]).all() for key in one)
    assert not list(run.rglob("*.tmp"))


def train_arguments(demo, out, *sets):
    return ("train", "--data", demo, "-m", "rgb,audio", "--out", out, "-q",
            *(x for s in tiny_sets("rgb,audio", *SETS, *sets) for x in ("--set", s)))  # fmt: skip


# a full disk


@pytest.mark.slow
def test_disk_full_while_the_state_is_saved(stopped, unbroken):
    state = stopped / "state" / FILE
    before = state.read_bytes()
    done = forked(lambda: mbt("train", "--resume", stopped, "-q"), largest_file=len(before) - 1000)
    assert done.code == 1
    (message,) = done.err.splitlines()
    assert message.startswith(f"Error: {state}: cannot be written: ")
    assert message.endswith(f"{UNTOUCHED}")
    assert state.read_bytes() == before
    assert mbt("train", "--resume", stopped, "-q").code == 0
    assert_same(stopped, unbroken)


@pytest.mark.slow
def test_disk_full_at_the_very_start(demo, tmp_path):
    done = forked(lambda: mbt(*train_arguments(demo, tmp_path / "run")), largest_file=100)
    assert done.code == 1
    (message,) = done.err.splitlines()
    assert message.startswith(f"Error: {tmp_path}/run/config.yaml: cannot be written: File too large. ")
    assert mbt(*train_arguments(demo, tmp_path / "run")).code == 0


def test_killed_before_there_was_a_run(tmp_path):
    """What is left of a configuration that was being written does not stand in the way."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / ".config.yaml.12-34.tmp").write_text("train:")
    folder.check_unused()
    (folder.path / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        folder.check_unused()


def test_disk_full_while_logging(tmp_path):
    def log():
        logger = JsonLines()
        logger.run_start(tmp_path, {}, 0, 100)
        try:
            for step in range(100):
                logger.step(step, {"loss": 0.5})
        except MBTError as error:
            return str(error)

    path = tmp_path / "metrics.jsonl"
    assert forked(log, largest_file=1000) == f"{path}: cannot be written: File too large"
    JsonLines().run_start(tmp_path, {}, 7, 100)  # goes on from the state's step
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(8))


def test_disk_full_while_packing(demo, tmp_path):
    few = tmp_path / "few.csv"
    few.write_text("id,path\n" + "".join(f"{clip.stem},{clip}\n" for clip in clips_of(demo)))
    pack = ("data", "pack", few, "--modalities", "rgb,audio", "--out", tmp_path / "shards", "--shard-size", 5,
            "--workers", 2)  # fmt: skip
    done = forked(lambda: mbt(*pack), largest_file=20_000)
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith(f"Error: {tmp_path}/shards/shard-00000")
    assert ".tar: cannot be written: " in done.err
    assert not list((tmp_path / "shards").glob("*.tar"))
    assert not list((tmp_path / "shards").glob(".*"))
    assert mbt(*pack).code == 0
    shutil.move(tmp_path / "shards", tmp_path / "broken")
    assert mbt(*pack).code == 0
    for path in (tmp_path / "shards").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "broken" / path.name).read_bytes()


def test_disk_full_for_decoded_clips(demo, unbroken, tmp_path, monkeypatch):
    """They need not be kept: the run goes on, and comes to the same."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MBT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(MBTWarning, match=r"cannot be written: .*\. Clips are decoded anew each time"):
        tiny_run(demo, tmp_path / "run", *SETS, "data.cache=disk")
    assert_same(tmp_path / "run", unbroken)


def test_disk_full_while_predicting(run, demo, tmp_path):
    out, clips = tmp_path / "out.jsonl", clips_of(demo)
    done = forked(lambda: mbt("predict", run.path, *clips, "--out", out), largest_file=2000)
    assert done.code == 1
    assert done.err == (f"Error: {out}: cannot be written: File too large. What is in it stays: when that is mended, "
                        "go on with --resume\n")  # fmt: skip
    done = mbt("predict", run.path, *clips, "--out", out, "--resume")
    assert done.code == 0
    assert sorted(json.loads(line)["file"] for line in out.read_text().splitlines()) == sorted(map(str, clips))


def test_disk_full_for_what_an_evaluation_and_an_explanation_write(run, demo, tmp_path):
    copy = shutil.copytree(run.path, tmp_path / "copy")
    done = forked(lambda: mbt("eval", copy), largest_file=1000)
    assert (done.code, done.out.startswith("test split")) == (0, True)
    assert done.err.startswith(f"Warning: {copy}/predictions.parquet: cannot be written: ")
    assert (copy / "predictions.parquet").read_bytes() == (run.path / "predictions.parquet").read_bytes()
    page = tmp_path / "page.html"
    done = forked(lambda: mbt("explain", copy, clips_of(demo)[0], "--out", page), largest_file=1000)
    assert (done.code, page.exists()) == (1, False)
    assert done.err.splitlines()[-1].startswith(f"Error: {page}: cannot be written: ")
    done = forked(lambda: mbt("embed", copy, "--out", tmp_path / "e.npy"), largest_file=100)
    assert (done.code, (tmp_path / "e.npy").exists()) == (1, False)
    assert done.err.splitlines()[-1].startswith(f"Error: {tmp_path}/e.npy: cannot be written: ")


# reading processes


@pytest.fixture
def fatal(monkeypatch):
    """Reading processes that get a signal of this number when they read row 5, or once when they do."""

    def arm(number, once=None):
        main, read = os.getpid(), ClipDataset.__getitem__

        def hit(self, draw):
            if os.getpid() != main and draw.index == 5 and not (once and once.exists()):
                if once:
                    once.touch()
                os.kill(os.getpid(), number)
            return read(self, draw)

        monkeypatch.setattr(ClipDataset, "__getitem__", hit)
        monkeypatch.setattr(readers, "PATIENCE", 0.0)
        monkeypatch.setattr(readers, "MIN_PATIENCE", 1.5)

    return arm


SAID = {
    signal.SIGKILL: "the process that read it died (SIGKILL; perhaps memory is out)",
    signal.SIGSTOP: "reading it did not end within 1.5 s",
}
WORKERS = ("data.workers=1", "data.cache=none")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_reading_processes_fail_at_a_clip_while_training(demo, tmp_path, fatal, number):
    """It is a bad clip of the run, which goes on to its end."""
    before = children()
    fatal(number)
    done = mbt(*train_arguments(demo, "run", *WORKERS, "data.max_missing=0.1"))
    assert done.code == 0
    (bad,) = read_csv(tmp_path / "run" / "bad_clips.csv")
    assert bad["id"] == read_csv(demo)[5]["id"]
    assert bad["error"].endswith(f".mp4: {SAID[number]}")
    assert children() <= before
    done = mbt(*train_arguments(demo, "strict", *WORKERS))
    assert done.code == 1
    assert SAID[number] in done.err


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_reading_process_fails_once_while_training(demo, unbroken, tmp_path, fatal, number):
    """Its work is done again: the run comes to the same as one that nobody disturbed."""
    before = children()
    fatal(number, once=tmp_path / "marker")
    assert mbt(*train_arguments(demo, "run", *WORKERS)).code == 0
    assert (tmp_path / "marker").exists()
    assert not (tmp_path / "run" / "bad_clips.csv").exists()
    assert_same(tmp_path / "run", unbroken)
    assert children() <= before


@pytest.mark.parametrize(("command", "number"), [
    ("eval", signal.SIGKILL),
    ("predict", signal.SIGKILL),
    pytest.param("eval", signal.SIGSTOP, marks=pytest.mark.slow),
    pytest.param("predict", signal.SIGSTOP, marks=pytest.mark.slow),
])  # fmt: skip
def test_reading_processes_fail_while_evaluating(run, demo, tmp_path, fatal, command, number):
    copy = shutil.copytree(run.path, tmp_path / "copy")
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("workers: 0", "workers: 1"))
    before = children()
    fatal(number)
    if command == "eval":  # row 5 is of the train split
        done = mbt("eval", copy, "--split", "train", "--max-missing", "0.1")
        assert done.code == 0
        assert mbt("eval", copy, "--split", "train").code == 1
    else:
        done = mbt("predict", copy, *clips_of(demo))
        assert (done.code, done.out.count(SAID[number]) + done.err.count(SAID[number])) == (1, 1)
    assert children() <= before


def test_processes_that_die_between_rows_end_the_command(demo, tmp_path, monkeypatch):
    """There is no row to leave out."""
    monkeypatch.setattr(Collate, "__call__", lambda *_: os._exit(7))
    before = children()
    done = mbt(*train_arguments(demo, "run", *WORKERS))
    assert done.code == 1
    assert done.err.startswith("Error: 3 reading processes in a row came to an end outside of any row, the last one so")
    assert "exit code 7" in done.err
    assert children() <= before


# the real thing


def start(folder, *arguments, script=None):
    how = ["-m", "mbt_cli"] if script is None else ["-c", f"{script}\nfrom mbt_cli.main import main\nmain()"]
    return subprocess.Popen([sys.executable, *how, *map(str, arguments)], cwd=folder, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)  # fmt: skip


def wait_for(happened, process, seconds=120.0):
    until = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_a_disk_that_is_really_full(demo, unbroken, tmp_path):
    """A file system of 8 MB: filled by another file while the run saves, freed, and gone on with."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not permitted here")
    try:
        run = disk / "run"
        process = start(tmp_path, *train_arguments(demo, run, "train.steps=2000", "train.save_every=0.01"))
        wait_for((run / "state" / FILE).exists, process)
        with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1000))
        _, error = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "Traceback" not in error
        (message,) = error.splitlines()
        assert "cannot be written" in message
        assert "No space left on device" in message
        saved = read_progress(run / "state").step
        assert saved > 0
        (disk / "filler").unlink()
        process = start(tmp_path, "train", "--resume", run)
        wait_for(lambda: read_progress(run / "state").step > saved, process)
        process.terminate()
        _, error = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM, error
        assert f"from step {saved}\n" in error
    finally:
        subprocess.run(["umount", str(disk)], check=True)


HANG = """
import os, time
from mbt_core.data.dataset import ClipDataset
main, read = os.getpid(), ClipDataset.__getitem__
def hang(self, draw):
    if os.getpid() != main:
        time.sleep(1000)
    return read(self, draw)
ClipDataset.__getitem__ = hang
"""


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_command(demo, tmp_path, number):
    """Not even reading processes that hang."""
    sets = ("data.workers=2", "data.cache=none")
    process = start(tmp_path, *train_arguments(demo, "run", *sets), script=HANG)
    wait_for(lambda: len(children_of(process.pid)) == 2, process)
    time.sleep(1)
    workers = children_of(process.pid)
    process.send_signal(number)
    if number == signal.SIGTERM:  # heeded between two steps, and there is none
        time.sleep(3)
        process.send_signal(number)
    process.communicate(timeout=60)
    until = time.monotonic() + 20
    while any(state_of(worker) not in ("", "Z") for worker in workers):
        assert time.monotonic() < until, [state_of(worker) for worker in workers]
        time.sleep(0.2)
