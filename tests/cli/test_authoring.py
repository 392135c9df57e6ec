"""``mbt plugins new`` and ``mbt plugins check``."""

import json

import pytest
from typer.testing import CliRunner

import flawed
from mbt_cli.main import app
from mbt_core import registry
from mbt_core.testing.conformance.suite import CHECKS


@pytest.fixture(scope="module", autouse=True)
def _registered():
    registry().register(flawed, "flawed")
    yield
    registry().unregister(flawed)


def mbt(*words):
    return CliRunner().invoke(app, ["plugins", *words])


def test_check_prints_a_table():
    done = mbt("check", "sound")
    assert done.exit_code == 0
    assert [line.split()[:2] for line in done.stdout.splitlines() if " ok " in line] == [[c, "ok"] for c in CHECKS]


def test_a_fault_is_an_exit_code_of_1():
    done = mbt("check", "emptycard")
    assert done.exit_code == 1
    assert "the card's units, normalisation are empty" in done.stdout
    assert "emptycard: 1 of 16 checks found a fault" in done.stderr


def test_json_is_one_document():
    done = mbt("check", "nothingtosee", "--set", "patch=32", "--json")
    assert done.exit_code == 1
    rows = json.loads(done.stdout)
    assert [row["check"] for row in rows] == list(CHECKS)
    assert [row["check"] for row in rows if row["status"] == "fault"] == ["pictures"]
    assert all(set(row) == {"check", "status", "message"} for row in rows)


def test_wrong_usage_is_an_exit_code_of_2():
    for words, message in (
        (["check", "sond"], "unknown modality 'sond'. Did you mean 'sound'?"),
        (["check", "sound", "--set", "patch=0"], "sound.patch: input should be greater than 0, got 0"),
        (["new", "sound"], "the kind 'sound' exists already"),
        (["new", "Sound"], "is not of the form"),
    ):
        done = mbt(*words)
        assert done.exit_code == 2, words
        assert message in done.stderr


def test_new_writes_a_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = mbt("new", "accel")
    assert done.exit_code == 0
    assert done.stdout == "mbt-accel\n"
    assert "mbt plugins check accel" in done.stderr
    assert (tmp_path / "mbt-accel/mbt_accel/modality.py").exists()
    assert mbt("new", "accel").exit_code == 2
