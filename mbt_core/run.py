"""A run: train an experiment, load what it left, evaluate it, predict with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from mbt_core.config import DEFAULT_TASK, DataConfig, Experiment, HeadConfig
from mbt_core.data.cache import Cache
from mbt_core.data.check import fit_modalities
from mbt_core.data.collate import Preprocess
from mbt_core.data.dataset import ClipDataset
from mbt_core.data.loader import make_loader
from mbt_core.data.manifest import Manifest
from mbt_core.data.missing import Losses
from mbt_core.data.sampler import EvalSampler, TrainSampler
from mbt_core.errors import ConfigError, DataError, unknown
from mbt_core.evaluate.evaluator import Evaluation, Subset, evaluate
from mbt_core.evaluate.predict import FilePrediction, predict_files
from mbt_core.modality import Modality
from mbt_core.model import MBT
from mbt_core.plugins import load_object, registry, require
from mbt_core.pretrained import InitReport, build_with_report
from mbt_core.schema import validate
from mbt_core.training.events import Listener, Listeners
from mbt_core.training.folder import RunFolder
from mbt_core.training.loop import Plan, Trainer, make_plan
from mbt_core.training.memory import DEFAULT_BATCH, explain_memory, largest_batch
from mbt_core.training.optimizer import freeze, make_optimizer


@dataclass(frozen=True)
class Hardware:
    """Where a run computes.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices: per node.
        nodes: machines.
        parallel: ``ddp`` or ``fsdp``.
    """

    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    parallel: str = "ddp"

    def fabric(self, precision: str) -> Fabric:
        """The processes and precision. Raises `ConfigError` for a device that is not there."""
        accelerator = self.device
        if accelerator == "auto":
            accelerator = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not there.get(accelerator, False):
            found = ", ".join(name for name, yes in there.items() if yes)
            raise ConfigError(f"--device {accelerator}: not available here; available: {found}")
        strategy = "auto" if self.devices * self.nodes == 1 else self.parallel
        return Fabric(
            accelerator=accelerator,
            devices=self.devices,
            num_nodes=self.nodes,
            strategy=strategy,
            precision="bf16-mixed" if precision == "bf16" else "32-true",
        )


class Run:
    """A trained model and everything needed to use it.

    Attributes:
        path: the run folder.
        experiment: the resolved experiment.
        results: metrics of the end of training.
    """

    def __init__(self, path: Path, experiment: Experiment, results: dict[str, float] | None = None) -> None:
        self.path, self.experiment, self.results = path, experiment, results or {}

    @cached_property
    def model(self) -> MBT:
        """The best weights, in evaluation mode, on the CPU."""
        if not (self.path / "model.safetensors").exists():
            raise DataError(f"{self.path} has no model.safetensors yet: its training has not reached an evaluation")
        return MBT.from_pretrained(self.path).eval()

    @property
    def classes(self) -> dict[str, list[str]]:
        """Task -> names of its classes."""
        return self.model.classes

    def evaluate(
        self,
        data: str | Path | None = None,
        split: str | None = None,
        views: int | None = None,
        subsets: Sequence[Subset] = (),
        device: str = "auto",
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[str, dict[Subset, Evaluation]]:
        """Evaluates on a split.

        Args:
            data: another manifest; the run's own by default.
            split: ``test``, else ``val``, by default.
            views: windows per clip; the experiment's by default.
            subsets: of modalities; all together by default.
            device: ``auto``, ``cpu``, ``cuda``, ``mps``.
            progress: called with (examples done, examples in all).

        Returns:
            The split, and subset -> evaluation.
        """
        config = self.experiment.data
        if data is not None:
            config = config.model_copy(update={"path": str(data), "root": None})
        manifest = open_manifest(config, self.model.modalities, self.model.config.head, self.classes)
        split = choose_split(manifest, split)
        fabric = Hardware(device).fabric(self.experiment.train.precision)
        found = _evaluate(
            self.experiment, self.model.to(fabric.device), manifest, split, fabric, views, subsets, progress
        )
        return split, found

    def predict(
        self, files: str | Path | Sequence[str | Path], top: int = 5, every: float | None = None, device: str = "auto"
    ) -> list[FilePrediction]:
        """Classifies media files with whatever modalities each has; a bad file yields its error."""
        one = isinstance(files, (str, Path))
        paths = [Path(files)] if one else [Path(f) for f in files]  # type: ignore[arg-type, union-attr]
        fabric = Hardware(device).fabric(self.experiment.train.precision)
        return list(predict_files(self.model, paths, self.experiment, top=top, every=every, fabric=fabric))


def load(path: str | Path) -> Run:
    """Opens a run folder. Raises `DataError` if it is none."""
    folder = RunFolder(path)
    return Run(folder.path, folder.experiment())


def train(
    experiment: Experiment | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    resume: bool = False,
    hardware: Hardware = Hardware(),
    listeners: Sequence[Listener] = (),
    command: str = "mbt_core.train",
    show_init: Callable[[InitReport], None] | None = None,
    choose_cache: Callable[..., Cache | None] = Cache.choose,
) -> Run:
    """Trains, keeps the best weights, evaluates them on the test split.

    Args:
        experiment: the configuration; its ``auto`` fields are filled from the data.
        out: the run folder; new or empty, unless `resume`; by default ``runs/train`` (or ``train-2`` ...).
        resume: go on with the run in `out`, whose own configuration is used.
        hardware: devices and processes.
        listeners: to the run's events, besides the configured loggers.
        command: noted in the run folder.
        show_init: called with what each part of the model starts from.
        choose_cache: in place of `Cache.choose`, for several runs that share their decoded clips.

    Raises:
        ConfigError: before any work, for a wrong configuration or a folder in use.
        DataError: for data that cannot be used.
        Interrupted: after Ctrl-C or SIGTERM; the state is saved.
    """
    folder = RunFolder(out) if out is not None else RunFolder.named(Path("runs"), "train")
    fresh = not (resume and folder.config_file.exists())
    experiment = validate(Experiment, experiment) if fresh else folder.experiment()
    modalities = make_modalities(experiment)
    manifest = open_manifest(experiment.data, modalities, experiment.model.head)
    losses = {split: manifest.check_missing(split, experiment.data.max_missing) for split in manifest.splits}
    if fresh:
        experiment = resolve(experiment, manifest)
        if experiment.train.batch_size == "auto":
            experiment.train.batch_size = _fitting_batch(experiment, hardware)
        folder.start(experiment, command)
    loggers = [registry().loggers[name].spec for name in experiment.train.loggers]
    with explain_memory(experiment.train):
        every = [*listeners, *make_loggers(loggers)]
        return _train(experiment, manifest, losses["train"], folder, hardware, every, show_init, choose_cache)


def make_modalities(experiment: Experiment) -> dict[str, Modality]:
    """Name -> modality instance."""
    return {n: registry().modality_class(c.kind)(n, c) for n, c in experiment.modalities.items()}


def make_loggers(specs: Sequence[Any]) -> list[Listener]:
    """Instances of the chosen loggers. Raises `ConfigError` naming what to install."""
    for spec in specs:
        require(spec, f"logger {spec.name!r}")
    return [load_object(spec.listener)() for spec in specs]


def resolve(experiment: Experiment, manifest: Manifest) -> Experiment:
    """The experiment with classes and ``auto`` fields of the modalities filled from the data."""
    check_tasks(experiment, manifest)
    tree = experiment.model_dump()
    tree["modalities"] = fit_modalities(manifest, experiment.modalities)
    head = tree["model"]["head"]
    if not experiment.model.head.outputs:
        one = list(manifest.outputs) == [DEFAULT_TASK]
        head |= {"classes": manifest.outputs[DEFAULT_TASK]} if one else {"tasks": manifest.outputs}
        head["task"] = manifest.kinds[DEFAULT_TASK] if one else manifest.kinds
    tree["data"]["path"] = str(manifest.path.resolve())
    return validate(Experiment, tree)


def check_tasks(experiment: Experiment, manifest: Manifest) -> None:
    """Raises `ConfigError` if the head's tasks and classes are not those of the manifest."""
    if not manifest.tasks:
        raise DataError(
            f"{manifest.path} has no labels; expected a column label, or label.TASK for each of several tasks"
        )
    for task, count in experiment.model.head.outputs.items():
        if task not in manifest.outputs:
            raise ConfigError(f"model.head: {manifest.path}: {unknown('task', task, manifest.tasks)}")
        if count != manifest.outputs[task]:
            raise ConfigError(
                f"model.head: {count} classes of task {task!r}, but {manifest.path} has {manifest.outputs[task]}"
            )


def _fitting_batch(experiment: Experiment, hardware: Hardware) -> int:
    fabric = hardware.fabric(experiment.train.precision)
    model = MBT(experiment.mbt_config())
    with fabric.autocast():
        one = largest_batch(model, Preprocess(model.modalities), fabric.device)
    return one * hardware.devices * hardware.nodes


def _train(
    experiment: Experiment,
    manifest: Manifest,
    losses: Losses,
    folder: RunFolder,
    hardware: Hardware,
    listeners: list[Listener],
    show_init: Callable[[InitReport], None] | None,
    choose_cache: Callable[..., Cache | None],
) -> Run:
    config = experiment.train
    fabric = hardware.fabric(config.precision)
    fabric.launch()
    listener = Listeners(listeners if fabric.is_global_zero else [])
    torch.manual_seed(config.seed)
    model, report = build_with_report(experiment.mbt_config())
    if show_init is not None and fabric.is_global_zero:
        show_init(report)
    model.classes = dict(manifest.classes)
    freeze(model, config)
    optimizer = make_optimizer(model, config, fabric.device)
    rows = manifest.splits["train"]
    monitor = monitored(experiment) if len(manifest.splits.get("val", ())) else None
    assert isinstance(config.batch_size, int)
    plan = make_plan(config, len(rows), config.batch_size, monitor)
    cache = choose_cache(
        experiment.data, manifest, model.modalities, ("train", "val"), listener.message, listener.decoded
    )
    trainer = Trainer(
        fabric,
        experiment,
        folder,
        model,
        Preprocess(model.modalities),
        optimizer,
        plan,
        listener,
        _validator(experiment, model, manifest, fabric, cache) if monitor else None,
        lambda row: manifest.row(row).id,
        losses,
    )
    if (folder.state / "state.safetensors").exists():
        trainer.resume()
    if trainer.progress.finished:
        listener.message(f"{folder.path} is finished already, after {trainer.progress.step} steps")
        return Run(folder.path, experiment, trainer.progress.results)
    listener.run_start(folder.path, experiment.model_dump(mode="json"), trainer.progress.step, plan.steps)
    progress = trainer.fit(_train_loader(experiment, model, manifest, trainer, plan, cache))
    trainer.load_best()
    if len(manifest.splits.get("test", ())):
        found = _evaluate(experiment, model, manifest, "test", fabric, None, (), None)
        progress.results = next(iter(found.values())).metrics()
    progress.finished = True
    trainer.save()
    listener.run_end(progress.step, progress.results)
    return Run(folder.path, experiment, progress.results)


def _train_loader(
    experiment: Experiment, model: MBT, manifest: Manifest, trainer: Trainer, plan: Plan, cache: Cache | None
) -> Any:
    config, fabric = experiment.train, trainer.fabric
    dataset = _dataset(experiment, model, manifest, training=True, cache=cache)
    sampler = TrainSampler(
        manifest.splits["train"],
        plan.batch_size,
        plan.steps,
        config.seed,
        start_step=trainer.progress.step,
        rank=fabric.global_rank,
        world=fabric.world_size,
        weights=manifest.balanced_weights("train") if experiment.data.sampler == "balanced" else None,
    )
    return make_loader(dataset, sampler, experiment.data.workers, fabric.device)


def _dataset(
    experiment: Experiment,
    model: MBT,
    manifest: Manifest,
    *,
    training: bool,
    views: int = 1,
    cache: Cache | None = None,
) -> ClipDataset:
    head = experiment.model.head
    return ClipDataset(
        manifest,
        model.modalities,
        {task: head.kind_of(task) for task in head.outputs},
        config=experiment.data,
        seed=experiment.train.seed,
        training=training,
        views=views,
        dropout=experiment.train.modality_dropout if training else 0.0,
        cache=cache,
    )


def _evaluate(
    experiment: Experiment,
    model: MBT,
    manifest: Manifest,
    split: str,
    fabric: Fabric,
    views: int | None,
    subsets: Sequence[Subset],
    progress: Callable[[int, int], None] | None,
    cache: Cache | None = None,
    check: Callable[[], None] | None = None,
) -> dict[Subset, Evaluation]:
    config = experiment.evaluate
    views = views or config.views
    manifest.require_labels(split)
    rows = manifest.rows(split)
    dataset = _dataset(experiment, model, manifest, training=False, views=views, cache=cache)
    trained = experiment.train.batch_size
    batch_size = config.batch_size or (trained if isinstance(trained, int) else DEFAULT_BATCH)
    sampler = EvalSampler(rows, max(1, batch_size // views), rank=fabric.global_rank, world=fabric.world_size)
    loader = make_loader(dataset, sampler, experiment.data.workers, fabric.device)

    def report(done: int) -> None:
        if check:
            check()
        if progress:
            progress(done, len(rows))

    model.eval()
    return evaluate(
        model,
        Preprocess(model.modalities).to(fabric.device),
        (batch.to(fabric.device) for batch in loader),
        config,
        subsets=subsets,
        autocast=fabric.autocast,
        progress=report,
    )


def _validator(
    experiment: Experiment, model: MBT, manifest: Manifest, fabric: Fabric, cache: Cache | None
) -> Callable[[Callable[..., None]], dict[str, float]]:
    def run(check: Callable[..., None]) -> dict[str, float]:
        found = _evaluate(experiment, model, manifest, "val", fabric, 1, (), None, cache, check)
        return with_mean(next(iter(found.values())).metrics(), experiment)

    return run


def with_mean(metrics: dict[str, float], experiment: Experiment) -> dict[str, float]:
    """Adds the mean over tasks of each one's main metric, where there are several tasks, as ``mean``."""
    head = experiment.model.head
    if head.tasks is None:
        return metrics
    return metrics | {"mean": sum(metrics[f"{t}/{MAIN[head.kind_of(t)]}"] for t in head.tasks) / len(head.tasks)}


MAIN = {"single": "top1", "multilabel": "mAP", "regression": "r2"}


def monitored(experiment: Experiment) -> str:
    """The metric that chooses the best weights."""
    head = experiment.model.head
    if experiment.train.monitor != "auto":
        return experiment.train.monitor
    return "mean" if head.tasks is not None else MAIN[head.kind_of(DEFAULT_TASK)]
