"""Does pre-training help? The same model from fresh and from given weights, and what the difference is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from mbt_core.config import BackboneConfig
from mbt_core.config.schema import PatchedConfig
from mbt_core.errors import ConfigError
from mbt_core.model.backbone import resolve_backbone
from mbt_core.pretrained.follow import backbone_of, differences
from mbt_core.pretrained.sources import open_source
from mbt_core.sweep.grid import Axis, Flags, Point, as_yaml
from mbt_core.sweep.interval import half_width, t_quantile
from mbt_core.sweep.left_out import standard_error
from mbt_core.sweep.results import Result

NONE = "none"
TUNES = ("head", "fused", "all")
INIT, TUNE, FRACTION = "init", "tune", "fraction"
NAMES = {name: name for name in (INIT, TUNE, FRACTION)}
EVALUATIONS = 5
"""Of a training whose number of steps is given."""


@dataclass(frozen=True)
class Study:
    """A transfer study as a sweep.

    Args:
        flags: with the backbone of the weights.
        axes: start, tuning, share of the training rows.
        notes: what was chosen, for people.
    """

    flags: Flags
    axes: tuple[Axis, ...]
    notes: tuple[str, ...]


def plan(
    flags: Flags, inits: Sequence[str], tunes: Sequence[str], fractions: Sequence[float], cache_lower: bool = False
) -> Study:
    """Lays the axes on the flags; every start gets the geometry of the given weights.

    The backbone and the embedding of patches are those of the weights, without LayerScale (folded into the weights
    exactly; a fresh start would begin with next to no blocks), the fusion layer keeps its share of the depth. With
    AdamW the learning rate of trained blocks is the recipe's times (its width / the weights'). What the flags set by
    themselves goes before all of this.

    Args:
        flags: of ``mbt train``.
        inits: ``none``, or sources as ``model.pretrained`` takes them.
        tunes: of ``head``, ``fused``, ``all``.
        fractions: of the training rows, above 0 and at most 1.
        cache_lower: compute what is frozen once, for all cells that have the same of it; as ``train.cache_lower`` of
            the flags.

    Raises:
        ConfigError: for starts of different geometry, or an unknown value.
    """
    _check(inits, tunes, fractions)
    experiment = flags.experiment()
    own = resolve_backbone(experiment.model.backbone)
    given = {init: absolute(init) for init in inits if init != NONE}
    wanted = common_geometry({init: geometry(source, own) for init, source in given.items()}) if given else own
    layer = round(experiment.model.fusion.first * wanted.depth / own.depth)
    ours = [f"model.backbone={as_yaml(wanted.model_dump(exclude_defaults=True))}", f"model.fusion.layer={layer}"]
    patched = [name for name, config in experiment.modalities.items() if isinstance(config, PatchedConfig)]
    ours += [f"modalities.{name}.stem=patch" for name in patched]
    flags = replace(flags, sets=(*(ours if given else ()), *flags.sets))
    experiment = flags.experiment()
    if experiment.train.eval_every == "auto" and isinstance(experiment.train.steps, int):
        # on a small share an epoch is a few steps, and each evaluation writes a large model's state
        flags = replace(flags, sets=(*flags.sets, f"train.eval_every={-(-experiment.train.steps // EVALUATIONS)}"))
    model, train = experiment.model, experiment.train
    width = resolve_backbone(model.backbone).dim
    lr = train.lr
    if train.optimizer == "adamw" and not any(text.startswith("train.lr=") for text in flags.sets):
        lr = float(f"{lr * own.dim / width:.3g}")
    rates = {tune: {} if tune == "head" or lr == train.lr else {"train.lr": lr} for tune in tunes}
    # where everything is trained nothing can be kept
    keeps = cache_lower or train.cache_lower
    kept = {tune: {"train.cache_lower": tune != "all"} if keeps else {} for tune in tunes}
    axes = (
        Axis(INIT, tuple(Point(_label(i), {"model.pretrained": given.get(i)}) for i in inits)),
        Axis(TUNE, tuple(Point(tune, {"train.tune": tune, **rates[tune], **kept[tune]}) for tune in tunes)),
        Axis(FRACTION, tuple(Point(f"{f:g}", {"data.fraction": f}) for f in fractions)),
    )
    depth = resolve_backbone(model.backbone).depth
    notes = [f"all starts: dim {width}, depth {depth}, fusion from layer {model.fusion.layer}"]
    if any(rates.values()):
        notes.append(f"learning rate {lr:g} where blocks are trained, {train.lr:g} for the classifier alone")
    return Study(flags, axes, tuple(notes))


def _check(inits: Sequence[str], tunes: Sequence[str], fractions: Sequence[float]) -> None:
    if len(inits) < 2:
        raise ConfigError(f"--init {','.join(inits)}: expected at least two starts, e.g. --init none,FILE")
    for option, values in (("--tune", tunes), ("--fractions", fractions)):
        if not values:
            raise ConfigError(f"{option}: no value is given")
    if wrong := [tune for tune in tunes if tune not in TUNES]:
        raise ConfigError(f"--tune {wrong[0]}: expected some of {', '.join(TUNES)}")
    if wrong_shares := [f for f in fractions if not 0 < f <= 1]:
        raise ConfigError(f"--fractions {wrong_shares[0]:g}: expected 0 < share <= 1")


def absolute(source: str) -> str:
    """A path as one that holds in any folder; ``NAME@FILE`` too."""
    name, at, file = source.rpartition("@")
    path = Path(file).expanduser()
    return f"{name}{at}{path.resolve()}" if path.exists() else source


def _label(init: str) -> str:
    name, _, file = init.rpartition("@")
    path = Path(file)
    return name or (path.stem if path.suffix and path.exists() else path.name)


def geometry(source: str, own: BackboneConfig) -> BackboneConfig:
    """The backbone that takes a source's blocks as they are, LayerScale folded in.

    Args:
        source: as `open_source` takes it.
        own: of the experiment, for what the source does not tell.

    Raises:
        ConfigError: as `backbone_of`.
    """
    vit = next(iter(open_source(source, own).streams.values()))
    return backbone_of(vit, layer_scale=False).model_copy(update={"act": vit.act or own.act, "eps": vit.eps or own.eps})


def common_geometry(found: dict[str, BackboneConfig]) -> BackboneConfig:
    """The geometry that all starts have. Raises `ConfigError` if they differ."""
    (first, wanted), *others = found.items()
    for name, other in others:
        if other != wanted:
            raise ConfigError(
                f"--init: {first} and {name} are of different models ({differences(wanted, other)}), and the same "
                "model is to be trained from each; compare them one at a time"
            )
    return wanted


@dataclass(frozen=True)
class Effect:
    """Score from a start minus that from the baseline, paired by seed.

    Args:
        init, baseline: the starts.
        condition: (tuning, share); None: mean over all conditions.
        differences: one per seed.
        left_out: their mean without each group of the test examples in turn; empty where there is no test split.
    """

    init: str
    baseline: str
    condition: tuple[str, str] | None
    differences: tuple[float, ...]
    left_out: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        return fmean(self.differences)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %, of another training and of another test split: both by Student's t, as of independent causes.

        None for one seed. What differs between seeds for some examples only counts in both, so it is rather too wide.
        """
        n = len(self.differences)
        if n < 2:
            return None
        half = half_width(self.differences)
        if self.left_out:
            half = math.hypot(half, t_quantile(len(self.left_out) - 1) * standard_error(self.left_out))
        return self.mean - half, self.mean + half

    @property
    def word(self) -> str:
        """``helps``, ``hurts``, ``no clear difference``, or ``one seed``."""
        if self.interval is None:
            return "one seed"
        low, high = self.interval
        return "helps" if low > 0 else "hurts" if high < 0 else "no clear difference"

    @property
    def text(self) -> str:
        interval = self.interval
        span = f" (95 % interval {_signed(interval[0])} to {_signed(interval[1])})" if interval else ""
        return f"{_signed(self.mean)}{span}"


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"  # no negative zero


def effects(results: Sequence[Result]) -> list[Effect]:
    """Of every start against the baseline (``none``, else the first): overall, then per condition.

    Overall takes the seeds for which every condition is finished from both starts.
    """
    scores: dict[str, dict[tuple[str, str], dict[int, Result]]] = {}
    conditions = list(dict.fromkeys(_condition(r) for r in results))
    for r in results:
        by_seed = scores.setdefault(r.cell.labels[INIT], {}).setdefault(_condition(r), {})
        if r.status == "finished" and r.score is not None:
            by_seed[r.cell.seed] = r
    baseline = NONE if NONE in scores else next(iter(scores))
    found = []
    for init in scores:
        if init == baseline:
            continue
        pairs = {
            c: {s: (r, scores[baseline][c][s]) for s, r in scores[init][c].items() if s in scores[baseline][c]}
            for c in conditions
        }
        whole = [s for s in next(iter(pairs.values())) if all(s in pair for pair in pairs.values())]
        overall = [[pair[s] for pair in pairs.values()] for s in whole]
        found += [_effect(init, baseline, None, overall)] if overall else []
        found += [_effect(init, baseline, c, [[p] for p in pair.values()]) for c, pair in pairs.items() if pair]
    return found


def _effect(
    init: str, baseline: str, condition: tuple[str, str] | None, seeds: Sequence[Sequence[tuple[Result, Result]]]
) -> Effect:
    """Of the pairs (from `init`, from `baseline`) of every seed."""
    differences = tuple(fmean((a.score or 0.0) - (b.score or 0.0) for a, b in pairs) for pairs in seeds)
    every = [(a.left_out, b.left_out) for pairs in seeds for a, b in pairs]
    lengths = {len(scores) for both in every for scores in both}
    groups = range(lengths.pop() if len(lengths) == 1 else 0)
    return Effect(init, baseline, condition, differences, tuple(fmean(a[g] - b[g] for a, b in every) for g in groups))


def _condition(result: Result) -> tuple[str, str]:
    return result.cell.labels[TUNE], result.cell.labels[FRACTION]


def verdict(found: Sequence[Effect], metric: str) -> str:
    """The answer in words, with its uncertainty."""
    if not found:
        return "No verdict yet: no seed is finished from both starts."
    paragraphs = []
    for overall in (effect for effect in found if effect.condition is None):
        each = [e for e in found if e.init == overall.init and e.condition is not None]
        start = {
            "helps": f"Starting from {overall.init} helps",
            "hurts": f"Starting from {overall.init} hurts",
            "no clear difference": f"Whether starting from {overall.init} helps cannot be told",
            "one seed": f"Starting from {overall.init}, tried with one seed",
        }[overall.word]
        count = len(overall.differences)
        against = "a fresh start" if overall.baseline == NONE else overall.baseline
        text = f"{start}: {metric} {overall.text} against {against}, mean over {len(each)} conditions"
        text += f" and {count} seeds." if count > 1 else ". One seed gives no uncertainty: raise --seeds."
        for word in ("helps", "hurts", "no clear difference"):
            names = [f"tune {e.condition[0]} at share {e.condition[1]}" for e in each if e.word == word and e.condition]
            text += f" {word.capitalize()}: {', '.join(names)}." if names else ""
        paragraphs.append(text)
    if not paragraphs:
        paragraphs.append("No verdict over all conditions yet: no seed is finished in all of them.")
    if not any(effect.interval for effect in found):
        return "\n\n".join(paragraphs)
    tested = "; they tell nothing of how another test split would come out"
    if all(effect.left_out for effect in found):
        tested = " and over the examples of the test split"
    paragraphs.append(
        f"The intervals are paired, over seeds (initial weights, order, augmentation){tested}. A single condition may "
        "stand out by chance."
    )
    return "\n\n".join(paragraphs)
