"""A run: train an experiment, load what it left, evaluate it, predict with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mbt_core.config import Experiment
from mbt_core.config.recipes import check_length
from mbt_core.config.schema import validate
from mbt_core.config.training import LAST
from mbt_core.data.cache import Cache
from mbt_core.data.collate import Preprocess
from mbt_core.data.instances import require_one_file, require_own_files
from mbt_core.data.loader import make_loader
from mbt_core.data.manifest import Manifest
from mbt_core.data.missing import Losses, check_missing
from mbt_core.data.sampler import TrainSampler
from mbt_core.data.source import (
    ask_for_data,
    choose_split,
    media_paths,
    open_manifest,
    other_data,
    split_or_all,
)
from mbt_core.data.splits import TEST, TRAIN, VAL
from mbt_core.distributed.processes import ONE_DEVICE, Hardware, Team, together
from mbt_core.distributed.sharding import whole_model
from mbt_core.errors import DataError, MBTError, MBTWarning
from mbt_core.evaluate.baseline import largest_classes
from mbt_core.evaluate.embed import Embedded, check_out, embed
from mbt_core.evaluate.evaluator import Evaluation, Subset
from mbt_core.evaluate.memory import rows_at_once
from mbt_core.evaluate.predict import FilePrediction, predict_files, predict_rows
from mbt_core.evaluate.subsets import Rows
from mbt_core.evaluate.table import About, evaluation_folder, write_predictions
from mbt_core.io.files import write_atomically
from mbt_core.io.hub import upload
from mbt_core.model import MBT
from mbt_core.model.block import compile_blocks
from mbt_core.model.card import model_card
from mbt_core.pretrained import InitReport, build_with_report
from mbt_core.training.class_weights import NO_WEIGHTS, ClassWeights
from mbt_core.training.evaluation import evaluate_split, keep_lower, make_dataset
from mbt_core.training.events import Listener, Listeners
from mbt_core.training.folder import SHARED, RunFolder
from mbt_core.training.loop import Plan, Trainer, make_plan
from mbt_core.training.lower import Lower, Restore, find_cut
from mbt_core.training.memory import explain_memory
from mbt_core.training.optimizer import freeze
from mbt_core.training.prepare import prepare
from mbt_core.training.resolve import kinds_of, make_loggers, monitored, with_mean
from mbt_core.training.state import FILE, check_state, read_progress


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

    def save_pretrained(self, folder: str | Path, license: str | None = None, name: str | None = None) -> None:
        """Writes what a repository of the hub holds: model, classes, ``config.yaml`` and a model card ``README.md``.

        ``config.yaml`` holds the command and the paths of the data, the card the command: look before you publish.

        Args:
            folder: new, or to be written over.
            license: an identifier that the hub knows, e.g. ``apache-2.0``.
            name: of the model in the card; the folder's by default.
        """
        folder = Path(folder)
        self.model.save_pretrained(folder)
        source = RunFolder(self.path).config_file.read_text(encoding="utf-8")
        provenance = [line[2:] for line in takewhile(lambda line: line.startswith("# "), source.splitlines())]
        card = model_card(self.model, self.experiment, self.results, provenance, name or folder.name, license)
        write_atomically(folder / "config.yaml", lambda path: path.write_text(source, encoding="utf-8"))
        write_atomically(folder / "README.md", lambda path: path.write_text(card, encoding="utf-8"))

    def push_to_hub(self, repo: str, license: str | None = None, **options: Any) -> str:
        """Uploads what `save_pretrained` writes to ORG/NAME.

        Options, errors and the returned address of the commit are those of `mbt_core.io.hub.upload`.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, license, name=repo)
            return upload(Path(folder), repo, **options)

    def evaluate(
        self,
        data: str | Path | None = None,
        split: str | None = None,
        views: int | None = None,
        subsets: Sequence[Subset] = (),
        device: str = "auto",
        progress: Callable[[int, int], None] | None = None,
        written: Callable[[Path], None] | None = None,
        max_missing: float | None = None,
        rows: Rows = "common",
    ) -> tuple[str, dict[Subset, Evaluation]]:
        """Evaluates on a split, and writes ``predictions.parquet`` if all modalities are evaluated.

        It goes to the run folder, and for other data or another split to a folder of its own in it; see
        `mbt_core.evaluate.table.evaluation_folder`.

        Args:
            data: another manifest; the run's own by default.
            split: ``test``, else ``val``, by default.
            views: windows per clip; the experiment's by default.
            subsets: of modalities; all together by default.
            device: ``auto``, ``cpu``, ``cuda``, ``mps``.
            progress: called with (examples done, examples in all).
            written: called with the folder that has ``predictions.parquet`` now.
            max_missing: share of files that may be missing or unreadable; the run's ``data.max_missing`` by default.
            rows: of which the report compares subsets; see `mbt_core.evaluate.subsets.on_rows`.

        Returns:
            The split, and subset -> evaluation, of each one's own rows.
        """
        fabric = Hardware(device).fabric(self.experiment.train.precision)
        manifest = self._manifest(data)
        split = choose_split(manifest, split)
        if data is None:
            RunFolder(self.path).warn_of_changed_rows(manifest)
        limit = self.experiment.data.max_missing if max_missing is None else max_missing
        losses = check_missing(manifest, split, limit)
        model = self.model.to(fabric.device)
        found = evaluate_split(self.experiment, model, manifest, split, Team(fabric), views, subsets, progress, losses)
        if data is None:  # of other data's train split the model knows nothing
            largest = largest_classes(manifest)
            found = {subset: replace(evaluation, majority=largest) for subset, evaluation in found.items()}
        whole = found.get(tuple(model.modalities))
        if whole is not None:
            other = None if data is None else manifest.path
            about = About.of(other, views or self.experiment.evaluate.views, found, rows)
            try:
                folder = evaluation_folder(self.path, manifest, split, other)
                write_predictions(folder, whole, manifest, split, about)
                if written:
                    written(folder)
            except MBTError as error:  # a run of somebody else: its numbers are worth having all the same
                warnings.warn(str(error), MBTWarning, stacklevel=2)
        return split, found

    def _manifest(self, data: str | Path | None, labelled: bool = True) -> Manifest:
        """Other data, or the run's own; see `open_manifest`."""
        config = self.experiment.data if data is None else other_data(self.experiment.data, data)
        manifest = open_manifest(config, self.model.modalities, self.model.config.head, self.classes, labelled)
        require_own_files(manifest, kinds_of(self.experiment), RunFolder(self.path).noted(SHARED))
        return manifest

    def check_one_file(self) -> None:
        """Raises `ConfigError` if one file a clip is not enough: two instances of a kind had one each in training."""
        require_one_file(kinds_of(self.experiment), RunFolder(self.path).noted(SHARED))

    def predict(
        self,
        files: str | Path | Sequence[str | Path],
        top: int = 5,
        every: float | None = None,
        device: str = "auto",
        fps: float | None = None,
    ) -> list[FilePrediction]:
        """Classifies media files with whatever modalities each has; a bad file yields its error.

        Args:
            files: the path of a file or folder, or several.
            top, every, device, fps: see `mbt_core.evaluate.predict.predict_files`.

        Raises:
            ConfigError: for anything but paths.
        """
        return list(self.predict_stream(files, top, every, device, fps=fps))

    def predict_stream(
        self,
        files: str | Path | Iterable[str | Path],
        top: int = 5,
        every: float | None = None,
        device: str = "auto",
        answered: Container[tuple[str, float | None]] = (),
        fps: float | None = None,
    ) -> Iterator[FilePrediction]:
        """As `predict`, batch by batch as they come; leaves out each (file, start of a window or None) `answered`."""
        self.check_one_file()
        paths = media_paths(files)
        fabric = Hardware(device).fabric(self.experiment.train.precision)
        return predict_files(
            self.model, paths, self.experiment, top=top, every=every, fabric=fabric, answered=answered, fps=fps
        )

    def predict_rows(
        self,
        data: str | Path,
        split: str | None = None,
        top: int = 5,
        device: str = "auto",
        answered: Container[tuple[str, float | None]] = (),
        max_missing: float | None = None,
    ) -> Iterator[FilePrediction]:
        """As `predict_stream`, of the rows of a manifest, with or without labels; `file` is a row's id.

        Args:
            data: the manifest.
            split: whose rows; all by default.
            top: how many labels.
            device: ``auto``, ``cpu``, ``cuda``, ``mps``.
            answered: (id, None) of what is left out.
            max_missing: share of the named files that may be missing; the run's ``data.max_missing`` by default.
        """
        fabric = Hardware(device).fabric(self.experiment.train.precision)
        manifest, split = split_or_all(self._manifest(data, labelled=False), split)
        check_missing(manifest, split, self.experiment.data.max_missing if max_missing is None else max_missing)
        rows = manifest.rows(split)
        return predict_rows(self.model, manifest, rows, self.experiment, fabric=fabric, top=top, answered=answered)

    def embed(
        self,
        out: str | Path,
        data: str | Path | None = None,
        split: str | None = None,
        views: int | None = None,
        device: str = "auto",
        progress: Callable[[int, int], None] | None = None,
        max_missing: float | None = None,
    ) -> Embedded:
        """Writes pooled embeddings of a manifest's rows; see `mbt_core.evaluate.embed.embed`.

        Args:
            out: ``.parquet``, ``.npz`` or ``.npy``.
            data: another manifest, with or without labels; the run's own by default.
            split: whose rows; all by default.
            views: windows per clip; the experiment's by default.
            device: ``auto``, ``cpu``, ``cuda``, ``mps``.
            progress: called with (rows done, rows in all).
            max_missing: see `evaluate`.
        """
        out = Path(out)
        check_out(out, self.experiment.modalities)
        fabric = Hardware(device).fabric(self.experiment.train.precision)
        manifest = self._manifest(data, labelled=data is None)
        return embed(self.model, manifest, split, out, self.experiment, fabric, views, progress, max_missing)


def load(path: str | Path) -> Run:
    """Opens a run folder. Raises `ConfigError` if it is none."""
    folder = RunFolder(path)
    experiment, progress = folder.experiment(), read_progress(folder.state)
    return Run(folder.path, experiment, progress.results if progress else None)


def train(
    experiment: Experiment | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    resume: bool = False,
    hardware: Hardware = ONE_DEVICE,
    listeners: Sequence[Listener] = (),
    command: str = "mbt_core.train",
    show_init: Callable[[InitReport], None] | None = None,
    choose_cache: Callable[..., Cache | None] = Cache.choose,
    accept_changed_data: bool = False,
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
        accept_changed_data: go on with a run though its data are not those that it was trained on so far.

    Raises:
        ConfigError: before any work, for a wrong configuration or a folder in use (`InUseError`: at this moment).
        DataError: for data that cannot be used.
        Interrupted: after Ctrl-C, SIGTERM or SIGHUP; the state is saved.
    """
    folder = RunFolder(out) if out is not None else RunFolder.named(Path("runs"), "train")
    claim = ExitStack()
    try:
        refused = claim.enter_context(folder.claim())  # raised where the other processes hear of it
        fresh = not (resume and folder.config_file.exists())
        if fresh:
            folder.check_unused()
        experiment = asked = validate(Experiment, experiment) if fresh else folder.experiment()
        if fresh:
            check_length(experiment.train)
        progress = None if fresh else read_progress(folder.state)
        if progress is not None:
            progress.check_plan(experiment.train, folder.config_file)
            if progress.finished:
                Listeners([*listeners]).message(f"{folder.path} is finished already, after {progress.step} steps")
                return Run(folder.path, experiment, progress.results)
        loggers = make_loggers(experiment.train.loggers)
        with together(hardware, experiment.train.precision) as team:
            if refused is not None:
                raise refused
            folder, fresh = team.share(lambda: (folder, fresh))
            if fresh:
                ask_for_data(experiment.data)
            classes = progress.classes if progress is not None else None
            earlier = None if fresh or accept_changed_data else folder
            experiment, manifest, losses, notes, choices = prepare(experiment, classes or None, fresh, team, earlier)
            every = [*listeners, *loggers] if team.is_first else []
            if choices:
                Listeners(every).chosen(choices)

            def start() -> None:
                ask_for_data(experiment.data, lasting=True)
                if fresh:
                    folder.start(experiment, command, asked, manifest)
                    for text in notes:
                        Listeners(every).message(text)
                elif accept_changed_data and folder.changes(manifest):
                    folder.accept(manifest)

            with explain_memory(experiment.train):
                return _train(
                    experiment, manifest, losses, folder, team, Listeners(every), start, show_init, choose_cache
                )
    finally:
        claim.close()
        if out is None:
            folder.release()


def _train(
    experiment: Experiment,
    manifest: Manifest,
    losses: Mapping[str, Losses],
    folder: RunFolder,
    team: Team,
    listener: Listener,
    start: Callable[[], None],
    show_init: Callable[[InitReport], None] | None,
    choose_cache: Callable[..., Cache | None],
) -> Run:
    """`start` makes the run's folder, when nothing that was configured can be found wrong any more."""
    config = experiment.train
    torch.manual_seed(config.seed)
    check_state(folder.state, experiment.mbt_config())
    model, report = build_with_report(experiment.mbt_config())
    rows_at_once(model, 1, experiment.evaluate.views)  # what the end could not do is told now
    if show_init is not None and team.is_first:
        show_init(report)
    model.classes = dict(manifest.classes)
    freeze(model, config)
    layer = find_cut(model, config)
    if config.compile:
        compile_blocks(model)
    monitor = monitored(experiment)  # a wrong name is told even where there is no val to use it on
    assert isinstance(config.batch_size, int)
    chooses = VAL in manifest.splits and config.monitor != LAST
    plan = make_plan(config, len(manifest.usable(TRAIN)), config.batch_size, monitor if chooses else None)
    plan.val_rows = len(manifest.rows(VAL)) if chooses else 0
    lower: Lower | None = None
    cache: Cache | None = None
    if layer is None:
        every = (TRAIN, VAL), listener.message, listener.decoded
        cache = choose_cache(experiment.data, manifest, model.modalities, *every)

    def evaluated(split: str, views: int | None = None, check: Callable[[], None] | None = None) -> dict[str, float]:
        limit = losses[split] if split == VAL else None  # when it comes to the test split, training is over
        all_here = whole_model(model)
        kept = None if split == TEST and cache is not None and cache.in_memory else cache  # memory has no test clips
        found = evaluate_split(experiment, all_here, manifest, split, team, views, (), None, limit, kept, check, lower)
        evaluation = next(iter(found.values()))
        if split == TEST and team.is_first:
            write_predictions(folder.path, replace(evaluation, majority=largest_classes(manifest)), manifest, split)
        failed, metrics = team.share(lambda: (evaluation.failed, evaluation.metrics()))
        trainer.count(failed.items())
        if limit is not None:
            limit.add(failed.items())
        return metrics

    trainer = Trainer(
        team,
        experiment,
        folder,
        model,
        Preprocess(model.modalities) if layer is None else Restore(),
        plan,
        listener,
        (lambda check: with_mean(evaluated(VAL, 1, check), experiment)) if VAL in manifest.splits else None,
        lambda row: manifest.row(row).id,
        losses[TRAIN],
        layer,
        ClassWeights.balanced(manifest, team.fabric.device) if config.class_weights == "balanced" else NO_WEIGHTS,
    )
    if team.is_first:
        folder.clean()
    goes_on = (folder.state / FILE).exists()
    if goes_on:
        trainer.resume()
    if layer is not None:  # of the weights that are there now
        lower = keep_lower(experiment, model, manifest, layer, team, listener.message, listener.decoded)
    if team.is_first:
        start()
    listener.run_start(folder.path, experiment.model_dump(mode="json"), trainer.progress.step, plan.steps)
    progress = trainer.fit(_train_loader(experiment, model, manifest, trainer, plan, cache, lower))
    trainer.load_best()
    trainer.finish(evaluated(TEST) if TEST in manifest.splits else {})
    listener.run_end(progress.step, progress.results)
    return Run(folder.path, experiment, progress.results)


def _train_loader(
    experiment: Experiment,
    model: MBT,
    manifest: Manifest,
    trainer: Trainer,
    plan: Plan,
    cache: Cache | None,
    lower: Lower | None,
) -> Any:
    config, team = experiment.train, trainer.team
    dataset = make_dataset(experiment, model, manifest, training=True, cache=cache, lower=lower)
    sampler = TrainSampler(
        manifest.usable(TRAIN),
        plan.batch_size,
        plan.steps,
        config.seed,
        start_step=trainer.progress.step,
        rank=team.rank,
        world=team.world,
        weights=manifest.balanced_weights(TRAIN) if experiment.data.sampler == "balanced" else None,
    )
    return make_loader(dataset, sampler, experiment.data.workers, team.fabric.device)
