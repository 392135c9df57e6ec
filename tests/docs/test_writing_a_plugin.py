"""The tutorials' code blocks run, and do what the text says."""

import importlib.util

import pytest

import mbt_core as mbt
from mbt_core.conformance.case import Case
from mbt_core.conformance.suite import CHECKS
from pages import BLOCK, DOCS


def test_from_nothing_to_a_trained_accelerometer(run_page, tmp_path):
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


def test_a_fusion_strategy(run_page):
    page = run_page("writing-a-fusion-strategy.md")
    assert type(page.names["model"].fusion).__name__ == "Summary"
    assert set(page.names["model"].fusion.gates) == {"wrist", "ankle"}
    assert mbt.registry().fusions["summary"].location == "mbt-summary"


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
