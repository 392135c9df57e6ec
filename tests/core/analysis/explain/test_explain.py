"""Files explained, and the page of it; the modalities draw what they are given."""

import base64
import io
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from browser import look_at, needs_browser
from mbt_core import MBT, ConfigError, Experiment, Picture
from mbt_core.analysis.explain.explain import BOTTLENECKS, FUSED, KEPT, explain_files, on_grid
from mbt_core.analysis.explain.page import render_page, write_page
from mbt_core.analysis.explain.rollout import trace_attention
from mbt_core.analysis.page.html import animation
from toy.models import tiny

pytestmark = pytest.mark.usefixtures("toys")
CPU = torch.device("cpu")
RED, GREY = (200, 30, 30), (90, 90, 90)
MODALITIES = {"alpha": {"channels": 4}, "beta": {}, "gamma": {}}


@pytest.fixture
def drawn(monkeypatch, toys):
    """What `draw` was called with: (kind, sample, relevance)."""
    from toy.modalities import Alpha, Beta, Gamma

    calls = []

    def draw(self, sample, relevance):
        calls.append((self.name, sample, relevance))
        picture = np.full((40, 160, 3), GREY if relevance is None else RED, np.uint8)
        if self.name == "gamma":
            return Picture(html=f"<p>{self.name} &lt;{'plain' if relevance is None else 'marked'}&gt;</p>")
        return Picture([picture], [picture[:, :40], 255 - picture[:, :40]] if self.name == "beta" else ())

    for kind in (Alpha, Beta, Gamma):
        monkeypatch.setattr(kind, "draw", draw)
    return calls


def make(strategy="bottleneck", pool="cls", names=tuple(MODALITIES), **over):
    torch.manual_seed(0)
    config = tiny(strategy, 0, pool, modalities={n: MODALITIES[n] for n in names}, **over)
    modalities = config.pop("modalities")
    model = MBT({**config, "modalities": modalities}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.classes = {"label": ["a", "b", "<c>", "d", "e"]}
    return model, Experiment(modalities=modalities, model=config)


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).normal(size=(4, 13)).astype(np.float32))
    return path


def explain(model, experiment, *paths, **options):
    return list(explain_files(model, paths, experiment, device=CPU, **options))


def test_what_is_drawn_is_what_was_traced(drawn, clip):
    model, experiment = make()
    (found,) = explain(model, experiment, clip, top=2)
    x = torch.from_numpy(np.load(clip))
    inputs = {"alpha": x[None], "beta": x[None, None, :4, :6], "gamma": x[None, :3, :6].mT}
    prediction, relevance = trace_attention(model, inputs)
    assert found.prediction.modalities == ["alpha", "beta", "gamma"]
    scores, best = prediction.logits.softmax(1)[0].topk(2)
    names = [name for name, _ in found.prediction.top["label"]]
    assert names == [model.classes["label"][i] for i in best]
    assert [score for _, score in found.prediction.top["label"]] == pytest.approx(scores.tolist())
    assert [view.name for view in found.views] == [FUSED, "alpha", "beta", "gamma"]
    for name, sample, _ in drawn:
        torch.testing.assert_close(sample, {"alpha": x, "beta": x[None, :4, :6], "gamma": x[:3, :6].T}[name])
    assert [(name, r) for name, _, r in drawn[:3]] == [("alpha", None), ("beta", None), ("gamma", None)]
    for (name, _, found_r), (view, modality) in zip(
        drawn[3:], [(v.name, m) for v in found.views for m in inputs], strict=True
    ):
        assert name == modality
        np.testing.assert_allclose(found_r.ravel(), relevance.patches(modality, view)[0], atol=1e-6)
        assert found_r.shape == {"alpha": (3,), "beta": (2, 2), "gamma": (6,)}[modality]


def test_shares_add_up(drawn, clip):
    model, experiment = make()
    (found,) = explain(model, experiment, clip)
    for view in found.views:
        assert list(view.shares) == ["alpha", "beta", "gamma", KEPT, BOTTLENECKS]
        assert sum(view.shares.values()) == pytest.approx(1)
        assert [layer for layer, _ in view.layers] == [1, 2]
        for _, shares in view.layers:
            assert sum(shares.values()) == pytest.approx(1)
    alpha = found.views[1]
    across = [shares["beta"] + shares["gamma"] for _, shares in alpha.layers]
    assert across[0] > across[1] == 0  # the last layer's bottlenecks bring what the one below it wrote
    late = explain(*make("late"), clip)[0].views[1]
    assert [shares["alpha"] for _, shares in late.layers] == [1, 1]


def test_absent_modalities_and_bad_files(drawn, clip, tmp_path, monkeypatch):
    from toy.modalities import Beta

    monkeypatch.setattr(Beta, "reads", "text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.npy").write_bytes(b"no array")
    paths = [tmp_path / "nothing.npy", clip, tmp_path / "empty", tmp_path / "bad.npy"]
    nothing, good, empty, bad = explain(*make(), *paths)
    assert nothing.prediction.error == "there is no such file"
    assert empty.prediction.error == "no file in this folder"
    assert bad.prediction.error.startswith("cannot read its array")
    assert good.prediction.modalities == ["alpha", "gamma"]
    assert [view.name for view in good.views] == [FUSED, "alpha", "gamma"]
    assert set(good.views[0].shares) == {"alpha", "gamma", KEPT, BOTTLENECKS}


def test_one_prediction_is_one_view(drawn, clip):
    assert [v.name for v in explain(*make(pool="mean-joint"), clip)[0].views] == [FUSED]
    assert [v.name for v in explain(*make(names=["alpha"]), clip)[0].views] == ["alpha"]


def test_gradient_explains_a_label(drawn, clip):
    model, experiment = make()
    (first,) = explain(model, experiment, clip, method="gradient")
    assert first.label == first.prediction.top["label"][0][0]
    (d,) = explain(model, experiment, clip, method="gradient", label="d")
    assert d.label == "d"
    shares = [
        e.views[0].shares["alpha"]
        for e in (*(explain(model, experiment, clip, method="gradient", label=x)[0] for x in "abd"), d)
    ]
    assert len({round(s, 6) for s in shares}) == 3
    with pytest.raises(ConfigError, match="--label: unknown label 'f'"):
        explain(model, experiment, clip, method="gradient", label="f")
    with pytest.raises(ConfigError, match="--task: unknown task 'labl'. Did you mean 'label'"):
        explain(model, experiment, clip, method="gradient", task="labl")


def test_gradient_explains_a_number_of_a_regression(drawn, clip):
    model, experiment = make(head={"classes": 3, "task": "regression"})
    model.classes = {}
    (first,) = explain(model, experiment, clip, method="gradient")
    (same,) = explain(model, experiment, clip, method="gradient", label="label 1")
    (other,) = explain(model, experiment, clip, method="gradient", label="label 2")
    assert first.label == "label 1"
    assert [name for name, _ in first.prediction.top["label"]] == ["label 1", "label 2", "label 3"]
    assert first.views[0].shares == same.views[0].shares != other.views[0].shares
    with pytest.raises(ConfigError, match="--label: unknown label 'class_0'"):
        explain(model, experiment, clip, method="gradient", label="class_0")


def test_last_layer_alone(drawn, clip):
    (found,) = explain(*make(), clip, method="last")
    assert [layer for layer, _ in found.views[1].layers] == [2]
    assert found.views[1].shares["beta"] == 0


def test_short_sequences_fill_their_grid_up():
    np.testing.assert_array_equal(on_grid(torch.tensor([1.0, 2.0]), (4,)), [1, 2, 0, 0])
    assert on_grid(torch.arange(6.0), (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]


def opened(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/webp;base64,"))))


def test_page_has_everything_in_it(drawn, clip, tmp_path):
    found = explain(*make(), clip, tmp_path / "nothing<b>.npy")
    page = render_page(found, "runs/<x>", "rollout")
    assert "runs/&lt;x&gt;" in page
    assert "<x>" not in page
    assert "nothing&lt;b&gt;.npy" in page
    assert "there is no such file" in page
    assert "&lt;c&gt;" in page
    assert page.count("<p>gamma &lt;plain&gt;</p>") == 1
    assert page.count("<p>gamma &lt;marked&gt;</p>") == 4
    assert "http:" not in page.replace("http-equiv", "")
    assert "https:" not in page
    assert "<script" not in page
    sources = re.findall(r'src(?:set)?="([^"]*)"', page)
    # for all together: inputs of alpha and beta, both with relevance, an animation and its still; each alone: two
    assert len(sources) == 2 + 2 + 2 + 3 * 2
    assert all(uri.startswith("data:image/webp;base64,") for uri in sources)
    first = opened(sources[0])
    assert first.size == (160, 40)
    np.testing.assert_allclose(np.asarray(first.convert("RGB"))[20, 80], GREY, atol=6)
    moving = [image for image in map(opened, sources) if getattr(image, "n_frames", 1) > 1]
    assert [image.n_frames for image in moving] == [2]


def test_animation_takes_its_time():
    frames = [np.full((8, 8, 3), value, np.uint8) for value in (0, 90, 180)]
    for seconds, each in ((1.5, 500), (None, 250), (0.03, 80), (60.0, 1000)):
        image = opened(animation(frames, seconds))
        assert image.n_frames == 3
        image.seek(1)
        image.load()
        assert image.info["duration"] == each


def test_page_is_written_with_its_folder(drawn, clip, tmp_path):
    found = explain(*make(), clip)
    write_page(tmp_path / "new" / "r.html", found, "x", "last")
    assert (tmp_path / "new" / "r.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@needs_browser
@pytest.mark.parametrize("width", [390, 1400])
def test_page_in_a_browser(drawn, clip, tmp_path, width):
    """Fits the width, shows every image, asks for nothing, complains of nothing."""
    name = tmp_path / ("a-very-long-name-without-any-place-to-break-it" * 3 + ".npy")
    shutil.copy(clip, name)
    page = render_page(explain(*make(), name), "runs/x", "rollout")
    seen = look_at(page, width, tmp_path)
    assert seen.width <= width
    assert seen.images == seen.shown == 2 + 2 + 1 + 3 * 2
    assert seen.styles == 1
    assert seen.requests == 0
    assert seen.complaints == []
