"""Training above frozen layers from kept tokens: the same results, nothing computed twice, nothing out of date."""

import copy
import json
import os
import re
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

import mbt_core as mbt
import mbt_core.run as run_module
import toy.modalities
from mbt_core.config import TrainConfig
from mbt_core.config.settings import merge
from mbt_core.errors import MBTError
from mbt_core.io.files import write_atomically
from mbt_core.modality.tokens import Tokens
from mbt_core.sweep.engine import Sweep
from mbt_core.sweep.grid import make_cells
from mbt_core.sweep.transfer import plan
from mbt_core.training import lower
from mbt_core.training.events import Listener
from mbt_core.training.loop import Interrupted
from mbt_core.training.optimizer import freeze
from toy.fleet import run_fleet, train_with_cache, write_series
from toy.models import POOLS, STRATEGIES, build_tiny, inputs_for
from toy.sweeps import make_flags

pytestmark = pytest.mark.usefixtures("toys")
ROWS, UNREADABLE = 40, 4
MODEL = {"backbone": {"dim": 8, "depth": 3, "heads": 2, "mlp": 12}, "fusion": {"layer": 1, "bottlenecks": 2}}
TRAIN = {"steps": 8, "batch_size": 6, "eval_every": 4, "log_every": 1, "lr": 0.05, "warmup": 0.0, "tune": "fused"}


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """40 rows of a series and a sequence; some lack one, some cannot be read, one of val has nothing."""
    path = write_series(tmp_path_factory.mktemp("data"), 39)
    path.write_text(path.read_text() + "empty,,,val,x\n")
    return path


@pytest.fixture(scope="module")
def readable(tmp_path_factory):
    """32 rows that have everything, and can be read."""
    folder = tmp_path_factory.mktemp("readable")
    make_flags(folder)
    return folder / "data.csv"


@pytest.fixture(autouse=True)
def calm(tmp_path, monkeypatch):
    """A cache of its own, and no augmentation: then training reads what evaluation reads."""
    monkeypatch.setenv("MBT_CACHE", str(tmp_path / "cache"))
    read = toy.modalities.Alpha.read
    monkeypatch.setattr(toy.modalities.Alpha, "read", lambda self, clip, window, rng: read(self, clip, window, None))


@pytest.fixture
def embedded(monkeypatch):
    """Counts the examples that pass the lower layers: they begin with `MBT.embed`."""
    counts = []
    embed = mbt.MBT.embed

    def counted(self, inputs, *rest, **options):
        counts.append(len(embedded := embed(self, inputs, *rest, **options)) and len(next(iter(embedded.values())).x))
        return embedded

    monkeypatch.setattr(mbt.MBT, "embed", counted)
    return counts


def experiment(data, /, modalities=None, **over):
    tree = {
        "modalities": {"alpha": {"samples": 8}, **(modalities or {"gamma": {}})},
        "model": MODEL,
        "data": {"path": str(data), "workers": 0, "max_missing": 1.0},
        "train": {**TRAIN, "cache_lower": True},
    }
    return merge(copy.deepcopy(tree), over)


class Log(Listener):
    """What a run said, and what it came to."""

    def __init__(self):
        self.losses, self.said, self.evaluations = [], [], []

    def step(self, step, metrics):
        self.losses.append(metrics["loss"])

    def epoch(self, step, metrics):
        self.evaluations.append(metrics)

    def message(self, text):
        self.said.append(text)


def trained(out, data, /, resume=False, **over):
    log = Log()
    run = mbt.train(experiment(data, **over), out, resume=resume, listeners=[log])
    log.results = run.results
    log.bad_clips = (out / "bad_clips.csv").read_text() if (out / "bad_clips.csv").exists() else ""
    return log


def both(tmp_path, data, /, **over):
    """With kept tokens and without."""
    return [trained(tmp_path / str(c), data, **merge(over, {"train": {"cache_lower": c}})) for c in (True, False)]


def assert_equal(kept, plain):
    assert kept.losses == pytest.approx(plain.losses, rel=1e-4)
    for one, other in zip([*kept.evaluations, kept.results], [*plain.evaluations, plain.results], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert kept.bad_clips == plain.bad_clips


def kept_files():
    return sorted(Path(os.environ["MBT_CACHE"]).rglob("*.safetensors"))


PARTS_ABOVE = ("head.", "fusion.", *(f"blocks.{n}.{i}." for n in ("gamma", "alpha", "beta", "_joint") for i in (1, 2)))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_pass_from_kept_tokens_is_a_whole_one(strategy, pool):
    """From the fusion layer and from the head, through files: predictions to the rounding of bf16, and gradients."""
    model = build_tiny(strategy, 3, pool)
    inputs = inputs_for(model)
    present = {name: torch.tensor([True, name != "alpha", name != "gamma", True]) for name in model.modalities}
    for layer in (1, 3):
        kept = lower.Lower(model, layer, "32")
        with torch.no_grad():
            streams = kept.tokens(model, inputs, present)
        rows = [{n: x[i] for n, x in streams.items() if present[n][i]} for i in range(4)]
        rows = [load(save(row)) for row in rows]
        samples = {n: [r.get(n, kept.stand_ins[n].blank()) for r in rows] for n in model.modalities}
        batch = namedtuple("Batch", "samples")({n: kept.stand_ins[n].collate(s) for n, s in samples.items()})
        again = {n: Tokens(t.x.double(), t.mask) for n, t in lower.Restore()(batch).items()}
        trained = [p for n, p in model.named_parameters() if n.startswith("head." if layer == 3 else PARTS_ABOVE)]
        found, grads = [], []
        for start, given in ((layer, again), (None, inputs)):
            found.append(model(given, present, start=start).logits)
            each = torch.autograd.grad(found[-1].square().sum(), trained, allow_unused=True)
            grads.append(torch.cat([g.flatten() for g in each if g is not None]))
        assert_near(found[0], found[1])
        assert_near(grads[0], grads[1])


def assert_near(one, other):
    """To the rounding of bf16, 2**-9 of each number."""
    assert float(((one - other).norm() / other.norm()).detach()) < 0.02


@pytest.mark.parametrize("tune", ["fused", "head"])
@pytest.mark.parametrize(
    "strategy", [s if s == "bottleneck" else pytest.param(s, marks=pytest.mark.slow) for s in STRATEGIES]
)
def test_results_are_those_without(strategy, tune, tmp_path, series):
    kept, plain = both(tmp_path, series, model={"fusion": {"strategy": strategy}}, train={"tune": tune})
    assert kept.losses == pytest.approx(plain.losses, rel=0.01)
    assert [e["loss"] for e in kept.evaluations] == pytest.approx([e["loss"] for e in plain.evaluations], rel=0.01)
    assert kept.results["loss"] == pytest.approx(plain.results["loss"], rel=0.01)
    assert kept.bad_clips == plain.bad_clips


DRAWN = {"drop_path": 0.5, "dropout": 0.3, "attention_dropout": 0.3}
SETTINGS = (
    {"model": DRAWN},
    {"model": DRAWN, "train": {"tune": "head", "modality_dropout": 0.3}},
    {"train": {"modality_dropout": 0.4, "accumulate": 2}, "data": {"sampler": "balanced"}},
    {"train": {"tune": "head"}, "model": {"pool": "mean"}},
    {"train": {"tune": "head"}, "model": {"fusion": {"eval_bottlenecks": False}}},
    {"model": {"fusion": {"layer": 0}}},
    {"model": {"fusion": {"layer": 3}}},
    {"model": {"shared_encoder": True}},
    {"train": {"tune": "all", "freeze": ["streams.*", "blocks.*.0.*"]}},
    {"evaluate": {"views": 2}},
)


@pytest.mark.parametrize(
    "over", [*SETTINGS[:4], *(pytest.param(s, marks=pytest.mark.slow) for s in SETTINGS[4:])], ids=str
)
def test_kept_in_full_precision_they_change_nothing(over, tmp_path, series, monkeypatch):
    monkeypatch.setattr(lower, "KEPT", torch.float32)
    kept, plain = both(tmp_path, series, **over)
    assert_equal(kept, plain)


def test_pictures_of_which_some_are_absent(tmp_path, monkeypatch):
    """A grid of two axes: an absent one stands in with all its tokens, so that no mask is needed."""
    monkeypatch.setattr(lower, "KEPT", torch.float32)
    rng = np.random.default_rng(0)
    lines = ["id,alpha,beta,label,split"]
    for i in range(24):
        np.save(tmp_path / f"a{i}.npy", rng.normal(i % 2, 1, (2, 8)).astype(np.float32))
        np.save(tmp_path / f"b{i}.npy", rng.normal(i % 2, 1, (4, 6)).astype(np.float32))
        beta = "" if i % 5 == 1 else f"b{i}.npy"
        lines.append(f"{i},a{i}.npy,{beta},c{i % 2},{'val' if i % 4 == 0 else 'train'}")
    (tmp_path / "data.csv").write_text("\n".join(lines))
    kept, plain = both(tmp_path, tmp_path / "data.csv", modalities={"beta": {}})
    assert_equal(kept, plain)


def test_where_the_cut_is():
    """At the head where all that enters it is constant, else at the fusion layer."""

    def cut(fusion=None, model=None, **config):
        model = build_tiny(count=2, fusion=fusion or {}, **(model or {}))
        settings = TrainConfig(cache_lower=True, **config)
        freeze(model, settings)
        return lower.find_cut(model, settings)

    assert cut(tune="fused") == 1
    assert cut(tune="head") == 3
    assert cut(tune="head", modality_dropout=0.1) == 1
    assert cut(tune="head", modality_dropout={"alpha": 0.1}) == 1
    assert cut(tune="head", fusion={"eval_bottlenecks": False}) == 1
    assert cut(tune="head", fusion={"exchange_drop": 0.5}) == 1
    assert cut(tune="fused", fusion={"layer": 3}) == 3
    assert cut(tune="all", freeze=["streams.*", "blocks.*.0.*"]) == 1
    assert cut(tune="fused", model={"patch_drop": {"alpha": 0.0}}) == 1
    assert lower.find_cut(build_tiny(), TrainConfig()) is None
    with pytest.raises(mbt.ConfigError, match=r"train.cache_lower: streams.gamma.* is trained.*layer 1.*train.tune"):
        cut(tune="all")
    with pytest.raises(mbt.ConfigError, match="train.cache_lower: model.patch_drop leaves out.*model.patch_drop=0"):
        cut(tune="fused", model={"patch_drop": {"alpha": 0.5}})


def test_refusals_come_before_any_work(tmp_path, series, monkeypatch):
    refused = {
        r"cache_lower: streams\..* is trained": {"tune": "all"},
        r"cache_lower: train.mixup=0.3 mixes .* set train.mixup=0": {"mixup": 0.3},
        r"enter layer 1 take [\d.]+ kB, above the limit of 1e-06 GB: raise train.cache_limit": {"cache_limit": 1e-6},
    }
    for message, settings in refused.items():
        with pytest.raises(mbt.ConfigError, match=message):
            trained(tmp_path / "run", series, train=settings)
    monkeypatch.setattr(lower.shutil, "disk_usage", lambda folder: namedtuple("Usage", "free")(2000))
    with pytest.raises(mbt.ConfigError, match=r"take [\d.]+ kB, and .* has 2 kB left: make room, .*MBT_CACHE"):
        trained(tmp_path / "run", series)
    assert not (tmp_path / "run").exists()
    assert kept_files() == []


@pytest.mark.parametrize("tune", ["fused", "head"])
def test_nothing_is_computed_twice(tune, tmp_path, series, embedded):
    """Each row passes the lower layers once, however many steps and evaluations there are; in a second run never."""
    first = trained(tmp_path / "one", series, train={"tune": tune, "steps": 12})
    assert sum(embedded) == ROWS
    assert len(kept_files()) == ROWS - UNREADABLE
    assert "40 clips. Every clip is read as in evaluation: its middle, without augmentation" in first.said[0]
    embedded.clear()
    again = trained(tmp_path / "two", series, train={"tune": tune, "steps": 12})
    assert sum(embedded) == UNREADABLE  # what cannot be read is tried again
    assert f"{ROWS - UNREADABLE} of which are there already" in again.said[0]
    assert again.losses == first.losses


@pytest.mark.parametrize("tune", ["fused", "head"])
def test_the_size_is_told_before_it_is_taken(tune, tmp_path, readable):
    said = []

    class Early(Listener):
        def message(self, text):
            said.append((text, len(kept_files())))

    settings = experiment(readable, modalities={"beta": {}}, train={"tune": tune})
    mbt.train(settings, tmp_path / "run", listeners=[Early()])
    told, files = said[0]
    assert files == 0
    size = sum(file.stat().st_size for file in kept_files())
    assert len(kept_files()) == 32
    number = re.search(r"/lower/\w+: ([\d.]+) kB for 32 clips\.", told)[1]
    assert float(number) * 1e3 == pytest.approx(size, rel=0.01)


@pytest.mark.slow
def test_only_what_has_changed_is_computed_anew(tmp_path, series, embedded):
    """A file, a span, damaged entries."""
    data = shutil.copytree(series.parent, tmp_path / "data")
    trained(tmp_path / "one", data / "manifest.csv")

    def computed(name):
        embedded.clear()
        trained(tmp_path / name, data / "manifest.csv")
        return sum(embedded) - UNREADABLE

    assert computed("unchanged") == 0
    np.save(data / "a0.npy", np.ones((2, 8), np.float32))
    assert computed("a file") == 1
    text = (data / "manifest.csv").read_text().splitlines()
    lines = [f"{text[0]},start,end", *(f"{line},,1" if line.startswith("r1,") else f"{line},," for line in text[1:])]
    (data / "manifest.csv").write_text("\n".join(lines))
    assert computed("a span") == 1
    for number, kept in enumerate(kept_files()):
        kept.write_bytes(kept.read_bytes()[: -1 if number % 2 else 0])
    assert computed("all that are cut off") == ROWS - UNREADABLE
    damage([file for file in kept_files() if file.stat().st_size][:5])
    assert computed("damaged") <= 5  # some are of files that have changed since


def test_a_file_replaced_while_it_is_read_is_not_kept_as_the_new_one(tmp_path, series, embedded, monkeypatch):
    data = shutil.copytree(series.parent, tmp_path / "data")
    read = toy.modalities.Alpha.read

    def replacing(self, clip, window, rng):
        sample = read(self, clip, window, rng)
        if clip.name.endswith("a0.npy"):
            np.save(data / "a0.npy", np.full((2, 8), len(embedded), np.float32))
        return sample

    monkeypatch.setattr(toy.modalities.Alpha, "read", replacing)
    with pytest.raises(MBTError, match="its files have changed since the start"):
        trained(tmp_path / "one", data / "manifest.csv")
    monkeypatch.setattr(toy.modalities.Alpha, "read", read)
    embedded.clear()
    trained(tmp_path / "one", data / "manifest.csv", resume=True)
    assert sum(embedded) - UNREADABLE == 1


def damage(files):
    """Changes a byte of each, of its tokens."""
    for file in files:
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes(data)


def test_what_is_damaged_while_it_is_read_ends_the_run(tmp_path, series):
    whole = trained(tmp_path / "whole", series)

    class Vandal(Listener):
        def step(self, step, metrics):
            damage(kept_files())

    with pytest.raises(MBTError, match=r"\.safetensors: damaged.* The tokens of row 'r\d+' are gone or.*--resume"):
        mbt.train(experiment(series), tmp_path / "run", listeners=[Vandal()])
    assert trained(tmp_path / "run", series, resume=True).losses == whole.losses


@pytest.mark.slow
def test_killed_while_writing(tmp_path, series, embedded):
    """What was whole is used, what was half written is not."""
    whole = trained(tmp_path / "whole", series)
    shutil.rmtree(os.environ["MBT_CACHE"])
    if (child := os.fork()) == 0:
        written, write = [], lower.write_safetensors

        def half(path, tensors):
            written.append(path)
            if len(written) == 20:
                write_atomically(path, lambda temporary: temporary.write_bytes(b"half") and os.kill(os.getpid(), 9))
            return write(path, tensors)

        lower.write_safetensors = half
        try:
            trained(tmp_path / "killed", series)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(kept_files()) == 19
    embedded.clear()
    assert trained(tmp_path / "again", series).losses == whole.losses
    assert sum(embedded) == ROWS - 19


def test_an_interrupted_run_goes_on(tmp_path, series, embedded):
    whole = trained(tmp_path / "whole", series)
    log = Log()

    class Stop(Listener):
        def step(self, step, metrics):
            if step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        mbt.train(experiment(series), tmp_path / "run", listeners=[log, Stop()])
    embedded.clear()
    rest = trained(tmp_path / "run", series, resume=True)
    assert sum(embedded) == UNREADABLE
    assert log.losses + rest.losses == whole.losses
    one, other = (mbt.load(tmp_path / name).model.state_dict() for name in ("run", "whole"))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_run_goes_on_from_the_weights_it_saved(tmp_path, series, monkeypatch):
    """Not from those it would start from today."""
    whole = trained(tmp_path / "whole", series)
    build = run_module.build_with_report

    def changed(config):
        model, report = build(config)
        with torch.no_grad():
            model.stream("alpha").tokenizer.weight.add_(1.0)
        return model, report

    class Stop(Listener):
        def step(self, step, metrics):
            if step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        mbt.train(experiment(series), tmp_path / "run", listeners=[Stop()])
    monkeypatch.setattr(run_module, "build_with_report", changed)
    assert trained(tmp_path / "run", series, resume=True).losses == whole.losses[3:]


@pytest.mark.slow
def test_two_processes_keep_them_together(tmp_path, series, embedded):
    alone = trained(tmp_path / "alone", series)
    cache = tmp_path / "shared"
    ended = run_fleet(2, train_with_cache, cache, experiment(series), tmp_path / "two")
    assert [one.code for one in ended] == [0, 0], ended
    assert len(list(cache.rglob("*.safetensors"))) == ROWS - UNREADABLE
    lines = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["event"] == "step"]
    assert losses == pytest.approx(alone.losses, rel=1e-3)
    assert (tmp_path / "two" / "bad_clips.csv").read_text() == alone.bad_clips


@pytest.mark.slow
def test_cells_of_a_study_share_them(tmp_path, embedded):
    """Seeds and shares of the data that start from the same frozen weights; full fine-tuning keeps nothing."""
    flags = make_flags(tmp_path)
    start = mbt.train(flags.experiment(), tmp_path / "start").path
    study = plan(flags, ["none", str(start)], ["head", "fused", "all"], [0.5, 1], cache_lower=True)
    cells = make_cells(study.flags, study.axes, 2)
    assert {(c.experiment.train.tune, c.experiment.train.cache_lower) for c in cells} == {
        ("head", True),
        ("fused", True),
        ("all", False),
    }
    fused = [c for c in cells if c.experiment.train.tune == "fused" and c.labels["init"] != "none"]
    assert len(fused) == 4
    embedded.clear()
    results = Sweep(tmp_path / "out", fused).run("cpu")
    assert [r.status for r in results] == ["finished"] * 4
    assert sum(count for count in embedded if count > 1) == 32  # one at a time: what a step costs is counted
