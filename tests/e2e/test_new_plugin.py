"""From the wheel, without the checkout: a new plugin is written, installed, checked, tested and trained."""

import os
import subprocess
import sys
import time
import venv
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A virtual environment with the wheel; what it depends on is this one's. Returns a function that runs in it."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    wheels = folder / "wheels"
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    venv.create(folder / "venv", with_pip=True)
    [site] = (folder / "venv").glob("lib/python*/site-packages")
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    work = folder / "work"
    work.mkdir()
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def run(program, *words, cwd=work):
        done = subprocess.run(
            [str(folder / "venv/bin" / program), *words],
            cwd=cwd,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{program} {words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    # --ignore-installed: the package may be among the dependencies too
    run("pip", "install", "--no-deps", "--ignore-installed", str(next(wheels.glob("*.whl"))))
    assert str(site) in run("python", "-c", "import mbt_core; print(mbt_core.__file__)")
    return run, work


@pytest.mark.slow
def test_a_new_plugin_trains(environment):
    run, work = environment
    start = time.monotonic()
    assert run("mbt", "plugins", "new", "accel") == "mbt-accel\n"
    run("pip", "install", "--no-deps", "--no-build-isolation", "./mbt-accel")
    assert "accel" in run("mbt", "plugins", "list")
    assert "fault" not in run("mbt", "plugins", "check", "accel")
    assert "18 passed" in run("python", "-m", "pytest", "-p", "no:cacheprovider", cwd=work / "mbt-accel")

    rng = np.random.default_rng(0)
    rows = ["id,accel,label,split"]
    for number in range(90):
        period = (10, 20, 40)[number % 3]
        x = np.sin(2 * np.pi * np.arange(160) / period + rng.uniform(0, 6, (3, 1))) + 0.2 * rng.normal(size=(3, 160))
        np.save(work / f"{number}.npy", x.astype(np.float32))
        rows.append(f"{number},{number}.npy,p{period},{'test' if number >= 60 else 'train'}")
    (work / "manifest.csv").write_text("\n".join(rows) + "\n")
    run("mbt", "train", "--data", "manifest.csv", "-m", "accel", "--set", "train.steps=60", "--out", "run", "--quiet")
    shown = run("mbt", "eval", "run", "--json")
    assert '"top1"' in shown
    assert time.monotonic() - start < 300
