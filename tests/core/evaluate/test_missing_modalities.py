"""Curves of missing modalities: made of two evaluations, nested, and the same whichever rows lie together."""

import csv
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch

from mbt_core import ConfigError
from mbt_core.config import HeadConfig
from mbt_core.evaluate.evaluator import FUSED, Evaluation, Subset, merge
from mbt_core.evaluate.missing_modalities import FRACTIONS, _order, missing_curves, subsets_for_curves, write_csv

HEAD = HeadConfig(tasks={"kind": 3, "size": 2}, task={"kind": "single", "size": "regression"})
ROWS = 40
CLASSES = torch.arange(ROWS) % 3


def evaluation(names: Subset, has: dict[str, torch.Tensor], right: torch.Tensor, size: float) -> Evaluation:
    """Of the rows that have anything of `names`: `right` says whose class it finds; it takes all for `size` large."""
    present = {name: has[name] for name in names}
    some = torch.stack(list(present.values())).any(0)
    said = torch.where(right, CLASSES, (CLASSES + 1) % 3)
    fused = {"kind": 5 * torch.eye(3)[said][some], "size": torch.full((int(some.sum()), 2), size)}
    numbers = torch.stack([torch.arange(ROWS) / ROWS, torch.arange(ROWS) % 7 / 7], 1)
    return Evaluation(
        some.nonzero()[:, 0],
        {FUSED: fused, **dict.fromkeys(names, fused)},
        {"kind": CLASSES[some], "size": numbers[some]},
        {name: here[some] for name, here in present.items()},
        HEAD,
    )


def found(has: dict[str, torch.Tensor] | None = None) -> dict[Subset, Evaluation]:
    """All right with all; without x every second row, without y no row."""
    has = has or {"x": torch.ones(ROWS, dtype=torch.bool), "y": torch.ones(ROWS, dtype=torch.bool)}
    every, second, none = torch.ones(ROWS) > 0, torch.arange(ROWS) % 2 == 0, torch.zeros(ROWS) > 0
    return {
        ("x", "y"): evaluation(("x", "y"), has, every, 0.5),
        ("y",): evaluation(("y",), has, second, 0.4),
        ("x",): evaluation(("x",), has, none, 0.1),
    }


def wrong(evaluations: dict[Subset, Evaluation], name: str, fraction: float, seed: int = 0) -> int:
    (point,) = [p for p in missing_curves(evaluations, [fraction], seed) if p.modality == name]
    return round((1 - point.metrics["kind/top1"]) * point.examples)


def test_the_ends_are_the_evaluations_themselves() -> None:
    evaluations = found()
    points = missing_curves(evaluations)
    assert [(p.modality, p.fraction) for p in points] == [(name, f) for name in "xy" for f in FRACTIONS]
    assert [p.lost for p in points] == [0, 10, 20, 30, 40] * 2
    assert {(p.examples, p.absent, p.kept) for p in points} == {(40, 0, 0)}
    for name, rest in (("x", ("y",)), ("y", ("x",))):
        first, *_, last = [p for p in points if p.modality == name]
        for point, metrics in ((first, evaluations["x", "y"].metrics()), (last, evaluations[rest].metrics())):
            assert point.metrics == {key: value for key, value in metrics.items() if "[" not in key}


def test_every_row_is_answered_with_what_it_has_left() -> None:
    assert [wrong(found(), "y", f) for f in FRACTIONS] == [0, 10, 20, 30, 40]
    assert wrong(found(), "x", 1.0) == 20


def test_who_has_lost_it_has_lost_it_at_every_larger_fraction() -> None:
    counts = [wrong(found(), "x", n / ROWS) for n in range(ROWS + 1)]
    steps = [b - a for a, b in pairwise(counts)]
    assert set(steps) == {0, 1}  # one row more each: wrong if it is an odd one, and it stays so
    assert sum(steps) == 20


def test_the_seed_and_the_name_decide() -> None:
    def losers(name: str, seed: int) -> tuple[int, ...]:
        return tuple(wrong(found(), name, n / ROWS, seed) for n in range(ROWS + 1))

    assert losers("x", 0) == losers("x", 0)
    assert losers("x", 0) != losers("x", 1)


def parts_of(whole: Evaluation, places: Sequence[torch.Tensor]) -> list[Evaluation]:
    return [
        Evaluation(
            whole.index[p],
            {source: {task: v[p] for task, v in tasks.items()} for source, tasks in whole.logits.items()},
            {task: v[p] for task, v in whole.targets.items()},
            {name: v[p] for name, v in whole.present.items()},
            HEAD,
        )
        for p in places
    ]


def test_it_does_not_matter_who_evaluated_which_rows() -> None:
    places = [torch.arange(ROWS)[rank::3] for rank in range(3)]
    merged = {subset: merge(parts_of(whole, places)) for subset, whole in found().items()}
    assert missing_curves(merged) == missing_curves(found())


def test_draws_belong_to_rows_of_the_manifest() -> None:
    """Rows that could not be read are gone; the others lose it in the same order."""
    every = torch.arange(ROWS)
    order = _order("x", every, every >= 0, seed=0)
    assert sorted(order.tolist()) == every.tolist() != order.tolist()
    kept = every[8:]
    assert kept[_order("x", kept, kept >= 0, seed=0)].tolist() == order[order >= 8].tolist()
    assert _order("y", every, every >= 0, seed=0).tolist() != order.tolist()


def test_rows_without_it_and_rows_with_nothing_else() -> None:
    rows = torch.arange(ROWS)
    has = {"x": rows >= 4, "y": rows < 30}
    points = [p for p in missing_curves(found(has)) if p.modality == "y"]
    assert {(p.examples, p.absent, p.kept) for p in points} == {(40, 10, 4)}
    assert [p.lost for p in points] == [0, 6, 13, 20, 26]
    assert wrong(found(has), "y", 1.0) == 26  # the rows that have nothing but y keep it, and are right


def test_three_modalities_lose_one_at_a_time() -> None:
    assert subsets_for_curves(["x", "y", "z"]) == [("x", "y", "z"), ("y", "z"), ("x", "z"), ("x", "y")]
    with pytest.raises(ConfigError, match="--missing: the run has one modality, 'x'"):
        subsets_for_curves(["x"])


def test_nothing_to_draw_from() -> None:
    nothing = Evaluation(torch.zeros(0, dtype=torch.int64), {}, {}, {}, HEAD, {0: "broken"})
    assert missing_curves({("x", "y"): nothing, ("x",): nothing}) == []
    evaluations = found()
    del evaluations["x",]
    assert {p.modality for p in missing_curves(evaluations)} == {"x"}


def test_the_file_has_a_line_a_point(tmp_path) -> None:
    points = missing_curves(found())
    write_csv(tmp_path / "missing.csv", points)
    with (tmp_path / "missing.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 10
    assert lines[8]["modality"] == "y"
    assert [float(line["kind/top1"]) for line in lines] == [p.metrics["kind/top1"] for p in points]
    assert [int(line["lost"]) for line in lines] == [p.lost for p in points]
