"""Every ablation: its printed commands train its cells, and nothing is left to do then."""

import shlex

import pytest

from mbt_core.sweep.presets import PRESETS
from small import mbt, tiny_sets

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", PRESETS)
def test_printed_commands_train_all_cells(name, demo, run, tmp_path):
    sets = tiny_sets("rgb,audio", "train.steps=2", "train.eval_every=2", "modalities.rgb.seconds=1.2")
    sets += ["modalities.audio.seconds=1.2", *([f"model.pretrained={run.path}"] if name == "init" else [])]
    flags = ["--modalities", "rgb,audio", "--data", demo, "--device", "cpu"]
    grid = [
        "compare",
        "--preset",
        name,
        *flags,
        *(word for s in sets for word in ("--set", s)),
        "--out",
        tmp_path / "out",
    ]
    commands = mbt(*grid, "--dry-run").out.splitlines()
    assert len(commands) >= 2
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "mbt"
        done = mbt(*words)
        assert done.code == 0, done.err
    assert mbt(*grid, "--dry-run").out == ""
    table = mbt(*grid, "--quiet")
    assert table.code == 0, table.err
    assert len((tmp_path / "out/results.csv").read_text().splitlines()) == 1 + len(commands)
