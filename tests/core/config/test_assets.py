"""Files that belong to a model: copied beside its settings, found there again, and the same as they were."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

import mbt_core as mbt
from mbt_core.config import Experiment
from mbt_core.config.assets import portable
from mbt_core.config.recipes import read_recipe
from mbt_core.errors import ConfigError, DataError
from mbt_core.sweep.engine import differences
from mbt_core.training.folder import RunFolder
from toy.models import build_tiny

pytestmark = pytest.mark.usefixtures("toys")
LOADERS = {"config.json": mbt.MBT.from_pretrained, "config.yaml": lambda folder: RunFolder(folder).experiment()}


@pytest.fixture
def words(tmp_path) -> Path:
    (tmp_path / "origin").mkdir()
    path = tmp_path / "origin/words.txt"
    path.write_text("one two")
    return path


def model_with(words):
    return build_tiny(count=2, modalities={"gamma": {"words": str(words)}}).float()


def experiment_with(words):
    return Experiment.model_validate({"modalities": {"gamma": {"words": str(words)}}})


@pytest.fixture
def folder(words, tmp_path) -> Path:
    """A model and a run's configuration, whose words were given by a file that is gone."""
    RunFolder(tmp_path / "there").start(experiment_with(words), "mbt train")
    model_with(words).save_pretrained(tmp_path / "there")
    shutil.rmtree(words.parent)
    return (tmp_path / "there").rename(tmp_path / "moved")


def copy_in(folder) -> Path:
    (path,) = (folder / "files").iterdir()
    return path


def test_the_settings_of_a_run_serve_as_a_recipe(folder, tmp_path):
    """Copies are found beside it; paths that the user wrote are left alone, though their files be missing."""
    recipe = read_recipe(str(folder / "config.yaml"))
    assert recipe.tree["modalities"]["gamma"]["words"] == str(copy_in(folder))
    own = tmp_path / "own.yaml"
    own.write_text("modalities: {gamma: {words: elsewhere/words.txt}}")
    assert read_recipe(str(own)).tree["modalities"]["gamma"]["words"] == "elsewhere/words.txt"
    copy_in(folder).write_text("changed")
    with pytest.raises(DataError, match="has changed"):
        read_recipe(str(folder / "config.yaml"))


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_a_moved_folder_has_all_it_needs(folder, load):
    found = load(folder)
    modalities = (found.config if isinstance(found, mbt.MBT) else found).modalities
    assert modalities["gamma"].words == str(copy_in(folder))
    assert copy_in(folder).read_text() == "one two"
    assert copy_in(folder).name.startswith("words-")
    assert copy_in(folder).suffix == ".txt"


def test_saved_again_it_has_the_same_name(folder, tmp_path):
    model = mbt.MBT.from_pretrained(folder)
    for place in (tmp_path / "new", folder):  # also over itself
        model.save_pretrained(place)
        assert copy_in(place).name == copy_in(folder).name
        assert (place / "config.json").read_text() == (folder / "config.json").read_text()
        assert mbt.MBT.from_pretrained(place).config.modalities["gamma"].words == str(copy_in(place))


def test_nothing_is_made_where_no_file_is_named(tmp_path):
    build_tiny(count=2).float().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_another_content_is_an_error(folder, load):
    copy_in(folder).write_text("one three")
    with pytest.raises(DataError, match=r"modalities\.gamma\.words: .*moved/files/words-\w+\.txt: has changed"):
        load(folder)
    copy_in(folder).unlink()
    with pytest.raises(DataError, match=r"moved/files/words-\w+\.txt: cannot be read: No such file"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["/etc/hostname", "files/../words.txt", "../words.txt", "files", "words.txt", 7, ["a"]]
)
@pytest.mark.parametrize("file", LOADERS)
def test_no_name_leads_out_of_the_folder(folder, file, name):
    path = folder / file
    tree = json.loads(path.read_text()) if file == "config.json" else yaml.safe_load(path.read_text())
    tree.get("model", {}).get("modalities", tree.get("modalities"))["gamma"]["words"] = name
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"modalities\.gamma\.words: .* is no file of .*expected files/words-DIGEST"):
        LOADERS[file](folder)


def test_a_file_that_changes_before_it_is_saved(words, tmp_path):
    model = model_with(words)
    words.write_text("one three")
    with pytest.raises(DataError, match=r"origin/words\.txt: has changed"):
        model.save_pretrained(tmp_path / "there")
    assert not (tmp_path / "there/config.json").exists()
    words.unlink()
    with pytest.raises(DataError, match=r"origin/words\.txt: cannot be read: No such file"):
        model.save_pretrained(tmp_path / "there")
    with pytest.raises(ConfigError, match=r"modalities\.gamma\.words: .*words\.txt: cannot be read: No such file"):
        portable(experiment_with(words))


def test_settings_are_compared_by_content(words, folder, tmp_path):
    run = RunFolder(folder).experiment()
    (tmp_path / "other.txt").write_text("one two")
    assert differences(experiment_with(tmp_path / "other.txt"), run) == []
    (tmp_path / "other.txt").write_text("one three")
    (line,) = differences(experiment_with(tmp_path / "other.txt"), run)
    assert line.startswith("modalities.gamma.words is files/words-")
