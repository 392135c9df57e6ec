"""The page on production: its commands and snippets run, and exported models answer as the run does."""

import shutil

import numpy as np
import pytest
import torch

import mbt_core as mbt
from mbt_core.media import Clip
from small import clips_of
from small_fixtures import demo, run

__all__ = ["demo", "run"]


@pytest.fixture
def decisive(run, demo, tmp_path):
    """A run whose logits differ from clip to clip, where the page expects it, with clips."""
    folder = tmp_path / "runs/demo"
    shutil.copytree(run.path, folder)
    model = mbt.MBT.from_pretrained(folder)
    torch.manual_seed(0)
    for parameter in model.head.classifiers.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    (tmp_path / "clips").mkdir()
    clips = clips_of(demo)[:3]
    for clip in clips:
        shutil.copy(clip, tmp_path / "clips")
    shutil.copy(clips[0], tmp_path / "clip.mp4")
    return folder


@pytest.mark.slow
def test_the_page(decisive, run_page, tmp_path):
    page = run_page("production.md")
    assert page.names["scores"].sum() == pytest.approx(1, abs=1e-5)
    opened = mbt.load(decisive)
    answers = opened.predict(sorted((tmp_path / "clips").iterdir()), top=9, device="cpu")
    batch = {name: [] for name in opened.model.modalities}
    for path in sorted((tmp_path / "clips").iterdir()):
        with Clip(path) as clip:
            for name, modality in opened.model.modalities.items():
                window = mbt.Window(0.0, modality.seconds)
                sample = modality.without_augmentation().read(clip, window, None)
                [leaf] = [leaf for leaf in sample.values() if leaf.numel()]
                batch[name].append(leaf.numpy())
    given = {name: np.stack(samples) for name, samples in batch.items()}
    outputs = [output["name"] for output in page.names["about"]["outputs"]]
    exported = dict(zip(outputs, page.names["session"].run(None, given), strict=True))
    module = torch.export.load("model.pt2").module()
    other = module(*(torch.from_numpy(x) for x in given.values()))
    np.testing.assert_allclose(other[0].detach().numpy(), exported["kind/logits"], atol=1e-4)
    for task in ("kind", "sum"):
        classes = page.names["about"]["tasks"][task]["classes"]
        scores = torch.from_numpy(exported[f"{task}/logits"]).softmax(1)
        for answer, row in zip(answers, scores, strict=True):
            found = dict(zip(classes, row.tolist(), strict=True))
            assert found == pytest.approx(dict(answer.top[task]), abs=1e-4)
    assert len({answer.top["kind"][0][1] for answer in answers}) == 3
    assert (tmp_path / "to-publish/README.md").exists()
