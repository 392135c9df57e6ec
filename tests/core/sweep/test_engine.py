"""Sweeps of real, tiny trainings: what is finished stays, what was interrupted goes on, what fails stops no other."""

import shlex
from dataclasses import replace
from itertools import pairwise

import pytest

import mbt_core.sweep.engine as engine
from mbt_core.config import HeadConfig
from mbt_core.config.recipes import assemble
from mbt_core.errors import ConfigError, InUseError
from mbt_core.run import train
from mbt_core.sweep.engine import Sweep, differences
from mbt_core.training.loop import Interrupted
from mbt_core.training.state import FILE
from toy.sweeps import Log, layers, make_flags

pytestmark = pytest.mark.usefixtures("toys")


def run(out, cells, **how):
    log = Log(**how)
    return Sweep(out, cells).run("cpu", log), log.trained


def scores(results):
    return {r.cell.name: dict(r.metrics) for r in results}


def test_interrupted_and_resumed_it_loses_nothing(tmp_path):
    cells = layers(make_flags(tmp_path))
    first, second = (cell.name for cell in cells)
    unbroken, trained = run(tmp_path / "unbroken", cells)
    assert trained == [(first, 0), (second, 0)]
    with pytest.raises(Interrupted):
        run(tmp_path / "broken", cells, stop_in=second, stop_at=4)
    between = Sweep(tmp_path / "broken", cells).results()
    assert [r.status for r in between] == ["finished", "unfinished"]
    resumed, trained = run(tmp_path / "broken", cells)
    assert trained == [(second, 4)]
    assert scores(resumed) == scores(unbroken)
    assert run(tmp_path / "broken", cells)[1] == []


@pytest.mark.slow
def test_a_seed_added_later_trains_only_what_is_missing(tmp_path):
    flags = make_flags(tmp_path)
    before, _ = run(tmp_path / "out", layers(flags))
    after, trained = run(tmp_path / "out", layers(flags, 2))
    assert trained == [("model.fusion.layer=0,seed=1", 0), ("model.fusion.layer=3,seed=1", 0)]
    assert scores(before).items() <= scores(after).items()
    assert [r.status for r in after] == ["finished"] * 4
    assert [cell.name for cell in Sweep(tmp_path / "out", layers(flags, 2, "0,2,3")).todo()] == [
        "model.fusion.layer=2,seed=0",
        "model.fusion.layer=2,seed=1",
    ]


def test_results_hold_what_the_figures_need(tmp_path):
    (result,), _ = run(tmp_path / "out", layers(make_flags(tmp_path), values="2"))
    assert (result.status, result.steps, result.split, result.main) == ("finished", 6, "test", ("top1",))
    assert result.examples == 8
    assert {"top1", "top1[alpha]", "top1[beta]", "loss"} <= result.metrics.keys()
    assert result.score == result.metrics["top1"]
    assert result.listed == ("top1", "macro_f1", "balanced_accuracy")
    assert set(result.listed) < result.metrics.keys()
    assert result.clips_per_second > 0
    assert result.cost.parameters == sum(p.numel() for p in train_again(result, tmp_path).model.parameters())
    assert result.curve_name == "top1"
    assert [step for step, _ in result.curve] == [3, 6]
    # what nothing goes on from is not kept
    assert (tmp_path / "out/cells" / result.cell.name / "state" / FILE).stat().st_size < 2000


def train_again(result, tmp_path):
    return train(result.cell.experiment, tmp_path / "again", command="")


def test_without_a_test_split_val_judges(tmp_path):
    (result,), _ = run(tmp_path / "out", layers(make_flags(tmp_path, test=False), values="2"))
    assert (result.split, result.examples) == ("val", 8)
    assert result.score in [value for _, value in result.curve]


def test_without_a_val_split_the_curve_is_the_training_loss(tmp_path):
    flags = make_flags(tmp_path)
    manifest = tmp_path / "data.csv"
    manifest.write_text(manifest.read_text().replace(",val", ",test"))
    (result,), _ = run(tmp_path / "out", layers(flags, values="2"))
    assert (result.split, result.curve_name) == ("test", "loss")
    assert [step for step, _ in result.curve] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_failing_cell_is_reported_and_the_others_go_on(tmp_path, monkeypatch):
    cells = layers(make_flags(tmp_path), values="0,2,3")

    def failing(experiment, *rest, **options):
        if experiment.model.fusion.layer == 0:
            raise ZeroDivisionError("a bug")
        if experiment.model.fusion.layer == 2:
            raise ConfigError("train.lr: too high")
        return train(experiment, *rest, **options)

    monkeypatch.setattr(engine, "train", failing)
    results, _ = run(tmp_path / "out", cells)
    assert [(r.status, r.error) for r in results] == [
        ("failed", "ZeroDivisionError: a bug"),
        ("failed", "train.lr: too high"),
        ("finished", ""),
    ]
    monkeypatch.undo()
    results, trained = run(tmp_path / "out", cells)
    assert [r.status for r in results] == ["finished"] * 3
    assert [name for name, _ in trained] == [cells[0].name, cells[1].name]


def test_commands_train_cells_elsewhere(tmp_path):
    cells = layers(make_flags(tmp_path))
    sweep = Sweep(tmp_path / "out", cells)
    words = shlex.split(sweep.commands()[0])
    options = dict(zip(words[2::2], words[3::2], strict=True))
    sets = [value for word, value in pairwise(words) if word == "--set"]
    experiment, _ = assemble(options.get("--modalities"), options["--recipe"], options["--data"], sets)
    assert experiment == cells[0].experiment
    train(experiment, options["--out"])
    assert [r.status for r in sweep.results()] == ["finished", "missing"]
    assert len(sweep.commands()) == 1
    with pytest.raises(Interrupted):
        run(sweep.out, cells, stop_in=cells[1].name, stop_at=2)
    assert sweep.commands() == [f"mbt train --resume {tmp_path}/out/cells/{cells[1].name} --device cpu"]


def test_another_experiment_in_the_same_folder_is_refused(tmp_path):
    flags = make_flags(tmp_path)
    run(tmp_path / "out", layers(flags, values="0"))
    other = replace(flags, sets=("train.steps=7", "modalities.alpha.samples=9"))
    with pytest.raises(ConfigError, match=r"modalities.alpha.samples is 13, expected 9; train.steps is 6, expected 7"):
        Sweep(tmp_path / "out", layers(other, values="0"))


def test_what_data_fills_is_no_difference(tmp_path):
    flags = make_flags(tmp_path)
    wanted = flags.experiment()
    assert wanted.modalities["alpha"].channels == "auto"
    found = train(wanted, tmp_path / "run").experiment
    assert (found.modalities["alpha"].channels, found.model.head.classes) == (2, 2)
    assert differences(wanted, found) == []
    two = flags.over({"model.head.classes": 2}).experiment()
    assert differences(two, found) == []
    three = flags.over({"model.head.classes": 3}).experiment()
    assert differences(three, found) == ["model.head.classes is 2, expected 3"]


def test_what_open_fields_decide_is_no_difference_either(tmp_path):
    """Of a modality with open fields `fit` may change others, as the tubelet where there are but stills."""
    wanted = make_flags(tmp_path).experiment()
    assert "auto" not in (wanted.modalities["alpha"].samples, wanted.modalities["beta"].size)
    found = wanted.model_copy(deep=True)
    found.modalities["alpha"].channels = 2
    found.modalities["alpha"].samples += 1
    found.modalities["beta"].size = (5, 7)
    filled = ["modalities.alpha.channels", "modalities.alpha.samples", "modalities.beta.size", "model.head.classes"]
    assert [line.partition(" ")[0] for line in differences(wanted, found, filled)] == ["modalities.beta.size"]
    assert differences(wanted, found, filled[:1])[0].startswith("modalities.alpha.samples is")


def test_the_scale_of_numbers_is_no_difference_unless_it_was_asked_for(tmp_path):
    wanted = make_flags(tmp_path).over({"model.head.task": "regression"}).experiment()

    def with_scale(mean):
        scales = None if mean is None else {"label": {"mean": [mean], "std": [80.0]}}
        head = HeadConfig(classes=1, task="regression", scales=scales)
        return wanted.model_copy(update={"model": wanted.model.model_copy(update={"head": head})})

    assert differences(wanted, with_scale(1000.0)) == []
    assert differences(wanted, with_scale(None)) == []  # trained before there were any
    asked = differences(with_scale(0.0), with_scale(1000.0))
    assert asked == ["model.head.scales.label.mean is [1000.0], expected [0.0]"]


def test_what_was_open_is_not_what_was_given(tmp_path):
    flags = make_flags(tmp_path)
    run(tmp_path / "open", layers(flags, values="0"))
    Sweep(tmp_path / "open", layers(flags, values="0"))
    given = replace(flags, sets=("train.monitor=loss",))
    run(tmp_path / "given", layers(given, values="0"))
    with pytest.raises(ConfigError, match="train.monitor is loss, expected auto"):
        Sweep(tmp_path / "given", layers(flags, values="0"))
    # the same value, found by the data, is the same
    Sweep(tmp_path / "open", layers(flags.over({"modalities.alpha.channels": 2}), values="0"))
    config = next((tmp_path / "open/cells").iterdir()) / "config.yaml"
    assert "# filled from the data: modalities.alpha.channels, model.head.classes" in config.read_text()


def test_other_data_in_the_same_folder_is_refused(tmp_path):
    cells, manifest = layers(make_flags(tmp_path)), tmp_path / "data.csv"
    run(tmp_path / "out", cells[:1])
    head, *rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join([head, *reversed(rows)]))
    Sweep(tmp_path / "out", cells)
    manifest.write_text("\n".join([head, *rows[:-1]]))
    with pytest.raises(ConfigError, match="was trained on other data: ids, labels or splits"):
        Sweep(tmp_path / "out", cells)
    manifest.unlink()  # what is finished can still be shown
    assert [r.status for r in Sweep(tmp_path / "out", cells).results()] == ["finished", "missing"]


def test_a_run_that_notes_no_data_is_taken(tmp_path):
    cells, manifest = layers(make_flags(tmp_path), values="0"), tmp_path / "data.csv"
    run(tmp_path / "out", cells)
    config = tmp_path / "out/cells" / cells[0].name / "config.yaml"
    config.write_text("".join(ln for ln in config.read_text().splitlines(True) if not ln.startswith("#")))
    manifest.write_text(manifest.read_text().rpartition("31,")[0])
    assert Sweep(tmp_path / "out", cells).todo() == []


@pytest.mark.slow
def test_a_cell_that_another_process_trains_is_left(tmp_path, monkeypatch):
    cells, running = layers(make_flags(tmp_path)), True

    def held(experiment, *rest, **options):
        if running and experiment.model.fusion.layer == 0:
            raise InUseError("another process is training in it")
        return train(experiment, *rest, **options)

    monkeypatch.setattr(engine, "train", held)
    sweep = Sweep(tmp_path / "out", cells)
    assert [r.status for r in sweep.run("cpu")] == ["running elsewhere", "finished"]
    running = False
    assert [r.status for r in sweep.run("cpu")] == ["finished", "finished"]


@pytest.mark.slow
def test_cells_share_the_decoded_clips(tmp_path, monkeypatch):
    made = []
    choose = engine.Cache.choose
    monkeypatch.setattr(engine.Cache, "choose", lambda *given: made.append(choose(*given)) or made[-1])
    run(tmp_path / "out", layers(make_flags(tmp_path)))
    assert len(made) == 1
    assert made[0].in_memory
    # another modality alone is read another way
    flags = make_flags(tmp_path).over({"modalities": "alpha"})
    run(tmp_path / "other", layers(flags, values="0"))
    assert len(made) == 2


@pytest.mark.slow
def test_a_smaller_share_uses_the_larger_ones_clips(tmp_path, monkeypatch):
    made = []
    choose = engine.Cache.choose
    monkeypatch.setattr(engine.Cache, "choose", lambda *given: made.append(choose(*given)) or made[-1])
    flags = make_flags(tmp_path)
    shares = [engine.Cell(f"{f}", {}, 0, flags, flags.over({"data.fraction": f}).experiment()) for f in (0.5, 1, 0.25)]
    run(tmp_path / "out", shares)
    assert len(made) == 2
