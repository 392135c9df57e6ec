"""``mbt transfer``."""

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


def transfer(
    init: Annotated[
        str, typer.Option(help="Starts, separated by commas: none, a timm name, a file, a run.", show_default=False)
    ],
    modalities: ModalitiesOption = None,
    data: DataOption = None,
    seeds: SeedsOption = 3,
    fractions: Annotated[str, typer.Option(help="Shares of the training rows; nested.")] = "0.25,1",
    tune: Annotated[
        str, typer.Option(help="head (linear probe), fused (from the fusion layer on), all; separated by commas.")
    ] = "head,all",
    cache_lower: Annotated[
        bool, typer.Option("--cache-lower", help="Where tuning is head or fused: compute frozen layers once.")
    ] = False,
    recipe: RecipeOption = None,
    sets: SetOption = None,
    out: OutOption = None,
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Does pre-training help this data? Train the same model from fresh and from given weights, and compare.

    The model takes the geometry of the weights. Called again it trains only what is missing.
    """
    from mbt_cli.sweeping import run_sweep
    from mbt_core.errors import ConfigError
    from mbt_core.sweep.engine import Sweep
    from mbt_core.sweep.grid import Flags, make_cells
    from mbt_core.sweep.report import study
    from mbt_core.sweep.transfer import plan

    try:
        shares = [float(text) for text in _parts(fractions)]
    except ValueError:
        raise ConfigError(f"--fractions {fractions}: expected numbers separated by commas, e.g. 0.1,0.5,1") from None
    flags = Flags(modalities, recipe, data, tuple(sets or ()), device)
    planned = plan(flags, _parts(init), _parts(tune), shares, cache_lower)
    if not quiet and not dry_run:
        for text in planned.notes:
            note(text)
    names = "-".join(flags.experiment().modalities)
    sweep = Sweep(out or Path("runs") / f"transfer-{names}", make_cells(planned.flags, planned.axes, seeds))
    title = f"transfer to {names.replace('-', ' + ')}"
    run_sweep(sweep, title, study, device=device, dry_run=dry_run, as_json=as_json, quiet=quiet)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
