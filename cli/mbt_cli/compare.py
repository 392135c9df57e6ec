"""``mbt compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mbt_cli.options import (
    DataOption,
    DeviceOption,
    DryRunOption,
    JsonOption,
    ModalitiesOption,
    OutOption,
    QuietOption,
    RecipeOption,
    SeedsOption,
    SetOption,
)
from mbt_cli.output import note

SHORT = "train.steps=750"
"""Of the demo: two thirds of a training of its own, so that a sweep of five cells takes about ten minutes."""


def compare(
    over: Annotated[
        list[str] | None,
        typer.Option(help="KEY.PATH=V1,V2 of any setting; several make a grid.", show_default=False),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="An ablation of the paper: fusion-layer, bottlenecks, update, shared, window, sync, mixup, "
            "dataset-size, init or modalities.",
            show_default=False,
        ),
    ] = None,
    seeds: SeedsOption = 1,
    modalities: ModalitiesOption = None,
    recipe: RecipeOption = None,
    data: DataOption = None,
    sets: SetOption = None,
    out: OutOption = None,
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a grid of settings and compare them: scores with their deviation, GFLOPs and clips per second.

    Called again it trains only what is missing: an interrupted cell goes on, more seeds or values are added.
    """
    from mbt_cli.sweeping import run_sweep
    from mbt_core.config.recipes import says_length
    from mbt_core.errors import ConfigError
    from mbt_core.sweep.engine import Sweep
    from mbt_core.sweep.grid import Flags, make_cells, parse_over, short
    from mbt_core.sweep.presets import PRESETS
    from mbt_core.sweep.presets import preset as make_preset
    from mbt_core.sweep.report import comparison

    if not over and preset is None:
        raise ConfigError(f"give --over KEY.PATH=V1,V2 or --preset, one of {', '.join(PRESETS)}")
    demo = recipe is None and data is None and not any(map(says_length, [*(sets or ()), *(over or ())]))
    flags = Flags(modalities, recipe, data, (*([SHORT] if demo else []), *(sets or ())), device)
    if demo and not quiet and not dry_run:
        note(f"the demo, shortened: {SHORT}; another length by --set train.steps=N, your data by --data")
    axes = [make_preset(preset, flags.experiment())] if preset is not None else []
    axes += [parse_over(text) for text in over or ()]
    names = [short(axis.name) for axis in axes]
    folder = out or Path("runs") / f"compare-{'-'.join(names)}"
    sweep = Sweep(folder, make_cells(flags, axes, seeds))
    title = " and ".join(names)
    run_sweep(sweep, title, comparison, device=device, dry_run=dry_run, as_json=as_json, quiet=quiet)
