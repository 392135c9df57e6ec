"""``mbt train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mbt_cli.output import fail, metrics_table, note, show, table

if TYPE_CHECKING:
    from mbt_core.pretrained import InitReport

ModalitiesOption = Annotated[
    str | None, typer.Option("--modalities", "-m", help="NAME or NAME=KIND, separated by commas.", show_default=False)
]
RecipeOption = Annotated[
    str | None,
    typer.Option(help="Name of a recipe or a YAML file. Default: demo without --data, else small.", show_default=False),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        help="Manifest (CSV, Parquet, JSONL), folder with one sub-folder per class, or shards.", show_default=False
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="KEY.PATH=VALUE of any setting; may be repeated.", show_default=False)
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


def train(
    modalities: ModalitiesOption = None,
    recipe: RecipeOption = None,
    data: DataOption = None,
    sets: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder, new or empty. Default: runs/NAME.", show_default=False)
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Run folder to go on with.", show_default=False)] = None,
    device: DeviceOption = "auto",
    devices: Annotated[int, typer.Option(help="Devices per machine.", min=1)] = 1,
    nodes: Annotated[int, typer.Option(help="Machines.", min=1)] = 1,
    parallel: Annotated[str, typer.Option(help="ddp or fsdp.")] = "ddp",
    precision: Annotated[str | None, typer.Option(help="32 or bf16.", show_default=False)] = None,
    show_init: Annotated[bool, typer.Option(help="Show what each part of the model starts from.")] = False,
    tune: Annotated[
        str | None, typer.Option(help="all, fused (from the fusion layer on) or head.", show_default=False)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")] = False,
) -> None:
    """Train a model on your media files or a benchmark.

    Without --data and --recipe it trains on the demo, small real videos that are made on first use.
    """
    from mbt_core.errors import ConfigError
    from mbt_core.recipes import assemble
    from mbt_core.training.folder import RunFolder, command_line

    if parallel not in ("ddp", "fsdp"):
        raise ConfigError(f"--parallel {parallel}: expected ddp or fsdp")
    if resume is not None:
        folder = RunFolder(resume)
        if out is not None or recipe or data or sets or modalities:
            raise ConfigError("--resume goes on with a run as it was configured; leave the other settings out")
        experiment = folder.experiment()
    else:
        flags = [("train.precision", precision), ("train.tune", tune)]
        experiment, chosen = assemble(modalities, recipe, data, sets or (), flags)
        name = f"{Path(chosen.name).stem}-{'-'.join(experiment.modalities)}"
        folder = RunFolder(out) if out is not None else RunFolder.named(Path("runs"), name)
        folder.check_unused()
        if not quiet:
            note(f"recipe {chosen.name}: {summary(experiment)}")
            if experiment.data.path is None and experiment.data.dataset is not None:
                note(f"data set {experiment.data.dataset}: made on first use, then kept in the cache")
    from mbt_cli.progress import Progress
    from mbt_core.run import Hardware
    from mbt_core.run import train as run_training
    from mbt_core.training.loop import Interrupted

    progress = [] if quiet else [Progress()]
    hardware = Hardware(device, devices, nodes, parallel)
    try:
        run = run_training(
            experiment,
            folder.path,
            resume=resume is not None,
            hardware=hardware,
            listeners=progress,
            command=command_line(),
            show_init=_show_init if show_init else None,
        )
    except Interrupted as stop:
        fail(f"interrupted; go on with: mbt train --resume {folder.path}", stop.exit_code)
    if run.results:
        show(f"test split, {run.path}", metrics_table(run.results, list(experiment.modalities)))
    else:
        show(f"no test split; the model is in {run.path}")


def _show_init(report: InitReport) -> None:
    rows = [[s.part, f"{s.parameters:,}", s.source, s.how] for s in report.starts]
    made = table(["part", "parameters", "from", "how"], rows)
    made.columns[2].justify = made.columns[3].justify = "left"
    show("initial weights", made)
    note(f"{report.loaded:,} parameters loaded, {report.fresh:,} fresh")


def summary(experiment: object) -> str:
    """What was chosen, in one line."""
    from mbt_core.config import BackboneConfig, Experiment

    assert isinstance(experiment, Experiment)
    model, config = experiment.model, experiment.train
    backbone = model.backbone
    size = f"dim {backbone.dim}, depth {backbone.depth}" if isinstance(backbone, BackboneConfig) else backbone
    start = model.pretrained or "from scratch"
    length = f"{config.epochs:g} epochs" if config.epochs else f"steps {config.steps}"
    return (
        f"{' + '.join(experiment.modalities)}, {size}, {start}, {model.fusion.strategy} from layer "
        f"{model.fusion.layer}, {config.optimizer} {config.lr:g}, batch {config.batch_size}, {length}"
    )
