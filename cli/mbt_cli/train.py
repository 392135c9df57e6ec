"""``mbt train``."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mbt_cli.options import (
    AcceptChangedDataOption,
    CacheLowerOption,
    DataOption,
    DeviceOption,
    FoldsOption,
    ModalitiesOption,
    PretrainedOption,
    QuietOption,
    RecipeOption,
    ResumeOption,
    SetOption,
    TuneOption,
)
from mbt_cli.output import fail, metrics_table, note, show, table
from mbt_cli.report import leave_report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mbt_core.config import Experiment
    from mbt_core.pretrained import InitReport
    from mbt_core.run import Hardware, Run
    from mbt_core.training.folder import RunFolder


def train(
    modalities: ModalitiesOption = None,
    recipe: RecipeOption = None,
    data: DataOption = None,
    pretrained: PretrainedOption = None,
    sets: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder, new or empty. Default: runs/NAME.", show_default=False)
    ] = None,
    resume: ResumeOption = None,
    device: DeviceOption = "auto",
    devices: Annotated[int, typer.Option(help="Devices per machine (torchrun and srun say it).", min=1)] = 1,
    nodes: Annotated[int, typer.Option(help="Machines (torchrun and srun say it).", min=1)] = 1,
    parallel: Annotated[str, typer.Option(help="ddp or fsdp.")] = "ddp",
    precision: Annotated[str | None, typer.Option(help="32 or bf16.", show_default=False)] = None,
    show_init: Annotated[bool, typer.Option(help="Show what each part of the model starts from.")] = False,
    tune: TuneOption = None,
    cache_lower: CacheLowerOption = False,
    accept_changed_data: AcceptChangedDataOption = False,
    folds: FoldsOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train a model on your media files or a benchmark.

    Without --data, --recipe and --pretrained it trains on the demo, small real videos that are made on first use.
    """
    from mbt_core.config.recipes import assemble
    from mbt_core.distributed.launch import place
    from mbt_core.io.remote import ask_for
    from mbt_core.training.folder import RunFolder

    _check(parallel, accept_changed_data, resume)
    first = place().rank == 0  # the others of several processes stay silent
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection is told in a line, not in C++ frames
    settings: dict[str, object] = {"--modalities": modalities, "--recipe": recipe, "--data": data, "--set": sets}
    settings |= {"--pretrained": pretrained, "--tune": tune, "--precision": precision, "--cache-lower": cache_lower}
    flags = [("train.precision", precision), ("train.tune", tune), ("train.cache_lower", cache_lower or None)]

    def assembled() -> tuple[str, Experiment]:
        experiment, chosen = assemble(modalities, recipe, data, sets or (), flags, pretrained)
        if first and not quiet:
            _announce(chosen.name, experiment)
        return f"{Path(chosen.name).stem}-{'-'.join(experiment.modalities)}", experiment

    if folds is not None or (resume is not None and (resume / "folds.yaml").is_file()):
        from mbt_cli.folds import train_folds

        several = {"--devices": devices > 1, "--nodes": nodes > 1, "--parallel": parallel != "ddp"}
        own = {f"--set {text}": text.partition("=")[0].strip() in ("data.folds", "data.fold") for text in sets or ()}
        _refuse_with_folds(several | own | {"--show-init": show_init, "--accept-changed-data": accept_changed_data})
        _folder(out, resume, settings)
        train_folds(folds, out, resume, assembled, device, quiet)
        return
    folder, goes_on = _folder(out, resume, settings)
    if folder is not None and goes_on:
        experiment = folder.experiment()
        if data is not None:  # with --out: what is configured counts, but the user has named this
            ask_for(data)
    else:
        if folder is not None:
            folder.check_unused()
        name, experiment = assembled()
        folder = folder or RunFolder.named(Path("runs"), name)
    from mbt_core.run import Hardware

    hardware = Hardware(device, devices, nodes, parallel)
    try:
        _run(experiment, folder, goes_on, hardware, first and not quiet, show_init, accept_changed_data)
    finally:
        if out is None and resume is None:
            folder.release()


def _run(
    experiment: Experiment,
    folder: RunFolder,
    resume: bool,
    hardware: Hardware,
    talks: bool,
    show_init: bool,
    accept_changed_data: bool,
) -> None:
    """Trains, and shows the results; `talks`: with progress."""
    from mbt_cli.progress import Progress
    from mbt_core.distributed.launch import place
    from mbt_core.run import train as run_training
    from mbt_core.training.folder import command_line
    from mbt_core.training.loop import Interrupted
    from mbt_core.training.state import read_progress

    progress, before, first = Progress(), read_progress(folder.state), place().rank == 0
    try:
        run = run_training(
            experiment,
            folder.path,
            resume=resume,
            hardware=hardware,
            listeners=[progress] if talks else [],
            command=command_line(),
            show_init=_show_init if show_init else None,
            accept_changed_data=accept_changed_data,
        )
    except Interrupted as stop:
        if not first:
            raise typer.Exit(stop.exit_code) from None
        fail(f"interrupted; go on with: mbt train --resume {folder.path}", stop.exit_code)
    finally:
        progress.close()
    if first:
        finished = resume and before is not None and before.finished
        _leave(run, not talks, report=not finished)


def _check(parallel: str, accept_changed_data: bool, resume: Path | None) -> None:
    from mbt_core.errors import ConfigError

    if parallel not in ("ddp", "fsdp"):
        raise ConfigError(f"--parallel {parallel}: expected ddp or fsdp")
    if accept_changed_data and resume is None:
        raise ConfigError("--accept-changed-data is for a run that goes on; give --resume RUN")


def _announce(recipe: str, experiment: Experiment) -> None:
    note(f"recipe {recipe}: {summary(experiment)}")
    if experiment.data.path is None and experiment.data.dataset is not None:
        note(f"data set {experiment.data.dataset}: made on first use, then kept in the cache")


def _leave(run: Run, quiet: bool, report: bool) -> None:
    """Shows the results; with the page, unless an earlier command has written it."""
    from mbt_core.errors import DataError
    from mbt_core.evaluate.baseline import remarks
    from mbt_core.evaluate.table import read_predictions

    if run.results:
        examples, lines = None, []
        with suppress(DataError):  # of a run that ended long ago its predictions may be gone
            predictions = read_predictions(run.path, run.experiment.model.head)
            examples, lines = predictions.found.examples, remarks(predictions.found, predictions.classes)
        show(f"test split, {run.path}", metrics_table(run.results, list(run.experiment.modalities), examples), *lines)
    else:
        show(f"no test split; the model is in {run.path}")
    if report:
        leave_report(run.path, quiet)


def _folder(out: Path | None, resume: Path | None, settings: Mapping[str, object]) -> tuple[RunFolder | None, bool]:
    """The run folder, if one is named, and whether to go on with the run in it.

    With ``--out RUN --resume RUN``, and with ``--out RUN`` after a restart by `torchrun`, it is gone on with if it is
    there, as it was configured, and else started.
    """
    from mbt_core.distributed.launch import may_restart, restarted
    from mbt_core.errors import ConfigError
    from mbt_core.training.folder import RunFolder

    if out is None and resume is None and may_restart():
        raise ConfigError("torchrun --max-restarts: give --out RUN, so that a restart finds its run")
    if out is not None and (resume == out or restarted()):
        folder = RunFolder(out)
        return folder, folder.config_file.exists()
    if resume is None:
        return None if out is None else RunFolder(out), False
    given = [name for name, value in {**settings, "--out": out}.items() if value]
    if given:
        raise ConfigError(
            f"--resume goes on with a run as it was configured; leave out {', '.join(given)}. To start it if it is not "
            f"there yet: --out {resume} --resume {resume}"
        )
    return RunFolder(resume), True


def _refuse_with_folds(used: Mapping[str, bool]) -> None:
    from mbt_core.errors import ConfigError

    if flags := [flag for flag, is_used in used.items() if is_used]:
        raise ConfigError(f"--folds trains every fold, one after another in one process; leave out {', '.join(flags)}")


def _show_init(report: InitReport) -> None:
    rows = [[s.part, f"{s.parameters:,}", s.source, s.how] for s in report.starts]
    made = table(["part", "parameters", "from", "how"], rows)
    made.columns[2].justify = made.columns[3].justify = "left"
    show("initial weights", made)
    note(f"{report.loaded:,} parameters loaded, {report.fresh:,} fresh")


def summary(experiment: Experiment) -> str:
    """What was chosen, in one line."""
    from mbt_core.config import BackboneConfig
    from mbt_core.config.recipes import passes

    model, config = experiment.model, experiment.train
    backbone = model.backbone
    size = f"dim {backbone.dim}, depth {backbone.depth}" if isinstance(backbone, BackboneConfig) else backbone
    size = "geometry of the weights" if size == "auto" else size
    start = model.pretrained or "from scratch"
    length = f"{passes(config)} epochs" if config.epochs else f"steps {config.steps}"
    return (
        f"{' + '.join(experiment.modalities)}, {size}, {start}, {model.fusion.strategy} from layer "
        f"{model.fusion.layer}, {config.optimizer} {config.lr:g}, batch {config.batch_size}, {length}"
    )
