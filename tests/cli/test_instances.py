"""Several instances of one kind: a file for each, or one that they share."""

import pytest

from mbt_core.deploy.serve.app import Limits, Service
from mbt_core.errors import ConfigError
from mbt_core.run import load
from small import clips_of, mbt, tiny_run, write_csv

BOTH = "left=rgb,right=rgb"
ONE_KIND = (
    "'left' and 'right' are of one kind, 'rgb', and a single file does not say which of them it is; name a file for "
    "each in a manifest with the columns id,left,right: mbt predict RUN --data MANIFEST. Where the "
    "model looks in rows of its data is on the page of mbt report RUN"
)


def manifest(demo, path, columns, split="train"):
    clips = clips_of(demo)
    rows = [
        {"id": str(i), **{c: clips[(i + k) % len(clips)] for k, c in enumerate(columns)}, "label": "ab"[i % 2],
         "split": "test" if i > 5 else split}
        for i in range(8)
    ]  # fmt: skip
    return write_csv(path, rows)


@pytest.fixture(scope="module")
def stereo(demo, tmp_path_factory):
    """A run of two cameras, with a file each."""
    folder = tmp_path_factory.mktemp("stereo")
    return tiny_run(manifest(demo, folder / "m.csv", ["left", "right"]), folder / "run", modalities=BOTH).path


def test_one_file_for_two_instances_is_refused(stereo, demo, tmp_path):
    clip = clips_of(demo)[0]
    for command in (["predict", stereo, clip], ["explain", stereo, clip, "--out", tmp_path / "page.html"]):
        done = mbt(*command)
        assert (done.code, ONE_KIND in " ".join(done.err.split())) == (2, True)
    with pytest.raises(ConfigError, match="'left' and 'right' are of one kind"):
        load(stereo).predict(clip)
    with pytest.raises(ConfigError, match="'left' and 'right' are of one kind"):
        Service(load(stereo), Limits(), "cpu")


def test_a_manifest_with_one_column_for_both_is_refused(stereo, demo, tmp_path):
    shared = manifest(demo, tmp_path / "shared.csv", ["path"])
    message = (
        f"{shared}: 'left' and 'right' would both read the column 'path', but had a file each in the training; give "
        "the columns 'left' and 'right'"
    )
    for command in (["eval"], ["predict"], ["embed", "--out", tmp_path / "e.npz"]):
        done = mbt(command[0], stereo, "--data", shared, *command[1:])
        assert (done.code, message in " ".join(done.err.split())) == (2, True), done.err
    apart = manifest(demo, tmp_path / "apart.csv", ["left", "right"])
    assert mbt("predict", stereo, "--data", apart, "--json").code == 0


def test_instances_that_shared_their_files_in_training_do_so_in_prediction(demo, tmp_path):
    data = manifest(demo, tmp_path / "m.csv", ["path"])
    tiny_run(data, tmp_path / "run", "modalities.left.frames=2", "modalities.right.frames=4", modalities=BOTH)
    assert "# one file for several: left+right\n" in (tmp_path / "run/config.yaml").read_text()
    assert mbt("predict", tmp_path / "run", clips_of(demo)[0], "--json").code == 0
    assert mbt("eval", tmp_path / "run", "--data", manifest(demo, tmp_path / "o.csv", ["path"])).code == 0


def test_two_that_read_the_same_in_the_same_way_are_told(demo, tmp_path):
    said = []

    class Listener:
        def message(self, text):
            said.append(text)

        def __getattr__(self, _):
            return lambda *_: None

    tiny_run(manifest(demo, tmp_path / "m.csv", ["path"]), tmp_path / "run", modalities=BOTH, listeners=[Listener()])
    assert any(
        "left, right read the same files (column 'path') in the same way; give each a column of its own name" in text
        for text in said
    )
