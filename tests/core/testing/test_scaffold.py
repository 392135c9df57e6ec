"""The package that `write_package` writes is complete, sound, and refused where it cannot be."""

import importlib.util
import subprocess
import sys
import tomllib

import pytest

from mbt_core import ConfigError, MBTError
from mbt_core.testing.conformance import check_kind
from mbt_core.testing.scaffold import write_package
from pages import Page


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Writes and installs the package of a kind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    page = Page(tmp_path)

    def start(name):
        folder = write_package(name, tmp_path)
        page._install(folder)
        return folder

    yield start
    page.forget()


def test_the_package_is_complete(tmp_path):
    folder = write_package("my_radar2", tmp_path)
    assert folder == tmp_path / "mbt-my_radar2"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "README.md",
        "mbt_my_radar2/__init__.py",
        "mbt_my_radar2/modality.py",
        "pyproject.toml",
        "tests/test_my_radar2.py",
    ]
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == "mbt-my_radar2"
    assert project["project"]["entry-points"] == {"mbt": {"my_radar2": "mbt_my_radar2"}}
    assert "class MyRadar2Modality(mbt.Modality)" in (folder / "mbt_my_radar2/modality.py").read_text()
    for path in folder.rglob("*.*"):
        assert "$" not in path.read_text()


def test_the_code_is_tidy(tmp_path):
    pytest.importorskip("ruff")
    folder = write_package("accel", tmp_path)
    for command in (["check", "--select", "E,F,W,I,UP,B,D100,D101"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--line-length", "120", "."]
        done = subprocess.run(ruff, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["accel", "tensor"])
def test_the_kind_conforms(installed, name):
    installed(name)
    results = check_kind(name)
    assert [(r.check, r.message) for r in results if r.status != "ok"] == []
    assert [r for r in check_kind(name, {"seconds": 1, "patch": 7}) if r.status != "ok"] == []


@pytest.mark.slow
def test_the_kind_trains(installed, tmp_path):
    folder = installed("accel")
    spec = importlib.util.spec_from_file_location("test_accel", folder / "tests/test_accel.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.test_it_trains(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Accel", r"the name 'Accel' is not of the form \[a-z\]\[a-z0-9_\]\*"),
        ("../accel", "is not of the form"),
        ("2d", "is not of the form"),
        ("", "is not of the form"),
        ("accel_", "the name 'accel_' ends in '_', which a distribution's name cannot"),
        ("path", "the name 'path' is reserved; choose another, e.g. my_path"),
        ("train", "the name 'train' is reserved"),
        ("core", "a package mbt_core is installed already"),
    ],
)
def test_bad_names_are_refused(tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        write_package(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_refused(tmp_path, toys):
    with pytest.raises(ConfigError, match="the kind 'alpha' exists already, in 'toy'"):
        write_package("alpha", tmp_path)
    (tmp_path / "mbt-accel").mkdir()
    with pytest.raises(ConfigError, match="mbt-accel exists already; move it away"):
        write_package("accel", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(MBTError, match="cannot be written"):
        write_package("accel", tmp_path / "file")
