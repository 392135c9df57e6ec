"""``mbt bench``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mbt_cli.options import DeviceOption, JsonOption, ModalitiesOption, SetOption
from mbt_cli.output import note, print_json, show, table

if TYPE_CHECKING:
    from mbt_core.analysis.measure.bench import Cost
    from mbt_core.analysis.measure.speed import Speed
    from mbt_core.config import Experiment

PAPER = {"rgb": {"frames": 8, "size": 224, "seconds": 8.0}, "audio": {"seconds": 8.0}}
"""Inputs of the paper's model; all else of it are the defaults of the model's configuration."""


def bench(
    modalities: ModalitiesOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Name of a recipe or a YAML file. Default: the paper's model.", show_default=False),
    ] = None,
    sets: SetOption = None,
    device: DeviceOption = "auto",
    batch_size: Annotated[
        int | None, typer.Option(help="Clips a step. Default: 1 on a CPU, else 8.", min=1, show_default=False)
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long each measurement repeats.", min=0)] = 5.0,
    timed: Annotated[bool, typer.Option("--time/--no-time", help="Measure time and memory, or only count.")] = True,
    data: Annotated[
        str | None,
        typer.Option(help="Manifest to train on: reads it, and says what limits its training.", show_default=False),
    ] = None,
    world: Annotated[
        int | None,
        typer.Option(help="Devices: computes what training costs on so many.", min=1, show_default=False),
    ] = None,
    clips: Annotated[
        int | None, typer.Option(help="Training clips, for --world without --data.", min=1, show_default=False)
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(help="Training clips/s of one device, in place of a measurement here.", min=0, show_default=False),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw GFLOPs against the fusion layer (.png, .svg, .pdf).", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Parameters, GFLOPs, memory and speed of a configuration, with each fusion strategy.

    GFLOPs are of a forward pass of one clip, two operations for a multiplication and an addition. With --data or
    --world: what limits the training of this configuration, and what it costs on many devices.
    """
    if data is not None or world is not None or clips is not None or speed is not None:
        from mbt_cli.limits import limits
        from mbt_core.errors import ConfigError

        if plot is not None:
            raise ConfigError("--plot draws GFLOPs; leave out --data, --world, --clips and --speed")
        limits(modalities, recipe, data, sets or (), device, batch_size, seconds, world, clips, speed, timed, as_json)
        return
    from mbt_core.analysis.measure.plot import require_plot

    if plot is not None:
        require_plot(plot)
    experiment = experiment_of(modalities, recipe, sets or ())
    from mbt_core.analysis.measure.bench import bench as run
    from mbt_core.analysis.measure.bench import settle
    from mbt_core.run import Hardware

    experiment = settle(experiment)
    where = Hardware(device).fabric("32").device if timed else None
    size = batch_size or (1 if where is None or where.type == "cpu" else 8)
    costs = []
    for cost in run(experiment, device=where, batch_size=size, seconds=seconds):
        costs.append(cost)
        note(f"{cost.strategy}: done")
    curves = _curves(experiment, plot) if plot is not None else None
    if as_json:
        print_json(_document(experiment, costs, str(where) if where else None, size, curves))
        return
    _show(experiment, costs, str(where), size)
    if plot is not None:
        show(f"wrote {plot}")


def experiment_of(modalities: str | None, recipe: str | None, sets: Sequence[str]) -> Experiment:
    """A recipe's experiment, or the paper's."""
    from mbt_core.config import Experiment
    from mbt_core.config.recipes import assemble, parse_instances
    from mbt_core.config.schema import validate
    from mbt_core.config.settings import apply_sets

    if recipe is not None:
        return assemble(modalities, recipe, None, [*sets, "data.path=null", "data.root=null"])[0]  # no data are read
    instances = parse_instances(modalities or ",".join(PAPER))
    tree = {"modalities": {name: {"kind": kind, **PAPER.get(kind, {})} for name, kind in instances.items()}}
    return validate(Experiment, apply_sets(tree, sets))


def _curves(experiment: Experiment, plot: Path) -> dict[str, dict[int, float]]:
    from mbt_core.analysis.measure.bench import over_layers
    from mbt_core.analysis.measure.plot import cost_figure, save_figure

    curves = over_layers(experiment.mbt_config(), progress=note)
    save_figure(cost_figure(curves, " + ".join(experiment.modalities)), plot)
    return curves


def _show(experiment: Experiment, costs: Sequence[Cost], where: str, size: int) -> None:
    from mbt_core.analysis.measure.bench import BASELINE
    from mbt_core.training.flops import PARTS

    first = costs[0].count
    late = next((c.count.gflops for c in costs if c.strategy == BASELINE), first.gflops)
    tokens = ", ".join(f"{name} {number}" for name, number in first.tokens.items())
    show(f"tokens: {tokens}; fusion from layer {experiment.model.fusion.layer}", "GFLOPs of a forward pass of one clip")
    rows = [
        [
            c.strategy,
            *(f"{c.count.flops[part] / 1e9:.2f}" for part in PARTS),
            f"{c.count.gflops:.2f}",
            f"{c.count.gflops / late:.3f}",
        ]
        for c in costs
    ]
    show(table(["strategy", *PARTS, "all", f"x {BASELINE}"], rows), "parameters, in millions")
    rows = []
    for c in costs:
        numbers = [c.count.parameters[part] for part in PARTS]
        rows.append([c.strategy, *(f"{n / 1e6:.2f}" for n in (*numbers, sum(numbers)))])
    show(table(["strategy", *PARTS, "all"], rows))
    if costs[0].inference is None:
        return
    show(f"on {where}, batches of {size}, stand-ins for clips")
    columns = ["strategy", "inference clips/s", "peak GB", "training clips/s", "peak GB"]
    show(table(columns, [[c.strategy, *_cells(c.inference), *_cells(c.training)] for c in costs]))


def _cells(speed: Speed | None) -> list[str]:
    assert speed is not None
    memory = "" if speed.peak_memory is None else f"{speed.peak_memory / 1e9:.2f}"
    return [f"{speed.clips_per_second:.3g}", memory]


def _document(
    experiment: Experiment,
    costs: Sequence[Cost],
    where: str | None,
    size: int,
    curves: dict[str, dict[int, float]] | None,
) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "tokens": costs[0].count.tokens,
        "fusion_layer": experiment.model.fusion.layer,
        "device": where,
        "batch_size": size if where else None,
        "strategies": [
            {
                "strategy": c.strategy,
                "gflops": {**{part: n / 1e9 for part, n in c.count.flops.items()}, "all": c.count.gflops},
                "parameters": {**c.count.parameters, "all": sum(c.count.parameters.values())},
                "inference": c.inference and asdict(c.inference),
                "training": c.training and asdict(c.training),
            }
            for c in costs
        ],
        **({} if curves is None else {"gflops_over_fusion_layer": curves}),
    }
