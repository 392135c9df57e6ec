"""What scores hang on: the examples of the test split."""

import random
import statistics

import pytest
import torch

from mbt_core.config import DataConfig, Experiment, HeadConfig
from mbt_core.data.manifest import Manifest
from mbt_core.evaluate.evaluator import FUSED, Evaluation
from mbt_core.evaluate.table import FILE, write_predictions
from mbt_core.sweep.left_out import GROUPS, scores_without, standard_error
from mbt_core.sweep.transfer import Effect, effects
from mbt_core.training.folder import RunFolder
from toy.sweeps import result

pytestmark = pytest.mark.usefixtures("toys")


def run_with(path, right, order=None, unreadable=(), per=1):
    """A run that answered the clips 0, 1, ... of `right` rightly or wrongly, written in some order, `per` of a tape."""
    count = len(right)
    order = list(range(count)) if order is None else order
    folder = RunFolder(path)
    folder.start(
        Experiment.model_validate({"modalities": {"alpha": {}}, "model": {"head": {"classes": 2}}}), "mbt train"
    )
    table = path.parent / f"{path.name}.csv"
    rows = (f"clip{i},{'xy'[i % 2]},test,tape{i // per}\n" for i in order)
    table.write_text("id,label,split,tape\n" + "".join(rows))
    targets = torch.tensor([i % 2 for i in order])
    answers = torch.tensor([right[i] for i in order]) == (targets == 1)
    logits = torch.stack([~answers, answers], dim=1).float()
    here = torch.tensor([i not in unreadable for i in order])
    logits, targets = {FUSED: {"label": logits[here]}}, {"label": targets[here]}
    failed = {order.index(i): "damaged" for i in unreadable}
    found = Evaluation(torch.arange(count)[here], logits, targets, {}, HeadConfig(classes=2), failed)
    write_predictions(path, found, Manifest.read(table, {}, DataConfig(group="tape" if per > 1 else None)), "test")
    return folder


def test_the_error_of_a_mean_is_the_known_one(tmp_path):
    """With a group for each example, the jackknife of a mean is s / sqrt(N) to the last digits."""
    right = [True] * 11 + [False] * 3
    without = scores_without(run_with(tmp_path / "run", right), ("top1",))
    assert sorted(without) == pytest.approx([10 / 13] * 11 + [11 / 13] * 3)
    assert standard_error(without) == pytest.approx(statistics.stdev(map(float, right)) / 14**0.5)


def test_groups_depend_on_the_ids_alone(tmp_path):
    right = [random.Random(i).random() < 0.7 for i in range(101)]
    mixed = random.Random(1).sample(range(101), 101)
    one, other = (scores_without(run_with(tmp_path / n, right, o), ("top1",)) for n, o in [("a", None), ("b", mixed)])
    assert one == pytest.approx(other)
    assert len(one) == GROUPS
    # within what 20 groups can tell
    assert standard_error(one) == pytest.approx(statistics.stdev(map(float, right)) / 101**0.5, rel=0.4)


def test_clips_of_one_group_count_as_one(tmp_path):
    """Clips of a tape are all right or all wrong: there are 40 answers, not 800."""
    tapes = [random.Random(i).random() < 0.7 for i in range(40)]
    right = [tape for tape in tapes for _ in range(20)]
    apart, together = (scores_without(run_with(tmp_path / f"per{per}", right, per=per), ("top1",)) for per in (1, 20))
    truth = statistics.stdev(map(float, tapes)) / 40**0.5
    assert standard_error(apart) < truth / 2
    assert standard_error(together) == pytest.approx(truth, rel=0.4)
    few = scores_without(run_with(tmp_path / "few", right[:60], per=20), ("top1",))
    assert len(few) == 3


def test_an_unreadable_clip_moves_no_other(tmp_path):
    """Of two runs that differ in nothing else the pairs stay pairs: only its own group changes."""
    right = [random.Random(i).random() < 0.7 for i in range(101)]
    one, other = (
        scores_without(run_with(tmp_path / n, right, None, u), ("top1",)) for n, u in [("a", ()), ("b", [50])]
    )
    differences = [a - b for a, b in zip(one, other, strict=True)]
    assert standard_error(differences) < 0.1 * standard_error(one)


def test_there_is_none_without_predictions(tmp_path):
    folder = run_with(tmp_path / "run", [True, False, True])
    assert len(scores_without(folder, ("top1",))) == 3
    (folder.path / FILE).write_bytes(b"damaged")
    assert scores_without(folder, ("top1",)) == ()
    (folder.path / FILE).unlink()
    assert scores_without(folder, ("top1",)) == ()
    assert scores_without(run_with(tmp_path / "one", [True]), ("top1",)) == ()


def test_one_test_example_is_no_effect(tmp_path):
    """Each seed loses the same one of 40: seeds agree to the last digit, but another split need not."""
    all_right, one_wrong = [True] * 40, [True] * 39 + [False]
    results = [
        result(
            {"init": init, "tune": "all", "fraction": "1"},
            seed,
            sum(right) / 40,
            folder=run_with(tmp_path / f"{init}{seed}", right),
        )
        for init, right in (("none", all_right), ("vit", one_wrong))
        for seed in range(3)
    ]
    (overall, _) = effects(results)
    assert overall.differences == pytest.approx((-0.025,) * 3)
    low, high = overall.interval
    assert (low, high) == pytest.approx((-0.025 - 2.093 * 0.025, -0.025 + 2.093 * 0.025), abs=1e-3)
    assert overall.word == "no clear difference"
    assert Effect("vit", "none", None, overall.differences).word == "hurts"
