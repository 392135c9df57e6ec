"""The saved state: complete, replaced in one go, and never a pickle."""

import json
import os
import pickle
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mbt_core as mbt
from mbt_core.config import TrainConfig
from mbt_core.training.optimizer import make_optimizer
from mbt_core.training.state import FILE, Progress, load_optimizer, load_state, optimizer_tensors, save_state
from toy.models import build_tiny, inputs_for

pytestmark = pytest.mark.usefixtures("toys")
PROGRESS = Progress(7, 5, 0.5, 5, 1, 0.25, {"ü": "no such file"}, False, {"top1": 0.25}, {"label": ["a", "b"]},
                    {"steps": 9, "epochs": None, "batch_size": 64, "monitor": "auto",
                     "select": "best"})  # fmt: skip


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        model(inputs_for(model, seed=step)).logits.square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_goes_on_to_the_same_weights(name, tmp_path):
    config = TrainConfig(optimizer=name, lr=0.01, weight_decay=0.1, lr_factors={"alpha": 0.5})
    unbroken = build_tiny(count=2)
    optimizer = make_optimizer(unbroken, config, torch.device("cpu"))
    train(unbroken, optimizer, range(3))
    save_state(tmp_path, unbroken.state_dict(), optimizer_tensors(unbroken, optimizer), PROGRESS)
    train(unbroken, optimizer, range(3, 6))
    resumed = build_tiny(count=2)
    again = make_optimizer(resumed, config, torch.device("cpu"))
    weights, buffers, progress = load_state(tmp_path)
    resumed.load_weights(weights, "state")
    load_optimizer(resumed, again, buffers)
    assert progress == PROGRESS
    train(resumed, again, range(3, 6))
    torch.testing.assert_close(resumed.state_dict(), unbroken.state_dict(), rtol=0, atol=0)


def test_fresh_optimizer_has_nothing_to_keep(tmp_path):
    model = build_tiny(count=1)
    optimizer = make_optimizer(model, TrainConfig(), torch.device("cpu"))
    save_state(tmp_path, model.state_dict(), optimizer_tensors(model, optimizer), Progress())
    _, buffers, progress = load_state(tmp_path)
    load_optimizer(model, optimizer, buffers)
    assert (buffers, progress) == ({}, Progress())
    assert not optimizer.state


def in_child(work):
    """Runs `work` in a process of its own; returns the signal that ended it."""
    if (pid := os.fork()) == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("moment", ["half written", "before the rename"])
def test_killed_while_saving_leaves_the_old_state(moment, tmp_path, monkeypatch):
    old = {"w": torch.arange(4.0)}
    save_state(tmp_path, old, {}, PROGRESS)

    def kill(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def save_half(tensors, path, metadata):
        Path(path).write_bytes(b"\0" * 40)
        kill()

    def work():
        if moment == "half written":
            monkeypatch.setattr("safetensors.torch.save_file", save_half)
        else:
            monkeypatch.setattr(Path, "replace", kill)
        save_state(tmp_path, {"w": torch.zeros(4)}, {}, Progress(8))

    assert in_child(work) == -signal.SIGKILL
    weights, _, progress = load_state(tmp_path)
    torch.testing.assert_close(weights, old)
    assert progress.step == 7
    save_state(tmp_path, {"w": torch.ones(4)}, {}, Progress(9))
    assert load_state(tmp_path)[2].step == 9


def test_failing_to_save_says_so_and_leaves_the_old_state(tmp_path, monkeypatch):
    save_state(tmp_path, {"w": torch.zeros(2)}, {}, PROGRESS)

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(mbt.MBTError) as error:
        save_state(tmp_path, {"w": torch.ones(2)}, {}, Progress(8))
    expected = f"{tmp_path / FILE}: cannot be written: No space left on device. What was saved before is untouched"
    assert str(error.value) == expected
    assert load_state(tmp_path)[2] == PROGRESS
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("length", [0, 4, 8, 100, 0.5, -1])
def test_truncated_file(length, tmp_path):
    save_state(tmp_path, {"w": torch.arange(100.0)}, {"w/step": torch.tensor(3.0)}, PROGRESS)
    path = tmp_path / FILE
    content = path.read_bytes()
    path.write_bytes(content[: int(length * len(content)) if isinstance(length, float) else length])
    with pytest.raises(
        mbt.DataError, match=r"state\.safetensors: not a saved state, or a damaged one .*; delete it to"
    ):
        load_state(tmp_path)


def test_another_plan_is_refused():
    source = Path("runs/x/config.yaml")
    PROGRESS.check_plan(TrainConfig(steps=9, lr=0.1), source)
    Progress(7).check_plan(TrainConfig(steps=9), source)  # of a state that does not know it
    with pytest.raises(mbt.ConfigError) as error:
        PROGRESS.check_plan(TrainConfig(steps=20, batch_size=8), source)
    assert str(error.value) == (
        "runs/x/config.yaml: train.steps=20 (was 9), train.batch_size=8 (was 64): a run goes on as it was planned. Put "
        "that back, or start another run from these weights: --set model.pretrained=runs/x"
    )


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("touched",))


def test_pickles_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write in (lambda p: torch.save({"w": Payload()}, p), lambda p: p.write_bytes(pickle.dumps(Payload()))):
        write(tmp_path / FILE)
        with pytest.raises(mbt.DataError, match="not a saved state, or a damaged one"):
            load_state(tmp_path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"progress": "not json"}, {"progress": "[1]"}, {"progress": json.dumps({"stpe": 3})}],
)
def test_other_safetensors_files_are_refused(metadata, tmp_path):
    save_file({"model.w": torch.zeros(2)}, tmp_path / FILE, metadata)
    with pytest.raises(mbt.DataError, match="not a saved state, or a damaged one"):
        load_state(tmp_path)


def test_unknown_tensors_and_missing_files_are_refused(tmp_path):
    with pytest.raises(mbt.DataError, match=r"state\.safetensors: cannot be read: .*No such file"):
        load_state(tmp_path)
    save_file({"surplus.w": torch.zeros(2)}, tmp_path / FILE, {"progress": "{}"})
    with pytest.raises(mbt.DataError, match=r"not a saved state, or a damaged one \('surplus'\)"):
        load_state(tmp_path)
