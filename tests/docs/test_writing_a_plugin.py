"""The tutorials' code blocks run, and do what the text says."""

import importlib.util

import numpy as np
import pytest
import timm

import mbt_core as mbt
from mbt_core.testing.conformance.case import Case
from mbt_core.testing.conformance.suite import CHECKS
from page_commands import commands_of
from pages import BLOCK, DOCS
from small import mbt as command_line
from small import write_csv

SHORT = ("--set", "train.steps=1", "--set", "data.workers=0")


def run_read_only(name):
    """The commands in blocks that a page does not run, whose data or weights are elsewhere, for one step."""
    commands = [command for command in commands_of(DOCS / name) if command.language == ""]
    assert commands
    for command in commands:
        assert command.words[:2] == ("mbt", "train"), command.text
        done = command_line("train", *SHORT, *command.words[2:])
        assert done.code == 0, f"{name}:{command.line}: {command.text}\n{done.err}"


@pytest.mark.slow
def test_from_nothing_to_a_trained_accelerometer(run_page, tmp_path, monkeypatch):
    page = run_page("writing-a-plugin.md")
    assert page.names["run"].results["top1"] > 0.9
    assert page.names["prediction"].top["label"][0][0] == "walking"
    assert page.outputs["mbt plugins check accel"].count(" ok ") == len(CHECKS)

    spec = importlib.util.spec_from_file_location("test_accel", "mbt-accel/tests/test_accel.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = module.TestAccel()
    case = Case(tests.kind, tests.settings, tmp_path)
    tests.test_a_turn_keeps_the_length(case)
    for check in CHECKS.values():
        tests.test_conformance(case, check)

    create = timm.create_model  # fresh weights in place of those that timm would download
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **options | {"pretrained": False}))
    run_read_only("writing-a-plugin.md")


def test_a_fusion_strategy(run_page, tmp_path):
    page = run_page("writing-a-fusion-strategy.md")
    assert type(page.names["model"].fusion).__name__ == "Summary"
    assert set(page.names["model"].fusion.gates) == {"wrist", "ankle"}
    assert mbt.registry().fusions["summary"].location == "mbt-summary"

    rows = []
    for number in range(8):
        files = {name: f"{number}-{name}.npy" for name in ("wrist", "ankle")}
        for file in files.values():
            np.save(tmp_path / file, np.random.default_rng(number).normal(number % 2, 1, (3, 100)).astype(np.float32))
        rows.append({"id": str(number), **files, "label": f"c{number % 2}", "split": "train"})
    write_csv(tmp_path / "manifest.csv", rows)
    run_read_only("writing-a-fusion-strategy.md")


@pytest.mark.slow
def test_a_data_set(run_page, tmp_path):
    page = run_page("writing-a-dataset.md")
    assert mbt.load("runs/gait").results["top1"] > 0.9
    assert (tmp_path / "cache/gait-toy-v1/manifest.csv").exists()
    assert any("build gait" in command for command in page.outputs)


@pytest.mark.parametrize("name", ["plugin", "fusion-strategy", "dataset"])
def test_the_pages_say_how_many_lines_of_python_they_write(name):
    text = (DOCS / f"writing-a-{name}.md").read_text(encoding="utf-8")
    files = {f: code for _, f, code in BLOCK.findall(text) if f.endswith(".py") and "/tests/" not in f}
    assert len(files) == 2
    assert all(file.startswith("mbt-") for file in files)  # none in the core
    assert f"{sum(bool(line.strip()) for code in files.values() for line in code.splitlines())} lines" in text
