"""What is taken for the paths of media files and of a manifest."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from mbt_core import ConfigError
from mbt_core.config import DataConfig
from mbt_core.data.source import media_paths, other_data


class DataFrame:
    """Like that of pandas: to go through it is to go through the names of its columns."""

    columns = ("path",)

    def __iter__(self):
        return iter(self.columns)


@pytest.mark.parametrize("files", ["a.mp4", Path("a.mp4"), ["a.mp4"], (Path("a.mp4"),), np.array(["a.mp4"]), {"a.mp4"}])
def test_paths_in_many_forms(files):
    assert list(media_paths(files)) == [Path("a.mp4")]


@pytest.mark.parametrize(
    ("files", "came"),
    [
        ({"rgb": "a.mp4"}, "a dict"),
        (DataFrame(), "a DataFrame"),
        (pa.table({"path": ["a.mp4"]}), "a Table"),
        (np.zeros((2, 3)), "a ndarray of ndarray"),
        (np.float32(1), "a float32"),
        (torch.zeros(2), "a Tensor of Tensor"),
        (torch.zeros(()), "a Tensor"),
        ([np.zeros(3)], "a list of ndarray"),
        (["a.mp4", None], "a list of NoneType"),
        (b"a.mp4", "a bytes"),
        (None, "a NoneType"),
        (7, "an int"),
    ],
)
def test_anything_else_is_named(files, came):
    """At once, before a model is loaded."""
    with pytest.raises(ConfigError) as error:
        media_paths(files)
    assert f"expected the path of a media file or folder, or several paths, got {came}." in str(error.value)


def test_a_stream_is_looked_at_as_it_comes():
    paths = iter(media_paths(name for name in ("a.mp4", 3)))
    assert next(paths) == Path("a.mp4")
    with pytest.raises(ConfigError, match="got a generator of int"):
        next(paths)


@pytest.mark.parametrize("data", [{"path": ["a"]}, DataFrame(), 5])
def test_a_manifest_is_a_path(data):
    with pytest.raises(ConfigError, match=f"expected the path or URL of a manifest, got .*{type(data).__name__};"):
        other_data(DataConfig(path="m.csv"), data)
