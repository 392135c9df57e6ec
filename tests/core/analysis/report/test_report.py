"""The report of a run, made of what it left: what is on the page, what may go wrong, and how a browser shows it."""

import html
import json
import re
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from browser import look_at, needs_browser
from mbt_core import MBT, ConfigError, Experiment, Picture, write_report
from mbt_core.analysis.report.figures import bars, svg
from mbt_core.analysis.report.left import open_left
from mbt_core.analysis.report.sections import best_point, facts
from mbt_core.analysis.report.write import gather, pictures, render_report, try_report
from mbt_core.data.source import open_manifest
from mbt_core.errors import MBTWarning
from mbt_core.evaluate.evaluator import FUSED, Evaluation
from mbt_core.evaluate.table import About, write_predictions
from mbt_core.training.folder import RunFolder
from mbt_core.training.loggers import JsonLines
from small import write_csv
from toy.models import tiny

pytestmark = pytest.mark.usefixtures("toys")
MODALITIES = {"alpha": {"channels": 4}, "beta": {}}
HOSTILE = "<script>alert('$x$ & \"co\"')</script>"
NAMES = [HOSTILE, "b", "$\\frac{", "名前 \x07x", "e" * 200]
CLIPS = 24


@pytest.fixture(autouse=True)
def drawn(monkeypatch, toys):
    """What modalities draw: alpha a picture with an animation, beta one or a fault."""
    from toy.modalities import Alpha, Beta

    def alpha(self, sample, relevance):
        picture = np.full((40, 160, 3), 90 if relevance is None else 200, np.uint8)
        return Picture([picture], [picture[:, :40], picture[:, 40:80]])

    def beta(self, sample, relevance):
        if float(sample[0, 0, 0]) == 99:
            raise RuntimeError("beta cannot <draw> this")
        return Picture([np.full((1200, 800, 3), 60, np.uint8)], html="<b>marked up</b>")

    monkeypatch.setattr(Alpha, "draw", alpha)
    monkeypatch.setattr(Beta, "draw", beta)


def make_run(folder, head, targets, logits, ids=None, about=None, failed=(), majority=None):
    """A run folder as training leaves it; `targets` and `logits`: task -> one a clip."""
    torch.manual_seed(0)
    config = tiny("bottleneck", 0, modalities=MODALITIES, head={"classes": None, **head})
    experiment = Experiment(modalities=config.pop("modalities"), model=config)
    ids = ids or [f"clip{i}" for i in range(CLIPS)]
    kinds, single = experiment.model.head, experiment.model.head.tasks is None
    columns = ["label" if single else f"label.{task}" for task in targets]
    classes = {task: _names(kinds.kind_of(task), count) for task, count in kinds.outputs.items()}
    rows = []
    for i, name in enumerate(ids):
        np.save(folder.parent / f"{i}.npy", np.full((4, 13), i, np.float32))
        cells = [_cell(targets[task][i], classes[task]) for task in targets]
        rows += [[name, f"{i}.npy", "test", *cells], [f"train{i}", f"{i}.npy", "train", *cells]]
    experiment.data.path = str(folder.parent / "data.csv")
    write_csv(folder.parent / "data.csv", [dict(zip(("id", "path", "split", *columns), r, strict=True)) for r in rows])
    named = {task: names for task, names in classes.items() if names}
    if named:
        (folder.parent / "data.classes.json").write_text(json.dumps(named))
    RunFolder(folder).start(experiment, f"mbt train --recipe {HOSTILE}")
    model = MBT(experiment.mbt_config())
    manifest = open_manifest(experiment.data, model.modalities, experiment.model.head)
    model.classes = classes
    model.save_pretrained(folder)
    write_log(folder, kinds)
    bad = dict.fromkeys(failed, "it's <broken>")
    kept = [i for i in range(len(ids)) if i not in bad]
    rows_of = manifest.find(ids)
    present = torch.ones(len(kept), dtype=torch.bool)
    present[1] = False
    here = {task: values[kept] for task, values in logits.items()}
    found = Evaluation(
        torch.tensor([rows_of[i] for i in kept]),
        {FUSED: here, "alpha": {t: -v for t, v in here.items()}, "beta": here},
        {task: values[kept] for task, values in targets.items()},
        {"alpha": present, "beta": torch.ones_like(present)},
        kinds,
        {rows_of[i]: message for i, message in bad.items()},
        majority or {},
    )
    write_predictions(folder, found, manifest, "test", about)
    return folder


def _cell(target, names):
    if not names:
        return ";".join(f"{v:.3f}" for v in target.tolist())
    return names[int(target)] if target.dim() == 0 else ";".join(n for n, hot in zip(names, target, strict=True) if hot)


def _names(kind, count):
    return [] if kind == "regression" else [NAMES[i] if i < len(NAMES) else f"class {i}" for i in range(count)]


def write_log(folder, head):
    log = JsonLines()
    log.run_start(folder, {}, 0, 40)
    for step in range(1, 41):
        log.step(step, {"loss": 2 / step, "lr": 0.1, "clips_per_second": float("nan")})
    names = {"single": "top1", "multilabel": "mAP", "regression": "r2"}
    for step in (20, 40):
        values = {}
        for task in head.outputs:
            name = names[head.kind_of(task)] if head.tasks is None else f"{task}/{names[head.kind_of(task)]}"
            values |= {name: step / 80, f"{name}[alpha]": step / 160}
        log.epoch(step, {"loss": 0.1 * step, **values})


def single(count=CLIPS, classes=5, seed=0):
    """Targets and logits of which about two thirds are right."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(count) % classes
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), target] += 1.5
    return target, logits


@pytest.fixture
def run(tmp_path):
    target, logits = single()
    ids = [HOSTILE, *(f"clip{i}" for i in range(1, CLIPS))]
    about = About(None, 2, {"alpha": {"top1": 0.25}, "beta": {"top1": 0.5}, "alpha+beta": {"top1": 0.75}})
    return make_run(tmp_path / "run", {"classes": 5}, {"label": target}, {"label": logits}, ids, about, failed=[3])


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL))


def test_the_best_step_is_the_one_whose_weights_are_kept():
    points, losses = [(5, 0.5), (10, 0.5), (15, 0.25)], {5: 1.1, 10: 0.9, 15: 0.2}
    assert best_point(points, losses, lower=False) == (10, 0.5)
    assert best_point(points, losses, lower=True) == (15, 0.25)
    assert best_point(points, {}, lower=False) == (5, 0.5)


def test_what_is_on_the_page(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = write_report(run)
    assert path == run / "report.html"
    page = path.read_text(encoding="utf-8")
    text = text_of(page)
    for words in ("What was run", "All settings", "strategy: bottleneck", "Confusion", "Calibration", "Hardest clips"):
        assert words in text
    target, logits = single()
    kept = [i for i in range(CLIPS) if i != 3]
    right = (logits.argmax(1) == target)[kept]
    assert f"{100 * right.float().mean():.1f} % top1" in text
    assert f"{int(right.sum())} of 23 clips lie on the diagonal (blue), {int((~right).sum())} off it" in text
    counts = target[kept].bincount()
    assert f"{NAMES[int(counts.argmax())]} would be right for {counts.max()}. Calib" in html.unescape(text)
    assert "the loss on val is lowest (2.000) at step 20, then it rises to 4.000" in text.lower()
    assert "alpha+beta 75.0" in text
    assert "1 clip could not be read" in text
    assert "2 windows a clip" in text
    assert "train 24 4–5" in text
    wrong = int((~right).sum())
    assert page.count("<article>\n  <h3>") == min(12, wrong)


def test_a_model_that_is_no_better_than_one_answer_is_told(tmp_path):
    """Of each task: the largest class of the train split, as it does on these clips; the mean."""
    kind = torch.tensor([0] * 8 + [1] * 16)
    size = torch.arange(CLIPS).float()[:, None]
    head = {"tasks": {"kind": 3, "size": 1}, "task": {"kind": "single", "size": "regression"}}
    said = {"kind": torch.tensor([1.0, 0.0, 0.0]).repeat(CLIPS, 1), "size": torch.full_like(size, 11.5)}
    run = make_run(tmp_path / "run", head, {"kind": kind, "size": size}, said, majority={"kind": 0})
    text = html.unescape(text_of(write_report(run).read_text(encoding="utf-8")))
    assert f"kind/top1 33.3 % is no better than always answering {HOSTILE!r}, the largest class of the train" in text
    assert "of the train split (33.3 %); nor is kind/balanced_accuracy 50.0 % (50.0 %). size/r2 0.000 is no" in text
    assert "size/r2 0.000 is no better than always answering the mean." in text
    assert f"Always answering {HOSTILE} would be right for 8." in text
    assert "kind/macro_f1 0.250" in text  # (2 x 8 / (24 + 8) + 0) / 2


def test_nothing_hostile_gets_through(run):
    page = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "alert(" in page
    assert "<broken>" not in page
    assert "<draw>" not in page
    assert "http:" not in page.replace("http-equiv", "").replace("http://www.w3.org/", "")
    assert "https:" not in page
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    used = re.findall(r"url\(([^)]*)\)", page)
    assert all(place.startswith("#") for place in used)


def test_a_clip_that_cannot_be_drawn_does_not_lose_the_others(run, tmp_path):
    target, logits = single()
    wrong = [i for i in range(CLIPS) if int(logits[i].argmax()) != int(target[i]) and i != 3]
    (tmp_path / f"{wrong[0]}.npy").write_bytes(b"no array")
    (tmp_path / f"{wrong[1]}.npy").unlink()
    np.save(tmp_path / f"{wrong[2]}.npy", np.full((4, 13), 99, np.float32))
    contents = gather(run)
    found = {clip.id: clip for clip in (contents.clips[place] for place in contents.hardest)}
    names = [HOSTILE if i == 0 else f"clip{i}" for i in wrong]
    assert set(found) == set(names)
    assert "cannot read its array" in found[names[0]].errors[0]
    assert "there is no such file" in found[names[1]].errors[0]
    assert found[names[2]].errors == ["beta: RuntimeError: beta cannot <draw> this"]
    assert list(found[names[2]].pictures) == ["alpha"]
    for name in names[3:]:
        assert found[name].errors == []
        assert found[name].pictures["beta"].stills[0].shape == (144, 96, 3)  # as large as there is room for
    assert "beta cannot &lt;draw&gt; this" in write_report(run).read_text(encoding="utf-8")


def test_what_is_missing_is_told(run, tmp_path):
    (tmp_path / "data.csv").rename(tmp_path / "moved.csv")
    page = text_of(write_report(run).read_text(encoding="utf-8"))
    assert "The data cannot be opened: data.path:" in page
    assert "Their pictures are missing: data.path:" in page
    assert "Confusion" in page
    (run / "predictions.parquet").unlink()
    (run / "model.safetensors").unlink()
    page = text_of(write_report(run).read_text(encoding="utf-8"))
    assert "Nothing was evaluated yet" in page
    assert "Loss" in page


def test_evaluations_have_their_own_page(run):
    folder = run / "eval-new-test"
    folder.mkdir()
    (run / "predictions.parquet").rename(folder / "predictions.parquet")
    assert write_report(folder) == folder / "report.html"
    assert "run / eval-new-test" in (folder / "report.html").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="no run folder: it has no config.yaml"):
        write_report(run.parent)


def test_finished_work_is_never_lost(run, monkeypatch):
    (run / "predictions.parquet").write_bytes(b"broken")
    with pytest.warns(MBTWarning, match="no report.html: .*predictions.parquet: cannot be read"):
        assert try_report(run) is None
    monkeypatch.setattr("mbt_core.analysis.report.write.gather", lambda folder: 1 / 0)
    with pytest.warns(MBTWarning, match="ZeroDivisionError.*mbt report"):
        assert try_report(run) is None
    assert not (run / "report.html").exists()


def test_where_a_run_comes_from(run):
    """Each line of the configuration's head by what it says, whichever there are."""
    left = open_left(run)
    left.notes[1:] = ["started today", "mbt-fusion 1, torch 2", "data 0123", "filled from the data: a"]
    found = dict(facts(left))
    assert (found["started"], found["versions"]) == ("today", "mbt-fusion 1, torch 2")
    assert "commit" not in found
    left.notes.insert(3, "commit abc")
    assert dict(facts(left))["commit"] == "abc"


def test_where_no_clip_could_be_read_the_page_says_so(run):
    table = pyarrow.parquet.read_table(run / "predictions.parquet")
    errors = pa.array(["it's <broken>"] * len(table), pa.string())
    failed = table.set_column(table.column_names.index("error"), "error", errors)
    pyarrow.parquet.write_table(failed.select(["id", "split", "group", "error"]), run / "predictions.parquet")
    page = text_of(write_report(run).read_text(encoding="utf-8"))
    assert "No clip could be read: there are no metrics." in page
    assert "24 clips could not be read" in page


def test_labels_are_right_or_wrong_each(tmp_path):
    tags = torch.zeros(CLIPS, 3)
    tags[:, 1] = 1
    logits = torch.tensor([3.0, 2, -4]).repeat(CLIPS, 1)
    run = make_run(tmp_path / "run", {"classes": 3, "task": "multilabel"}, {"label": tags}, {"label": logits})
    page = write_report(run).read_text(encoding="utf-8")
    verdict = page.split('<p class="verdict">')[1]
    flagged = re.findall(r'<b class="(yes|no)">(.*?)</b>', html.unescape(verdict))
    assert flagged == [("no", HOSTILE), ("yes", "b")]
    assert "$\\frac{ <span" in verdict  # 2 %: the model does not say so


def test_numbers_that_are_not_finite_have_no_point(tmp_path):
    true = torch.arange(CLIPS).float()[:, None].repeat(1, 2)
    said = true.clone()
    said[:3, 0] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    said[:, 1] = torch.inf
    head = {"classes": 2, "task": "regression"}
    run = make_run(tmp_path / "run", head, {"label": true}, {"label": said})
    page = text_of(write_report(run).read_text(encoding="utf-8"))
    assert "off by 0. 3 of 24 have no point: inf or nan." in page
    assert "24 of 24 have no point: inf or nan." in page


def test_a_class_that_is_called_like_a_colour_keeps_its_name():
    drawn = svg(bars([("#d55e00", 0.5), ("<b>#d55e00", 1.0)], "#d55e00"), "#d55e00")
    assert text_of(drawn).count("#d55e00") == 3
    assert 'aria-label="#d55e00"' in drawn
    assert "var(--accent)" in drawn


@pytest.mark.slow
def test_several_tasks_have_a_section_each(tmp_path):
    torch.manual_seed(0)
    kinds = {"animal": "single", "tags": "multilabel", "size": "regression"}
    head = {"tasks": {"animal": 5, "tags": 40, "size": 2}, "task": kinds}
    target, logits = single()
    tags = (torch.rand(CLIPS, 40) < 0.3).float()
    tags[:, 0], tags[:, 1] = 1, 0
    size = torch.randn(CLIPS, 2)
    targets = {"animal": target, "tags": tags, "size": size}
    said = {"animal": logits, "tags": torch.randn(CLIPS, 40), "size": size + 0.25}
    run = make_run(tmp_path / "run", head, targets, said)
    contents = gather(run)
    page = text_of(render_report(contents))
    for words in ("Task animal", "Task tags", "Task size", "Worst classes", "Best classes", "1 classes have no clip"):
        assert words in page
    assert page.count("On average it is off by 0.25.") == 2
    assert "no better than" not in page
    assert [len(task.figures) for task in contents.tasks] == [2, 4, 2]
    assert len(contents.hardest) == 12
    assert len(contents.attention) == 4
    assert page.count("animal: it is") == 12 + 4
    found = dict(pictures(contents))
    assert {"curves/Loss", "animal/Confusion", "tags/Worst classes", "size/size 2", "hardest/1", "attention/4"} < set(
        found
    )
    for picture in found.values():
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert 20 < picture.mean() < 254
        assert picture.std() > 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["single", "multilabel"])
def test_many_classes_stay_small(tmp_path, kind):
    count, classes = 1000, 500
    target, logits = single(count, classes)
    if kind == "multilabel":
        target = torch.nn.functional.one_hot(target, classes).float()
    ids = [f"a rather long name of a clip {i}" for i in range(count)]
    run = make_run(tmp_path / "run", {"classes": classes, "task": kind}, {"label": target}, {"label": logits}, ids)
    path = write_report(run)
    page = path.read_text(encoding="utf-8")
    assert len(page) < 1_000_000
    if kind == "single":
        assert "Of 500 classes these 20 are confused most." in page
    assert page.count("<td>class ") >= 490


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1400, True)])
def test_report_in_a_browser(run, tmp_path, width, dark):
    page = write_report(run).read_text(encoding="utf-8")
    (tmp_path / "browser").mkdir()
    seen = look_at(page, width, tmp_path / "browser", dark)
    assert seen.width <= width
    assert seen.images == seen.shown > 20
    assert seen.requests == 0
    assert seen.complaints == []
    assert seen.background == ("rgb(20, 23, 27)" if dark else "rgb(246, 247, 249)")


def log_of(steps, val):
    lines = [{"event": "step", "step": s, "time": s, "loss": 1.5, "lr": 0.1, "clips_per_second": 9.0} for s in steps]
    lines += [{"event": "val", "step": s, "time": s, "loss": 1.25, "top1": 1.0, "top1[alpha]": 1.0} for s in val]
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.mark.slow
def test_a_short_run_has_numbers_in_place_of_empty_panels(tmp_path):
    target, logits = single()
    run = make_run(tmp_path / "run", {"classes": 5}, {"label": target}, {"label": logits})
    (run / "metrics.jsonl").write_text(log_of([3], [3]))
    contents = gather(run)
    assert contents.curves == []
    assert "the last ones: loss 1.500 on train, loss 1.250 on val, top1 100.0 % on val." in text_of(
        render_report(contents)
    )
    (run / "metrics.jsonl").write_text(log_of([10], [3, 6, 9]))
    assert [drawn.title for drawn in gather(run).curves] == ["Loss", "top1"]
    (run / "metrics.jsonl").write_text(log_of([10, 20], [10, 20]))
    contents = gather(run)
    assert [drawn.title for drawn in contents.curves] == ["Loss", "top1", "Learning rate", "Speed"]
    assert "Too few values" not in render_report(contents)


def test_axes_end_where_values_end(tmp_path):
    target, logits = single()
    run = make_run(tmp_path / "run", {"classes": 5}, {"label": target}, {"label": logits})
    (run / "metrics.jsonl").write_text(log_of([1, 2, 3], [1, 2, 3]))
    contents = gather(run)
    [top1] = next(drawn for drawn in contents.curves if drawn.title == "top1").figure.axes
    assert top1.get_ylim()[1] == 1.0
    assert all(float(place).is_integer() for place in top1.get_xticks())
    calibration = next(drawn for drawn in contents.tasks[0].figures if drawn.title == "Calibration").figure.axes[0]
    assert (calibration.get_xlim(), calibration.get_ylim()) == ((0, 1), (0, 1))
