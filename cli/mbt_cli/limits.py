"""``mbt bench --data`` and ``mbt bench --world``: what limits a training, and what it costs on many devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mbt_cli.output import note, print_json, show, table

if TYPE_CHECKING:
    import torch

    from mbt_core.analysis.measure.limits import Limit, Reading
    from mbt_core.analysis.measure.scale import Scale
    from mbt_core.config import Experiment
    from mbt_core.data.manifest import Manifest


def limits(
    modalities: str | None,
    recipe: str | None,
    data: str | None,
    sets: Sequence[str],
    device: str,
    batch_size: int | None,
    seconds: float,
    world: int | None,
    clips: int | None,
    speed: float | None,
    timed: bool,
    as_json: bool,
) -> None:
    """Measures and prints; the arguments are those of ``mbt bench``.

    Raises:
        ConfigError: for options that do not fit together, and as `assemble` and `resolve` raise it.
        DataError: for data that cannot be read.
    """
    from mbt_core.errors import ConfigError

    if world is None and (clips is not None or speed is not None) and data is None:
        raise ConfigError("--clips and --speed are of the cost on many devices: give --world N too")
    if speed is not None and not 0 < speed < math.inf:
        raise ConfigError(f"--speed {speed:g}: expected clips a second, above 0")
    if data is not None and clips is not None:
        raise ConfigError("--clips is for --world without --data, which says it itself; leave out one of them")
    if data is None and clips is None:
        raise ConfigError("--world: how many clips are there to train on? Give --data MANIFEST, or --clips N")
    if data is not None and not timed:
        raise ConfigError("--no-time: what limits training has to be timed; leave out --data and give --clips N")
    experiment, manifest = _opened(modalities, recipe, data, sets)
    batch = None if world is None else _batch(experiment, world)
    from mbt_core.analysis.measure.limits import Limit
    from mbt_core.distributed.processes import Hardware

    # counting needs no device
    where = None if speed is not None and manifest is None else Hardware(device).fabric("32").device
    read = None if manifest is None else _reading(experiment, manifest, seconds)
    step = speed
    if step is None and timed:
        assert where is not None
        step = _step(experiment, where, _per_device(experiment, where, batch_size, world or 1), seconds)
    limit = None
    if read is not None and step is not None and where is not None:
        from mbt_core.data.machine import cores

        limit = Limit(read, step, cores(), shared=where.type == "cpu" and speed is None)
    scale = None
    if world is not None and batch is not None:
        scale = _scale(experiment, manifest, clips, world, batch, step, read)
    if as_json:
        print_json(_document(limit, scale, str(where) if where else None))
        return
    if limit is not None:
        show(f"on {where}", _limit_table(limit), limit.advice())
        if manifest is not None and (kept := _kept(experiment, manifest)):
            show(kept)
    if scale is not None:
        ours = table(["", ""], [[name, value] for name, value in scale.table()])
        ours.columns[1].justify = "left"
        show(f"on {world} devices, computed from one, without the time of exchanging gradients", ours)


def _opened(
    modalities: str | None, recipe: str | None, data: str | None, sets: Sequence[str]
) -> tuple[Experiment, Manifest | None]:
    if data is None:
        from mbt_cli.bench import experiment_of
        from mbt_core.analysis.measure.bench import settle

        return settle(experiment_of(modalities, recipe, sets)), None
    from mbt_core.config.recipes import assemble
    from mbt_core.data.source import open_manifest, require_train
    from mbt_core.training.fine_tuning import follow
    from mbt_core.training.resolve import make_modalities, resolve

    experiment = follow(assemble(modalities, recipe, data, sets)[0], "cpu")
    manifest = open_manifest(experiment.data, make_modalities(experiment), experiment.model.head)
    require_train(manifest)
    return resolve(experiment, manifest), manifest


def _reading(experiment: Experiment, manifest: Manifest, seconds: float) -> Reading:
    import numpy as np

    from mbt_core.analysis.measure.limits import reading
    from mbt_core.data.dataset import ClipDataset
    from mbt_core.data.splits import TRAIN
    from mbt_core.training.resolve import make_modalities

    note("reading on one core")
    dataset = ClipDataset(
        manifest, make_modalities(experiment), {}, config=experiment.data, seed=experiment.train.seed, training=True
    )
    rows = np.random.default_rng(experiment.train.seed).permutation(manifest.usable(TRAIN))
    return reading(dataset, rows, seconds)


def _kept(experiment: Experiment, manifest: Manifest) -> str:
    """Whether all this is of the first epoch only."""
    from mbt_core.data.cache import Cache, auto_room
    from mbt_core.data.splits import TRAIN
    from mbt_core.training.resolve import make_modalities

    config = experiment.data
    if config.cache == "none":
        return ""
    if config.cache == "auto":
        cache, room = Cache.in_memory_of(config, make_modalities(experiment)), auto_room()
        chosen = room.choose(cache.estimate(manifest, manifest.usable(TRAIN), room)[0])
        if not chosen:
            return ""
        size = sum(chosen.values())
        return (
            f"in the first epoch only: the decoded clips, {size / 1e6:.0f} MB, will be kept in memory (data.cache=auto)"
        )
    return f"in the first epoch only: the decoded clips will be kept (data.cache={config.cache})"


def _per_device(experiment: Experiment, where: torch.device, asked: int | None, world: int) -> int:
    """Clips a step of one device."""
    from mbt_core.training.memory import DEFAULT_BATCH

    if asked is not None:
        return asked
    if where.type == "cpu":
        return 8  # more is not faster there, and does not end in time
    whole = experiment.train.batch_size
    return max(1, (whole if isinstance(whole, int) else DEFAULT_BATCH) // world)


def _step(experiment: Experiment, where: torch.device, size: int, seconds: float) -> float:
    from mbt_core.analysis.measure.speed import Memory, training
    from mbt_core.data.collate import Preprocess, blank_batch
    from mbt_core.model import MBT

    note(f"training steps of {size} clips on {where}")
    config = experiment.mbt_config().model_copy(update={"pretrained": None})
    model = MBT(config).to(where)
    preprocess = Preprocess(model.modalities).to(where)
    batch = blank_batch(model.modalities, size).to(where)
    return training(model, preprocess, batch, Memory(where), seconds, experiment.train).clips_per_second


def _batch(experiment: Experiment, world: int) -> int:
    """Clips a step of all devices. Raises `ConfigError` where training would."""
    from mbt_core.errors import ConfigError
    from mbt_core.training.memory import DEFAULT_BATCH

    batch = experiment.train.batch_size
    if not isinstance(batch, int):
        return DEFAULT_BATCH * world
    if batch % world:
        below = batch // world * world
        near = f"{below} or {below + world}" if below else f"{world}"
        raise ConfigError(f"train.batch_size {batch}: expected a multiple of the {world} devices, e.g. {near}")
    return batch


def _scale(
    experiment: Experiment,
    manifest: Manifest | None,
    clips: int | None,
    world: int,
    batch: int,
    step: float | None,
    read: Reading | None,
) -> Scale:
    from mbt_core.analysis.measure.scale import Scale
    from mbt_core.data.splits import TRAIN
    from mbt_core.training.flops import count_step
    from mbt_core.training.loop import make_plan

    rows = clips if manifest is None else len(manifest.usable(TRAIN))
    assert rows is not None
    plan = make_plan(experiment.train, rows, batch, None)
    trained = count_step(experiment.mbt_config().model_copy(update={"pretrained": None}), experiment.train)
    return Scale(world, batch, rows, plan.steps, trained, step, read)


def _limit_table(limit: Limit) -> Any:
    read = limit.reading
    size = "" if read.bytes_per_clip is None else f"{read.bytes_per_clip / 1e6:.3g} MB a clip"
    failed = f", {read.failed} of {read.clips} not readable" if read.failed else ""
    return table(
        ["", "clips/s", ""],
        [
            ["reading, one core", f"{read.clips_per_second:.3g}", size + failed],
            [f"reading, {limit.cores} cores", f"{limit.input:.3g}", ""],
            ["training step", f"{limit.step:.3g}", "on the same cores" if limit.shared else ""],
            ["training", f"{limit.together:.3g}", "both together"],
        ],
    )


def _document(limit: Limit | None, scale: Scale | None, where: str | None) -> dict[str, Any]:
    from dataclasses import asdict

    document: dict[str, Any] = {"device": where}
    if limit is not None:
        document["limit"] = {
            **asdict(limit),
            "input": limit.input,
            "together": limit.together,
            "limiting": limit.limiting,
            "cores_needed": limit.cores_needed,
            "advice": limit.advice(),
        }
    if scale is not None:
        document["scale"] = {
            "world": scale.world,
            "batch": scale.batch,
            "clips": scale.clips,
            "steps": scale.steps,
            "tokens": scale.tokens,
            "step_gflops": scale.step_gflops,
            "exchanged_bytes": scale.exchanged,
            "clips_per_second": scale.speed,
            "seconds": scale.seconds,
            "bytes_per_second": scale.bytes_per_second,
            "cores": scale.cores,
        }
    return document
