"""`benchmarks/device.sh`: the whole table on the CPU, and what a section that fails does to it."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TABLE = {
    "machine": 1,
    "strategies": 2 * 5,
    "kinds": 8,
    "training": 2,
    "processes": 3,
    "resume": 1,
    "step": 3,
    "memory": 4,
    "reading": 2,
}
"""Section -> rows, at least."""


@pytest.fixture(scope="module")
def modules():
    """The script's modules, by name."""
    before = set(sys.modules)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield {name: importlib.import_module(name) for name in ("device", "device_correct", "sections")}
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - before:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def sections(modules):
    return modules["sections"]


def device(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = [str(ROOT / "benchmarks/device.sh"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.slow
def test_the_whole_table_on_a_processor(tmp_path):
    done = device("--device", "cpu", "--tiny", "--peak-tflops", 2, "--json", tmp_path / "table.json")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["holds"]
    rows = {name: [row for row in table["rows"] if row["section"] == name] for name in TABLE}
    assert all(len(rows[name]) >= count for name, count in TABLE.items()), done.stdout
    assert not any(row["ok"] is False for row in table["rows"])
    assert all(row["ok"] for name in ("strategies", "kinds", "training", "processes", "resume") for row in rows[name])
    lines = done.stdout.splitlines()
    assert len(lines) == len(table["rows"]) + 2  # one table: a heading and a sum
    by_check = {row["check"]: row["figures"] for row in rows["strategies"]}
    assert 0 < by_check["late, 32"]["gradients"] < 1e-4 < by_check["late, bf16"]["gradients"] < 0.1
    figures = rows["step"][1]["figures"]
    assert figures["mfu"] == pytest.approx(figures["tflops"] / 2)
    assert rows["memory"][0]["figures"]["computed"] == pytest.approx(1.81 + 4 * 0.681)
    assert rows["reading"][0]["figures"]["needed"] == figures["clips_per_second"]


def test_no_gpu_is_an_error_of_usage(modules, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the handlers of this process stay
    monkeypatch.setattr(sys, "argv", ["device.py", "--device", "cuda", "--only", "kinds"])
    assert modules["device"].main() == 2
    said = capsys.readouterr().out
    assert "FAILED: ConfigError: --device cuda: not available here; available: cpu" in said
    assert "kinds" not in said


def test_a_wrong_tensor_is_noticed_among_right_ones(modules):
    difference = modules["device_correct"].largest_difference
    generator = torch.Generator().manual_seed(0)
    right = {f"w{i}": 10.0**-i * torch.randn(50, generator=generator) for i in range(3)} | {"zero": torch.zeros(5)}
    assert difference(right, right) == 0
    assert difference(right | {"w1": 1.01 * right["w1"]}, right) == pytest.approx(0.01, rel=1e-3)
    assert difference(right | {"w1": 0 * right["w1"]}, right) == pytest.approx(1)
    assert difference(right | {"zero": torch.full((5,), 1e-9)}, right) < 1e-7  # rounding, where the right value is 0
    assert difference(right | {"w1": right["w1"] * torch.nan}, right) == float("inf")
    assert difference({"w0": right["w0"]}, right) == float("inf")


def test_ids_must_be_equal_and_values_close(modules):
    deviation = modules["device_correct"].largest_deviation
    ids, mask, x = torch.arange(6), torch.ones(6, dtype=torch.bool), torch.linspace(-1, 1, 6)
    assert deviation((ids, mask), (ids, mask)) == 0
    assert deviation((ids + 1, mask), (ids, mask)) == float("inf")
    assert deviation((x, None), (x, None)) == 0
    assert deviation(x + 0.5 * x.std(), x) == pytest.approx(0.5)
    assert deviation(x * torch.nan, x) == float("inf")


def good(options, earlier, report):
    report("one", "1", "1", True, count=len(earlier))


def wrong(options, earlier, report):
    report("two", "1", "2", False)
    report("three", "3", "3", True)


def raising(options, earlier, report):
    report("before", "1")
    raise ValueError("it broke\nin two lines")


def hanging(options, earlier, report):
    report("before", "1")
    subprocess.Popen(["sleep", "100"])
    time.sleep(100)


def crashing(options, earlier, report):
    os.kill(os.getpid(), signal.SIGKILL)


def talking(options, earlier, report):
    print("this is not of the table", flush=True)


def verdicts(rows):
    return [(row.section, row.check, row.ok, row.reason) for row in rows]


def test_no_section_ends_the_others(sections, capfd):
    parts = [
        sections.Section("raising", raising, 10),
        sections.Section("hanging", hanging, 0.5),
        sections.Section("crashing", crashing, 10),
        sections.Section("talking", talking, 10),
        sections.Section("good", good, 10),
    ]
    shown = []
    rows, holds = sections.run_sections(parts, None, 60, shown.append)
    assert verdicts(rows) == [
        ("raising", "before", None, ""),
        ("raising", "", False, "ValueError: it broke"),
        ("hanging", "before", None, ""),
        ("hanging", "", False, "not done within 0.5 s"),
        ("crashing", "", False, "its process ended by SIGKILL"),
        ("good", "one", True, ""),
    ]
    assert rows[-1].figures == {"count": 5}
    assert shown == rows
    assert not holds
    said = capfd.readouterr()
    assert said.out == ""
    assert "this is not of the table" in said.err
    assert "ValueError: it broke" in said.err
    assert "FAILED: ValueError: it broke" in rows[1].line()


@pytest.mark.parametrize("must_hold", [True, False])
def test_only_what_must_hold_decides(sections, must_hold):
    parts = [sections.Section("wrong", wrong, 10, must_hold), sections.Section("good", good, 10)]
    rows, holds = sections.run_sections(parts, None, 60, lambda row: None)
    assert verdicts(rows)[:2] == [("wrong", "two", False, "expected 2"), ("wrong", "three", True, "")]
    assert holds is not must_hold


def test_no_section_begins_when_the_time_is_over(sections):
    rows, holds = sections.run_sections([sections.Section("good", good, 10)], None, 0, lambda row: None)
    assert verdicts(rows) == [("good", "", False, "no time was left for it")]
    assert not holds
