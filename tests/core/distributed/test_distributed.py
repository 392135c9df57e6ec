"""Several processes train what one does, and end together. Real processes (gloo), forked: see `toy.fleet`."""

import json
import math
import time

import pytest
import torch

import mbt_core as mbt
from mbt_core.config import HeadConfig
from mbt_core.distributed.launch import Place, expected_place, place
from mbt_core.evaluate.evaluator import Evaluation, merge
from mbt_core.io.files import read_safetensors
from mbt_core.training.state import load_state
from toy.fleet import HALT, KILL, STOP, run_fleet, train, train_impatiently, write_series

KEYS = ("event", "step", "loss", "top1", "top1[alpha]", "top1[gamma]")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """12 global batches of 8, evaluations on a val split that 2 and 4 do not divide, and files that are broken."""
    data = write_series(tmp_path_factory.mktemp("data"), 47)
    return {
        "modalities": {"alpha": {"channels": 2, "samples": 8}, "gamma": {}},
        "model": {"backbone": {"dim": 8, "depth": 2, "heads": 2}, "fusion": {"layer": 1, "bottlenecks": 2}},
        "data": {"path": str(data), "workers": 0, "max_missing": 0.2, "cache": "none"},
        "train": {"steps": 12, "batch_size": 8, "lr": 0.1, "eval_every": 4, "log_every": 2, "optimizer": "sgd"},
        "evaluate": {"batch_size": 4},
    }


@pytest.fixture(scope="module")
def alone(experiment, tmp_path_factory):
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert [ended.code for ended in run_fleet(1, train, experiment, out)] == [0]
    return out


def events(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in KEYS if key in line} for line in lines]


def assert_same_run(out, expected, rtol=1e-4, but=" "):
    """Events, bad clips, best weights and state; of the latter all but those whose name contains `but`."""
    found, wanted = events(out), events(expected)
    assert [line.keys() for line in found] == [line.keys() for line in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.pop("event") == other.pop("event")
        assert one == pytest.approx(other, rel=rtol)
    assert (out / "bad_clips.csv").read_text() == (expected / "bad_clips.csv").read_text()
    for name in ("model.safetensors", "state/state.safetensors"):
        one, other = ({k: v for k, v in read_safetensors(p / name).items() if but not in k} for p in (out, expected))
        torch.testing.assert_close(one, other, rtol=rtol, atol=1e-5)


def numbers(progress):
    return {key: value for key, value in vars(progress).items() if isinstance(value, (int, float))}


@pytest.mark.parametrize(
    ("world", "parallel"),
    [(2, "ddp"), pytest.param(4, "ddp", marks=pytest.mark.slow), pytest.param(2, "fsdp", marks=pytest.mark.slow)],
)
def test_any_number_of_processes_trains_the_same(world, parallel, experiment, alone, tmp_path):
    ended = run_fleet(world, train, experiment, tmp_path / "run", False, parallel)
    assert [e.code for e in ended] == [0] * world, [e.said for e in ended]
    assert_same_run(tmp_path / "run", alone)
    progress, expected = load_state(tmp_path / "run/state")[2], load_state(alone / "state")[2]
    assert numbers(progress) == pytest.approx(numbers(expected))
    assert progress.failed == expected.failed
    assert len(progress.failed) == 3
    assert progress.results == pytest.approx(expected.results, rel=1e-4)


@pytest.mark.slow
def test_accumulation_and_clipping_too(experiment, tmp_path):
    experiment = {**experiment, "train": {**experiment["train"], "accumulate": 2, "clip_grad": 0.5, "steps": 6}}
    for world, parallel in ((1, "ddp"), (2, "ddp"), (2, "fsdp")):
        ended = run_fleet(world, train, experiment, tmp_path / f"{parallel}{world}", False, parallel)
        assert [e.code for e in ended] == [0] * world, [e.said for e in ended]
    assert_same_run(tmp_path / "ddp2", tmp_path / "ddp1")
    assert_same_run(tmp_path / "fsdp2", tmp_path / "ddp1")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_goes_on_with_another_number_of_processes(optimizer, experiment, alone, tmp_path):
    """Stopped by a signal to the second process only, then gone on with in other numbers."""
    out, train_config = tmp_path / "run", {**experiment["train"], "optimizer": optimizer}
    train_config["lr"] = {"sgd": 0.1, "adamw": 0.003}[optimizer]
    experiment = {**experiment, "train": train_config}
    if optimizer == "adamw":
        alone = tmp_path / "alone"
        assert run_fleet(1, train, experiment, alone)[0].code == 0
    for world, parallel, rank, step in ((2, "ddp", 1, 3), (4, "ddp", 2, 6), (2, "fsdp", 1, 8)):
        ended = run_fleet(world, train, experiment, out, True, parallel, (rank, step, STOP))
        assert [e.code for e in ended] == [128 + STOP] * world, [e.said for e in ended]
        assert load_state(out / "state")[2].step == step + 1
    assert [e.code for e in run_fleet(1, train, experiment, out, True)] == [0]
    # a key's bias has no gradient but rounding, of which AdamW makes whole steps
    assert_same_run(out, alone, rtol=1e-3, but="qkv.bias" if optimizer == "adamw" else " ")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others(rank, experiment, tmp_path):
    start = time.monotonic()
    nines = {**experiment, "train": {**experiment["train"], "batch_size": 9}}
    ended = run_fleet(3, train, nines, tmp_path / "run", False, "ddp", (rank, 5, KILL))
    assert time.monotonic() - start < 60
    assert ended.pop(rank).code == -KILL
    assert [e.code for e in ended] == [1, 1]
    said = [line for e in ended for line in e.errors]
    assert len(said) == 1, said
    assert "connection to another process of the run broke" in said[0] or "first process of the run is gone" in said[0]
    assert "--resume" in said[0]


@pytest.mark.slow
def test_a_process_that_gives_no_sign_of_life_ends_the_others(experiment, tmp_path):
    ended = run_fleet(2, train_impatiently, experiment, tmp_path / "run", False, "ddp", (1, 5, HALT))
    assert ended[0].code == 1
    assert ended[0].errors == [
        "Error: process 1 of the run has given no sign of life for 3 s: it died, or its machine did"
    ]


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_ends_all_with_its_message_alone(rank, experiment, tmp_path):
    event = (rank, 5, mbt.DataError("the disk is gone"))
    ended = run_fleet(2, train, experiment, tmp_path / "run", False, "ddp", event)
    assert [e.code for e in ended] == [1, 1]
    assert ended[rank].errors == ["Error: the disk is gone"]
    assert ended[1 - rank].errors == []


def test_an_error_of_all_processes_is_said_once(experiment, tmp_path):
    experiment = {**experiment, "train": {**experiment["train"], "batch_size": 9}}
    ended = run_fleet(2, train, experiment, tmp_path / "run")
    assert [e.code for e in ended] == [2, 2]
    said = [line for e in ended for line in e.errors]
    assert said == ["Error: train.batch_size: 9 is not a multiple of the 2 processes"]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_too_many_bad_clips_over_all_processes(experiment, tmp_path):
    experiment = {**experiment, "data": {**experiment["data"], "max_missing": 0.02}}
    ended = run_fleet(2, train, experiment, tmp_path / "run")
    assert [e.code for e in ended] == [1, 1]
    assert len([line for e in ended for line in e.errors]) == 1
    assert "cannot be read, more than the 2.00%" in "".join(e.said for e in ended)


def part(rows, classes=3):
    index = torch.tensor(rows, dtype=torch.int64)
    if not rows:
        return Evaluation(index, {}, {}, {}, HeadConfig(classes=classes))
    logits = index[:, None] + torch.arange(classes) / 10
    present = {"alpha": index % 2 == 0}
    return Evaluation(index, {"": {"label": logits}}, {"label": index % classes}, present, HeadConfig(classes=classes))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 9])
def test_parts_of_an_evaluation_become_one_in_the_order_of_the_rows(world):
    rows = [3, 4, 8, 9, 11, 20, 21]
    parts = [part(rows[rank::world]) for rank in range(world)]
    parts[-1].failed = {30: "broken"}
    parts[0].failed = parts[0].failed | {10: "gone"}
    found, expected = merge(parts), part(rows)
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.logits[""]["label"], expected.logits[""]["label"])
    assert torch.equal(found.targets["label"], expected.targets["label"])
    assert torch.equal(found.present["alpha"], expected.present["alpha"])
    assert list(found.failed) == [10, 30]
    assert found.metrics() == expected.metrics()


def test_nothing_evaluated_anywhere():
    assert merge([part([]), part([])]).metrics() == {}


VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM = {
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "4812345",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
}


@pytest.fixture
def environment(monkeypatch):
    """Sets variables, without any of a launcher."""
    for name in (*VARIABLES, *SLURM):
        monkeypatch.delenv(name, raising=False)
    return lambda given: [monkeypatch.setenv(name, str(value)) for name, value in given.items()]


def test_place_of_a_process_alone(environment):
    assert place() == Place(0, 1, 0, 1)
    assert expected_place(4, 1) == Place(0, 4, 0, 4)
    with pytest.raises(mbt.ConfigError, match="--nodes 2: .* torchrun --nnodes 2 --nproc-per-node 8"):
        expected_place(8, 2)


def test_place_under_torchrun(environment):
    environment({"RANK": 11, "WORLD_SIZE": 16, "LOCAL_RANK": 3, "LOCAL_WORLD_SIZE": 8})
    assert expected_place(1, 1) == expected_place(8, 2) == Place(11, 16, 3, 8)
    with pytest.raises(mbt.ConfigError, match="--devices 4 --nodes 1: the launcher has started 8 processes on each"):
        expected_place(4, 1)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[07-08]", "gpu07"), ("gpu[7,9]", "gpu7"), ("alpha,beta", "alpha"), ("a-b[1-2]-c,d", "a-b1"), ("one", "one")],
)
def test_place_under_slurm(environment, nodes, first):
    from mbt_core.distributed import launch

    environment({**SLURM, "SLURM_STEP_NODELIST": nodes})
    assert expected_place(1, 1) == expected_place(8, 2) == Place(11, 16, 3, 8)
    with launch.processes(place()):
        import os

        assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == (first, "17345")
        assert (os.environ["RANK"], os.environ["LOCAL_RANK"]) == ("11", "3")
    for name in VARIABLES:
        os.environ.pop(name, None)


def test_a_slurm_job_without_srun_is_one_process(environment):
    environment({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"})
    assert place() == Place()


def test_sums_and_gathers_of_one_process():
    from mbt_core.distributed.processes import together
    from mbt_core.run import Hardware

    with together(Hardware("cpu"), "32") as team:
        assert team.sum(1.5, math.inf) == [1.5, math.inf]
        assert team.gather("x") == team.gather_everywhere("x") == ["x"]
        assert team.share(lambda: 3) == 3
    with (
        pytest.raises(mbt.ConfigError, match="--parallel fsdp: .* give --devices"),
        together(Hardware("cpu", parallel="fsdp"), "32"),
    ):
        pass
