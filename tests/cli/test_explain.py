"""``mbt explain`` on a run folder."""

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from mbt_cli.explain import explain
from mbt_core import MBT, ConfigError, Experiment
from mbt_core.training.folder import RunFolder
from toy.models import tiny

pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    tree = tiny("bottleneck", 2, modalities={"gamma": {"features": 2}})
    experiment = Experiment(modalities=tree.pop("modalities"), model=tree)
    folder = RunFolder(tmp_path / "run")
    folder.start(experiment, "mbt train")
    model = MBT(experiment.mbt_config())
    model.classes = {"label": list("abcde")}
    model.save_pretrained(folder.path)
    return folder.path


@pytest.fixture
def clip(tmp_path):
    np.save(tmp_path / "clip.npy", np.ones((2, 13), np.float32))
    return tmp_path / "clip.npy"


def call(*arguments):
    app = typer.Typer()
    app.command()(explain)
    done = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_writes_a_page_and_says_where_the_relevance_is(run, clip, tmp_path):
    out = tmp_path / "pages" / "x.html"
    done = call(run, clip, "--out", out)
    assert done.exit_code == 0
    assert "clip.npy  (gamma + alpha)" in done.stdout
    for word in ("all together", "class tokens", "bottlenecks", f"wrote {out}"):
        assert word in done.stdout
    page = out.read_text(encoding="utf-8")
    assert "clip.npy" in page
    assert "What each token adds to the others in all layers" in page
    assert call(run, clip, "--out", out, "--method", "rollout").exit_code == 0
    assert "Attention rollout" in out.read_text(encoding="utf-8")


def test_a_bad_file_does_not_stop_the_others(run, clip, tmp_path):
    done = call(run, tmp_path / "none.npy", clip, "--method", "gradient", "--label", "c", "--out", tmp_path / "x.html")
    assert done.exit_code == 1
    assert "none.npy: there is no such file" in done.stderr
    assert "Error: 1 of 2 could not be explained" in done.stderr
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "there is no such file" in page
    assert "explained: c" in page


def test_wrong_use_is_found_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match="--method: unknown method 'roll'"):
        call(tmp_path, "x", "--method", "roll")
    with pytest.raises(ConfigError, match="choose what --method gradient explains"):
        call(tmp_path, "x", "--label", "a")


def test_a_page_that_cannot_be_written_is_found_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--out .*: cannot be written: Not a directory"):
        call(tmp_path / "no run", "x", "--out", tmp_path / "file" / "new" / "x.html")
    with pytest.raises(ConfigError, match="--out .*: this is a folder; name a file in it"):
        call(tmp_path / "no run", "x", "--out", tmp_path)
    with pytest.raises(ConfigError, match="no run"):
        call(tmp_path / "no run", "x", "--out", tmp_path / "new" / "x.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
