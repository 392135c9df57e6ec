"""Nothing is lost: an interrupted run goes on to what an unbroken one comes to, bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mbt_core.training.events import Listener
from mbt_core.training.loggers import JsonLines
from mbt_core.training.loop import Interrupted
from mbt_core.training.state import FILE, load_state, read_progress, save_state
from small import mbt, read_csv, tiny_run, tiny_sets, write_csv

SETS = ("train.steps=9", "train.eval_every=4", "train.log_every=2", "train.mixup=0.3", "train.modality_dropout=0.2",
        "train.lr=0.02", "data.cache=memory")  # fmt: skip
TIMES = ("time", "clips_per_second")


@pytest.fixture(scope="module")
def unbroken(demo, tmp_path_factory):
    return tiny_run(demo, tmp_path_factory.mktemp("unbroken") / "run", *SETS).path


def lines_of(folder):
    """The metrics of a run, without what the clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def assert_same(folder, unbroken):
    """Weights, state and logs of two runs are the same, bit for bit."""
    assert (folder / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()
    one, other = (load_file(path / "state" / FILE) for path in (folder, unbroken))
    assert one.keys() == other.keys()
    assert all((one[key] == other[key]).all() for key in one)
    assert read_progress(folder / "state") == read_progress(unbroken / "state")
    assert lines_of(folder) == lines_of(unbroken)
    assert not list(folder.rglob("*.tmp"))


class SignalAt(Listener):
    """Sends this process a signal when a step is logged."""

    def __init__(self, number, step):
        self.number, self.at = number, step
        self.said = []

    def step(self, step, metrics):
        if step == self.at:
            os.kill(os.getpid(), self.number)

    def message(self, text):
        self.said.append(text)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "at", "saved"), [
    (signal.SIGINT, 2, 2),
    (signal.SIGTERM, 4, 4),  # the evaluation that is due is broken off, and made up for later
    (signal.SIGINT, 8, 8),
    (signal.SIGHUP, 6, 6),
], ids=["in an epoch", "at an evaluation", "at a later one", "when the terminal is closed"])  # fmt: skip
def test_goes_on_after_a_signal(demo, unbroken, tmp_path, number, at, saved):
    asks, before = SignalAt(number, at), signal.getsignal(number)
    with pytest.raises(Interrupted) as stopped:
        tiny_run(demo, tmp_path / "run", *SETS, listeners=[asks])
    assert stopped.value.exit_code == 128 + number
    assert "stopping after this step; once more to stop at once" in asks.said
    assert signal.getsignal(number) is before
    progress = read_progress(tmp_path / "run" / "state")
    assert (progress.step, progress.finished) == (saved, False)
    assert lines_of(tmp_path / "run")[-1]["event"] != "end"
    tiny_run(demo, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", unbroken)


def test_a_terminal_that_is_closed_is_nothing_to_a_run_under_nohup(demo, unbroken, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        tiny_run(demo, tmp_path / "run", *SETS, listeners=[SignalAt(signal.SIGHUP, 2)])
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert_same(tmp_path / "run", unbroken)


def test_a_log_with_bytes_that_are_no_text_is_gone_on_with(demo, unbroken, tmp_path):
    with pytest.raises(Interrupted):
        tiny_run(demo, tmp_path / "run", *SETS, listeners=[SignalAt(signal.SIGINT, 2)])
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_bytes(b'{"event": "step", "step": 1, "loss": "\xff\xfe"}\n\x80\n' + log.read_bytes())
    tiny_run(demo, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", unbroken)


class Snapshot(Listener):
    """Copies the run folder as a `kill -9` at this moment would leave it."""

    def __init__(self, into):
        self.into, self.taken = into, []

    def run_start(self, folder, config, step, steps):
        self.folder = folder
        self.take(f"start-{step}")

    def step(self, step, metrics):
        self.take(f"step-{step}")

    def epoch(self, step, metrics):
        self.take(f"epoch-{step}")

    def run_end(self, step, metrics):
        self.take("end")

    def take(self, name):
        shutil.copytree(self.folder, self.into / name)
        self.taken.append(name)


@pytest.mark.slow
def test_goes_on_from_wherever_it_was_killed(demo, unbroken, tmp_path):
    """Copies of the folder at every event; the state is saved after every step (and after every evaluation)."""
    snapshot = Snapshot(tmp_path)
    tiny_run(demo, tmp_path / "run", *SETS, "train.save_every=0.000001", listeners=[snapshot])
    assert snapshot.taken == ["start-0", "step-2", "step-4", "epoch-4", "step-6", "step-8", "epoch-8", "step-9",
                              "epoch-9", "end"]  # fmt: skip
    for name in ("start-0", "step-2", "epoch-4", "step-9"):
        (tmp_path / name / ".model.safetensors.123.tmp").touch()
        tiny_run(demo, tmp_path / name, resume=True)
        assert_same(tmp_path / name, unbroken)


def test_goes_on_from_the_state_and_not_from_the_log(demo, unbroken, tmp_path):
    """The log was ahead of the state, and its last line is half written."""
    with pytest.raises(Interrupted):
        tiny_run(demo, tmp_path / "run", *SETS, listeners=[SignalAt(signal.SIGINT, 2)])
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "step": 4, "loss": 7.0}\n{"event": "val", "st')
    tiny_run(demo, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", unbroken)


@pytest.mark.slow
def test_without_a_state_the_run_starts_anew(demo, unbroken, tmp_path):
    with pytest.raises(Interrupted):
        tiny_run(demo, tmp_path / "run", *SETS, listeners=[SignalAt(signal.SIGINT, 6)])
    shutil.rmtree(tmp_path / "run" / "state")
    done = mbt("train", "--resume", tmp_path / "run")
    assert done.code == 0
    assert f"run folder {tmp_path / 'run'}\n" in done.err
    assert_same(tmp_path / "run", unbroken)


@pytest.fixture
def stopped(demo, tmp_path):
    """Manifest and folder of a run that was stopped after two steps."""
    data = write_csv(tmp_path / "data.csv", [{**row, "path": str(demo.parent / row["path"])} for row in read_csv(demo)])
    with pytest.raises(Interrupted):
        tiny_run(data, tmp_path / "run", *SETS, listeners=[SignalAt(signal.SIGINT, 2)])
    return data, tmp_path / "run"


def rename(data, old, new, some=slice(None)):
    rows = read_csv(data)
    for row in [row for row in rows if row["label.kind"] == old][some]:
        row["label.kind"] = new
    write_csv(data, rows)


def test_the_classes_of_a_run_stay(stopped):
    data, folder = stopped
    name = read_progress(folder / "state").classes["kind"][0]
    for some in (slice(None), slice(1)):  # another name, one class more
        rename(data, name, "zzz", some)
        done = mbt("train", "--resume", folder, "-q")
        assert done.code == 1
        assert "'zzz' is no class of task 'kind'." in done.err
        assert "classes are those of the model" in done.err
        rename(data, "zzz", name)


def swapped(rows):
    names = {"0": "1", "1": "0"}
    return [row | {"label.sum": names.get(row["label.sum"], row["label.sum"])} for row in rows]


def test_changed_data_are_not_gone_on_with(stopped, tmp_path):
    data, folder = stopped
    rows = read_csv(data)
    for row in rows:
        (tmp_path / Path(row["path"]).name).symlink_to(row["path"])
    changes = {
        "labels of sum. Put": swapped(rows),
        "order. Put": rows[::-1],
        f"rows ({len(rows)} before, {len(rows) - 1} now), split ": rows[1:],
        "rows, split ": [rows[0] | {"id": "new"}, *rows[1:]],
        "spans. Put": [row | {"end": "0.9"} for row in rows],
        "files of rgb, files of audio. Put": [row | {"path": Path(row["path"]).name} for row in rows],
    }
    before = (folder / "config.yaml").read_text()
    for said, changed in changes.items():
        write_csv(data, changed)
        done = mbt("train", "--resume", folder, "-q")
        assert done.code == 2
        assert f"is not what it was when the run began; what has changed: {said}" in done.err
        assert f"mbt train --resume {folder} --accept-changed-data" in done.err
        assert (folder / "config.yaml").read_text() == before
    write_csv(data, rows)
    tiny_run(data, folder, resume=True)


@pytest.mark.slow
def test_changed_data_are_gone_on_with_where_that_is_asked_for(stopped):
    data, folder = stopped
    write_csv(data, swapped(read_csv(data)))
    names = read_progress(folder / "state").classes
    data.with_suffix(".classes.json").write_text(json.dumps({task: some[::-1] for task, some in names.items()}))
    done = mbt("train", "--resume", folder, "-q")
    assert (done.code, "labels of sum, classes (0 before, 2 now). Put" in done.err) == (2, True), done.err
    with pytest.raises(Interrupted):
        tiny_run(data, folder, resume=True, accept_changed_data=True, listeners=[SignalAt(signal.SIGINT, 4)])
    tiny_run(data, folder, resume=True)  # they are the run's now
    assert json.loads((folder / "config.json").read_text())["classes"] == names
    done = mbt("train", "--data", data, "--modalities", "rgb", "--accept-changed-data")
    assert (done.code, "--accept-changed-data is for a run that goes on" in done.err) == (2, True)


def test_a_run_of_an_earlier_version_notes_less_of_its_data(stopped):
    """Its ids, labels and splits alone; or nothing."""
    data, folder = stopped
    (folder / "state" / "data.json").unlink()
    write_csv(data, swapped(read_csv(data)))
    done = mbt("train", "--resume", folder, "-q")
    assert (done.code, "what has changed: ids, labels or splits" in done.err) == (2, True), done.err
    config = folder / "config.yaml"
    config.write_text("".join(ln for ln in config.read_text().splitlines(True) if not ln.startswith("# data ")))
    tiny_run(data, folder, resume=True)


def test_another_class_where_there_is_no_state(stopped):
    data, folder = stopped
    shutil.rmtree(folder / "state")
    rename(data, read_csv(data)[0]["label.kind"], "zzz", slice(1))
    done = mbt("train", "--resume", folder, "-q")
    assert done.code == 2
    assert "classes of task 'kind', but" in done.err


@pytest.mark.parametrize(("steps", "left"), [(1, "stopped"), (12, "stopped"), (1, "old"), (12, "finished")])
def test_another_plan(stopped, unbroken, tmp_path, steps, left):
    folder = stopped[1]
    if left == "finished":
        folder = shutil.copytree(unbroken, tmp_path / "finished")
    if left == "old":  # a state that does not know its plan
        weights, optimizer, progress = load_state(folder / "state")
        save_state(folder / "state", weights, optimizer, replace(progress, plan={}, classes={}))
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("steps: 9\n", f"steps: {steps}\n"))
    done = mbt("train", "--resume", folder, "-q")
    assert done.code == 2
    assert f"{config}" in done.err
    assert ("is at step 2 already" if left == "old" else f"train.steps={steps} (was 9)") in done.err


def test_a_finished_run_is_left_alone(unbroken):
    before = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*") if path.is_file()}
    done = mbt("train", "--resume", unbroken)
    assert done.code == 0
    assert done.err == f"{unbroken} is finished already, after 9 steps\n"
    assert done.out.startswith(f"test split, {unbroken}\n")
    assert "kind/top1" in done.out
    assert {path: path.stat().st_mtime_ns for path in unbroken.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_exit_codes_of_the_command(demo, unbroken, tmp_path, monkeypatch, number):
    asks = SignalAt(number, 6)
    step = JsonLines.step

    def ask(self, at, metrics):
        step(self, at, metrics)
        asks.step(at, metrics)

    out = tmp_path / "run"
    sets = [x for s in tiny_sets("rgb,audio", *SETS) for x in ("--set", s)]
    with monkeypatch.context() as patched:
        patched.setattr(JsonLines, "step", ask)
        done = mbt("train", "--data", demo, "--modalities", "rgb,audio", "--out", out, *sets)
    assert done.code == 128 + number
    assert done.err.endswith(f"Error: interrupted; go on with: mbt train --resume {out}\n")
    done = mbt("train", "--resume", out)
    assert done.code == 0
    assert f"run folder {out}, from step 6\n" in done.err
    assert_same(out, unbroken)


def test_ctrl_c_before_training(demo, tmp_path, monkeypatch):
    """Nothing is there yet that could be gone on with."""
    from mbt_core import run

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "build_with_report", interrupt)
    done = mbt("train", "--data", demo, "--modalities", "rgb", "--out", tmp_path / "run")
    assert (done.code, done.err.splitlines()[-1]) == (130, "Error: interrupted")
    assert not (tmp_path / "run").exists()


def test_ctrl_c_while_the_test_split_is_evaluated(demo, unbroken, tmp_path, monkeypatch):
    from mbt_core import run

    evaluate = run.evaluate_split

    def interrupt(experiment, model, manifest, split, *rest):
        if split == "test":
            raise KeyboardInterrupt
        return evaluate(experiment, model, manifest, split, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(run, "evaluate_split", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tiny_run(demo, tmp_path / "run", *SETS)
    assert not read_progress(tmp_path / "run" / "state").finished
    tiny_run(demo, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", unbroken)


def test_the_progress_of_a_run_gives_the_terminal_back(demo, tmp_path):
    from mbt_cli.progress import Progress

    progress = Progress()
    progress.console._force_terminal = True
    with pytest.raises(Interrupted):
        tiny_run(demo, tmp_path / "run", *SETS, listeners=[progress, SignalAt(signal.SIGINT, 2)])
    assert progress.bar is not None
    assert progress.bar.live.is_started
    progress.close()
    assert progress.bar is None


# the real thing


def start(*arguments, folder):
    command = [sys.executable, "-m", "mbt_cli", *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def arguments_for(demo, out, *sets):
    chosen = [x for s in tiny_sets("rgb,audio", *sets) for x in ("--set", s)]
    return ("train", "--data", demo, "--modalities", "rgb,audio", "--out", out, *chosen)


def wait_for(path, process, seconds=120.0):
    """Until the file is there or the process has ended."""
    end = time.monotonic() + seconds
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


LONG = ("train.steps=400", "train.eval_every=40", "train.log_every=7", "train.save_every=0.05", "train.mixup=0.3",
        "train.modality_dropout=0.2", "data.cache=memory")  # fmt: skip


@pytest.fixture(scope="module")
def long_unbroken(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    process = start(*arguments_for(demo, folder / "run", *LONG), folder=folder)
    assert process.wait(300) == 0, process.stderr.read()
    return folder / "run"


@pytest.mark.slow
def test_ten_kills_at_random_points(demo, long_unbroken, tmp_path):
    out, log = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    chance = random.Random(0)
    kills, steps = 0, []
    process = start(*arguments_for(demo, out, *LONG), folder=tmp_path)
    while kills < 10:
        seen = log.stat().st_size if log.exists() else 0
        wait_for(out / "config.yaml", process)
        while process.poll() is None and (not log.exists() or log.stat().st_size == seen):
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.4))
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        kills += 1
        progress = read_progress(out / "state")
        steps.append(progress.step if progress else 0)
        process = start("train", "--resume", out, folder=tmp_path)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert kills == 10, f"only {kills} kills at {steps}; make the run longer"
    assert steps == sorted(steps)
    assert_same(out, long_unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_real_command(demo, long_unbroken, tmp_path, number):
    out = tmp_path / "run"
    process = start(*arguments_for(demo, out, *LONG), folder=tmp_path)
    wait_for(out / "state" / FILE, process)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert error.endswith(f"Error: interrupted; go on with: mbt train --resume {out}\n")
    process = start("train", "--resume", out, folder=tmp_path)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert_same(out, long_unbroken)
