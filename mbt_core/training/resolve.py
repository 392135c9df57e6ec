"""From an experiment and its data to what both come to: instances, ``auto`` fields, classes, the monitored metric."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mbt_core.config import DEFAULT_TASK, DataConfig, Experiment
from mbt_core.config.schema import validate
from mbt_core.config.training import LAST
from mbt_core.data.check import channel_notes, fit_modalities
from mbt_core.data.instances import sharing
from mbt_core.data.labels import are_measures, as_regression
from mbt_core.data.manifest import Manifest
from mbt_core.data.splits import MIN_HELD_OUT, TEST, TRAIN, VAL
from mbt_core.errors import ConfigError, DataError, unknown
from mbt_core.evaluate.evaluator import metric_names
from mbt_core.io.remote import address
from mbt_core.modality import Modality
from mbt_core.plugins import OWN, load_object, registry, require
from mbt_core.training.events import Listener

MAIN = {"single": "top1", "multilabel": "mAP", "regression": "r2"}
"""Kind of task -> its main metric."""


def make_modalities(experiment: Experiment) -> dict[str, Modality]:
    """Name -> modality instance."""
    return {n: registry().modality_class(c.kind)(n, c) for n, c in experiment.modalities.items()}


def kinds_of(experiment: Experiment) -> dict[str, str]:
    """Modality -> its kind."""
    return {name: config.kind for name, config in experiment.modalities.items()}


def make_loggers(names: Sequence[str]) -> list[Listener]:
    """Instances of the chosen loggers. Raises `ConfigError` naming what to install."""
    found = [registry().loggers[name] for name in names]
    for logger in found:
        require(logger.spec, f"logger {logger.spec.name!r}", logger.location if logger.version else OWN)
    return [load_object(logger.spec.listener)() for logger in found]


def resolve(experiment: Experiment, manifest: Manifest) -> Experiment:
    """The experiment with classes and ``auto`` fields of the modalities filled from the data."""
    check_tasks(experiment, manifest)
    tree = experiment.model_dump()
    tree["modalities"] = fit_modalities(
        manifest, experiment.modalities, experiment.data.timeout, experiment.data.workers
    )
    head = tree["model"]["head"]
    if not experiment.model.head.outputs:
        one = list(manifest.outputs) == [DEFAULT_TASK]
        head |= {"classes": manifest.outputs[DEFAULT_TASK]} if one else {"tasks": manifest.outputs}
        head["task"] = manifest.kinds[DEFAULT_TASK] if one else manifest.kinds
    if experiment.model.head.scales is None:
        rows, labels = manifest.usable(TRAIN), manifest.labels
        numbers = [task for task, kind in manifest.kinds.items() if kind == "regression"]
        head["scales"] = {task: labels[task].scale(rows) for task in numbers} or None
    if experiment.data.path is not None:  # else the data set tells it wherever it is used
        tree["data"]["path"] = address(manifest.path)
    return validate(Experiment, tree)


def check_tasks(experiment: Experiment, manifest: Manifest) -> None:
    """Raises `ConfigError` if the head's tasks and classes are not those of the manifest."""
    if not manifest.tasks:
        raise DataError(
            f"{manifest.path} has no labels; expected a column label, or label.TASK for each of several tasks"
        )
    head = experiment.model.head
    for task in [*head.outputs, *(head.task if isinstance(head.task, dict) else ()), *head.task_weights]:
        if task not in manifest.outputs:
            raise ConfigError(f"model.head: {manifest.path}: {unknown('task', task, manifest.tasks)}")
    for task, count in head.outputs.items():
        if count != manifest.outputs[task]:
            raise ConfigError(
                f"model.head: {count} classes of task {task!r}, but {manifest.path} has {manifest.outputs[task]}"
            )


def held_out(config: DataConfig, manifest: Manifest) -> list[str]:
    """Of data without splits, in a line what was held out; nothing of others."""
    if not manifest.unsplit or config.folds is not None or not config.test_fraction:
        return []
    sizes = {name: len(rows) for name, rows in manifest.splits.items()}
    parts = [f"{sizes[name]:,} as {name}" for name in (VAL, TEST) if name in sizes]
    numbers = set(manifest.kinds.values()) == {"regression"}  # they have no classes, but ranges
    evenly = "evenly over the range of their numbers" if numbers else "class by class"
    how = f"by {config.group}" if config.group else f"{evenly}, by their ids"
    if parts:
        outcome = f"held out of {len(manifest):,}, {how}: {' and '.join(parts)}"
    else:
        reason = "they are too few" if numbers else "each class keeps a row in train"
        outcome = f"all are trained on, as {reason}, so nothing tells how good the model is"
    return [f"no row says of which split it is; {outcome}. A column split gives splits of your own"]


def doubts(experiment: Experiment, manifest: Manifest) -> list[str]:
    """What may not be meant, a line each: rows that are not used, nothing held out, one class, numbers as classes,
    numbers that differ by less than floats tell; and which columns of tables are read."""
    others = [repr(split) for split in manifest.splits if split not in (TRAIN, VAL, TEST)]
    unused = f"rows of other splits ({', '.join(others)}) are not used; those of {TRAIN}, {VAL} and {TEST} are"
    parted = held_out(experiment.data, manifest)
    found = [*([unused] if others else []), *parted]
    share = experiment.data.val_fraction
    if VAL not in manifest.splits and share and not parted:
        found.append(
            f"no val split: {share:g} of the {len(manifest.rows(TRAIN))} training rows would be fewer than "
            f"{MIN_HELD_OUT}; all are trained on, and the last weights are kept"
        )
    for column, groups in sharing(manifest, kinds_of(experiment)).items():
        for group in groups:
            if len({experiment.modalities[name].model_dump_json() for name in group}) < len(group):
                found.append(
                    f"{', '.join(group)} read the same files (column {column!r}) in the same way; give each a column "
                    "of its own name"
                )
    for task, names in manifest.classes.items():
        if manifest.kinds[task] == "single" and len(names) == 1:
            found.append(f"task {task!r} has one class, {names[0]!r}: there is nothing to tell apart")
        if manifest.kinds[task] == "regression" and manifest.labels[task].constant(manifest.rows(TRAIN)):
            found.append(f"task {task!r}: all labels of the train split are the same: there is nothing to tell apart")
        if manifest.kinds[task] == "single" and are_measures(names):
            found.append(
                f"task {task!r}: {len(names)} classes that are numbers, e.g. {names[0]!r}; to predict numbers, set "
                + as_regression(task)
            )
    for task, scale in (experiment.model.head.scales or {}).items():
        largest = np.abs(scale.mean) + np.array(scale.std)
        coarse = np.array(scale.std) < 100 * np.spacing(largest.astype(np.float32))
        if coarse.any():
            number = int(coarse.argmax())
            found.append(
                f"task {task!r}: its numbers vary by {scale.std[number]:.3g} around {scale.mean[number]:.6g}, and "
                "floats of 32 bits tell no finer there; subtract a constant from them"
            )
    return found + channel_notes(
        manifest, make_modalities(experiment), experiment.data.timeout, experiment.data.workers
    )


def with_mean(metrics: dict[str, float], experiment: Experiment) -> dict[str, float]:
    """Adds the mean over tasks of each one's main metric, where there are several tasks, as ``mean``."""
    head = experiment.model.head
    if head.tasks is None:
        return metrics
    each = [metrics.get(f"{task}/{MAIN[head.kind_of(task)]}", math.nan) for task in head.tasks]
    return metrics | {"mean": sum(each) / len(each)}


def monitored(experiment: Experiment) -> str:
    """The metric that chooses the best weights, or would. Raises `ConfigError` for one that there is not."""
    head, chosen = experiment.model.head, experiment.train.monitor
    if chosen in ("auto", LAST):
        return "mean" if head.tasks is not None else MAIN[head.kind_of(DEFAULT_TASK)]
    sources = experiment.modalities if experiment.model.pool != "mean-joint" else ()
    known = [*metric_names(head, sources), *(["mean"] if head.tasks is not None else [])]
    if chosen not in known:
        raise ConfigError(f"train.monitor: {unknown('metric', chosen, known)}")
    return chosen
