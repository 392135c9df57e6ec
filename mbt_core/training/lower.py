"""Training above frozen layers: what these make of each clip is computed once, kept on disk, and read in every epoch.

Shapes: B batch, N tokens of a stream with its prefix, K those of them that are real, D width.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from mbt_core.config import Experiment, FusionConfig, TrainConfig
from mbt_core.config.assets import portable
from mbt_core.data.cache import disk_folder
from mbt_core.data.collate import Batch, Preprocess
from mbt_core.data.dataset import ClipDataset, Draw
from mbt_core.data.loader import make_loader
from mbt_core.data.manifest import Manifest, Row
from mbt_core.data.sampler import EvalSampler
from mbt_core.distributed.processes import Team
from mbt_core.errors import ConfigError, DataError, MBTError
from mbt_core.io.files import SUMS, read_safetensors, write_safetensors
from mbt_core.media import exists, identity
from mbt_core.modality import Modality, Sample
from mbt_core.modality.tokens import Tokens
from mbt_core.model import MBT
from mbt_core.model.mbt import Inputs
from mbt_core.training.optimizer import is_above
from mbt_core.version import __version__

VERSION = 1
"""Of what lies on disk; files of another version are not used."""
KEPT = torch.bfloat16
SAMPLE = 16
"""Clips whose tokens tell the size of all."""
ABOVE = {
    "head",
    "pretrained",
    "dropout",
    "attention_dropout",
    "drop_path",
    "drop_path_rescale",
    "patch_drop",
    "checkpointing",
}
"""What of a model's configuration does not change the tokens in evaluation, besides the weights themselves."""

Say = Callable[[str], None]


def find_cut(model: MBT, config: TrainConfig) -> int | None:
    """The layer that kept tokens enter (the depth: the head); None: none are kept (``train.cache_lower``).

    It is the fusion layer; or the head, if nothing else is trained, and what enters it is the same in every epoch.

    Args:
        model: its frozen parameters need no gradient.
        config: of the training.

    Raises:
        ConfigError: if something below the layer is trained, or drawn anew in every step.
    """
    if not config.cache_lower:
        return None
    fusion, depth = model.config.fusion, model.backbone.depth
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    if below := [name for name in trained if not is_above(name, fusion.first)]:
        raise ConfigError(
            f"train.cache_lower: {below[0]} is trained, and lies below the fusion layer {fusion.first}; what is kept "
            "would be out of date after a step. Set train.tune=fused or head, or train.cache_lower=false"
        )
    if _any(model.config.patch_drop):
        raise ConfigError(
            "train.cache_lower: model.patch_drop leaves out tokens before the first layer, in every step others; set "
            "model.patch_drop=0, or train.cache_lower=false"
        )
    return depth if is_constant(fusion, config) and all(name.startswith("head.") for name in trained) else fusion.first


def is_constant(fusion: FusionConfig, config: TrainConfig) -> bool:
    """Whether the fused layers, frozen, make the same of a clip in every epoch and in evaluation."""
    return fusion.eval_bottlenecks and not fusion.exchange_drop and not _any(config.modality_dropout)


def _any(rates: float | Mapping[str, float]) -> bool:
    """Whether something is drawn at these rates, of all modalities or of each."""
    return any(rates.values()) if isinstance(rates, Mapping) else rates > 0


class Lower:
    """Tokens that enter a layer, as frozen layers below it make them of each row's middle window; kept on disk in bf16.

    One file a row: modality -> its real tokens [K, D]; absent modalities are left out. Its name comes from all that
    decides the tokens: weights, configuration, the plugins' code; paths, times and sizes of the row's files, its span.

    Args:
        model: whole, with the weights that training starts from.
        layer: of `find_cut`.
        precision: ``train.precision``.

    Attributes:
        folder: where the files are: ``$MBT_CACHE/lower/...``.
        stand_ins: modality -> what a data set of kept tokens takes for it.
        errors: row -> why it cannot be read, after `fill`.
    """

    def __init__(self, model: MBT, layer: int, precision: str) -> None:
        self.layer = layer
        self.where = "the head" if layer == model.backbone.depth else f"layer {layer}"
        self.class_token_only = layer == model.backbone.depth and model.config.pool == "cls"
        self.folder = disk_folder("lower") / fingerprint(model, layer, precision)
        self.stand_ins = {name: self._stand_in(model, name) for name in model.modalities}
        self.errors: dict[int, str] = {}

    def _stand_in(self, model: MBT, name: str) -> StandIn:
        grid = model.stream(name).grid
        # a grid of one axis is an upper limit: of a shorter sequence one token is enough
        whole = len(grid) > 1 and not self.class_token_only
        return StandIn(model.prefix + int(np.prod(grid)) if whole else 1, model.backbone.dim)

    def tokens(self, model: MBT, inputs: Inputs, present: Mapping[str, Tensor] | None) -> dict[str, list[Tensor]]:
        """Modality -> bf16 [K, D] of each example of a batch, on the CPU; arguments are those of `MBT.embed`."""
        streams = model.run_layers(model.embed(inputs, present=present), present, range(self.layer))
        if self.class_token_only:
            streams = {name: Tokens(t.x[:, :1]) for name, t in streams.items()}
        found = {}
        for name, (x_BND, mask_BN) in streams.items():
            x = x_BND.to("cpu", KEPT)
            # neither attention nor pooling asks for a token's place: its position is in it
            found[name] = list(x) if mask_BN is None else [y[m] for y, m in zip(x, mask_BN.cpu(), strict=True)]
        return found

    def path(self, row: Row) -> Path:
        """The file of a row, whether it is there or not. Raises `OSError` if one of the row's files has just gone."""
        sources: dict[str, Any] = {}
        for name, source in row.sources.items():
            if source is not None and source.text is not None:
                sources[name] = source.text
            elif source is not None and source.path is not None and exists(source.path):
                sources[name] = identity(source.path)
        key = json.dumps([sources, row.start, row.end, row.fps], sort_keys=True)
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:]}.safetensors"

    def has(self, manifest: Manifest, row: int) -> bool:
        """Whether the row's file is there and whole; reads it all, once in a run, as every epoch does."""
        try:
            read_safetensors(self.path(manifest.row(row)))
        except (DataError, OSError):
            return False
        return True

    def load(self, row: Row) -> dict[str, Tensor]:
        """Modality -> bf16 [K, D].

        Raises:
            DataError: if `fill` could not read the row's clips.
            MBTError: if the file is gone or damaged; it is removed.
        """
        if row.index in self.errors:
            raise DataError(self.errors[row.index])
        path = self.path(row)
        try:
            return read_safetensors(path)
        except DataError as error:
            with suppress(OSError):
                path.unlink()
            raise MBTError(
                f"{error}. The tokens of row {row.id!r} are gone or damaged, or its files have changed since the "
                "start; go on with --resume, which computes them anew"
            ) from None

    def fill(
        self,
        model: MBT,
        dataset: ClipDataset,
        rows: np.ndarray,
        experiment: Experiment,
        team: Team,
        say: Say,
        progress: Callable[[int, int], None],
    ) -> None:
        """Computes what is not there yet; the processes share the rows. What was computed stays if it is interrupted.

        Args:
            model: as given before, on the device.
            dataset: reads the rows as for evaluation, one view.
            rows: all that will be read.
            experiment: how much room there may be; how batches are read.
            team: of this process.
            say: told the size before.
            progress: called with (rows computed, rows to compute).

        Raises:
            ConfigError: if it takes more room than there is, or than ``train.cache_limit``.
            MBTError: if another machine's process has kept what this one cannot see.
        """
        maker = _Maker(self, model, dataset, experiment, team)
        manifest = dataset.manifest

        def begin() -> list[int]:
            missing = [row for row in rows.tolist() if not self.has(manifest, row)]
            some = [missing[i] for i in np.unique(np.linspace(0, len(missing) - 1, SAMPLE).astype(int)) if missing]
            made = list(maker.make(some))
            size = sum(size_of(found) for _, _, found in made if isinstance(found, dict)) / max(1, len(some))
            say(self._announce(size, len(rows), len(missing)))
            self._check_room(size * len(missing), experiment.train.cache_limit)
            for row, path, found in made:
                keep(row, path, found)
            return sorted({*missing} - {*some})

        def keep(row: int, path: Path | None, found: dict[str, Tensor] | str) -> None:
            if isinstance(found, str):
                self.errors[row] = found
            elif path is not None:
                write_safetensors(path, found)

        self.errors = {}
        todo = team.share(begin)
        mine = todo[team.rank :: team.world]
        for done, made in enumerate(maker.make(mine), start=1):
            keep(*made)
            progress(done, len(mine))
        self.errors = {row: error for part in team.gather_everywhere(self.errors) for row, error in part.items()}
        readable = [row for row in todo[:SAMPLE] if row not in self.errors]
        if team.world > 1 and not all(self.has(manifest, row) for row in readable):
            raise MBTError(
                f"{self.folder}: what another process has kept is not to be seen from here; set the environment "
                "variable MBT_CACHE to a folder that all machines share"
            )

    def _announce(self, size: float, count: int, missing: int) -> str:
        if missing:
            there = f", {count - missing} of which are there already" if missing < count else ""
            room = f"{amount(size * missing)} for {count} clips{there}"
        else:
            room = f"those of all {count} clips are there already"
        return (
            f"the tokens that enter {self.where} are computed once and kept in {self.folder}: {room}. Every clip is "
            "read as in evaluation: its middle, without augmentation"
        )

    def _check_room(self, size: float, limit: float) -> None:
        if size > limit * 1e9:
            raise ConfigError(
                f"train.cache_lower: the tokens that enter {self.where} take {amount(size)}, above the limit of "
                f"{limit:g} GB: raise train.cache_limit, or set train.cache_lower=false"
            )
        there, free = free_bytes(self.folder)
        if size > free:
            raise ConfigError(
                f"train.cache_lower: the tokens that enter {self.where} take {amount(size)}, and {there} has "
                f"{amount(free)} left: make room, set the environment variable MBT_CACHE to a folder with more, or "
                "train.cache_lower=false"
            )


def free_bytes(folder: Path | None = None) -> tuple[Path, int]:
    """The nearest folder that exists to that of kept tokens, and the bytes that are left there."""
    folder = folder or disk_folder("lower")
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    return nearest, shutil.disk_usage(nearest).free


class _Maker:
    """Computes rows' tokens."""

    def __init__(self, lower: Lower, model: MBT, dataset: ClipDataset, experiment: Experiment, team: Team) -> None:
        self.lower, self.model, self.dataset, self.fabric = lower, model.eval(), dataset, team.fabric
        self.workers = experiment.data.workers
        trained = experiment.train.batch_size
        assert isinstance(trained, int)
        self.batch_size = max(1, (experiment.evaluate.batch_size or trained) // team.world)
        self.preprocess = Preprocess(model.modalities).to(team.fabric.device)

    def make(self, rows: Sequence[int]) -> Iterator[tuple[int, Path | None, dict[str, Tensor] | str]]:
        """(row, its file, its tokens as `Lower.load` gives them); where it cannot be read in their place why."""
        if not rows:
            return
        # before they are read: what replaces a clip meanwhile has another file
        paths = {row: self._path(row) for row in rows}
        loader = make_loader(self.dataset, EvalSampler(rows, self.batch_size), self.workers, self.fabric.device)
        for batch in loader:
            errors = dict(batch.errors)
            here = batch.to(self.fabric.device)
            with torch.inference_mode(), self.fabric.autocast():
                kept = self.lower.tokens(self.model, self.preprocess(here), None if batch.complete else here.present)
            for i, row in enumerate(batch.index.tolist()):
                own = {name: tokens[i] for name, tokens in kept.items() if batch.present[name][i]}
                yield row, paths[row], errors.get(row, own)

    def _path(self, row: int) -> Path | None:
        try:
            return self.lower.path(self.dataset.manifest.row(row))
        except (DataError, OSError):  # as reading it will find
            return None


def fingerprint(model: MBT, layer: int, precision: str) -> str:
    """Of all that decides the tokens that enter `layer`, but the clips: weights, configuration with the content of the
    files that belong to it, code of the plugins."""
    config = model.config
    tree = {key: value for key, value in portable(config).items() if key not in ABOVE}
    if layer == config.fusion.first:
        tree["fusion"] = layer
    tree |= {"backbone": model.backbone.model_dump(mode="json"), "layer": layer, "precision": precision}
    digest = hashlib.sha256(json.dumps([VERSION, __version__, tree], sort_keys=True).encode())
    for modality in model.modalities.values():
        for file in _code(modality):
            digest.update(file.read_bytes())
    for name, tensor in model.state_dict().items():
        if name.startswith("head.") or (layer == config.fusion.first and is_above(name, layer)):
            continue
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:24]


def _code(modality: Modality) -> list[Path]:
    """The files of the packages that a modality and what it inherits from are written in, or single files."""
    files: set[Path] = set()
    for kind in type(modality).__mro__:
        package = kind.__module__.split(".")[0]
        if package in ("mbt_core", "torch") or package in sys.stdlib_module_names:
            continue
        try:
            file = Path(inspect.getfile(kind))
        except (OSError, TypeError):  # written at a prompt
            continue
        top = file
        while (top.parent / "__init__.py").exists():
            top = top.parent
        files |= {file, *top.rglob("*.py")}
    return sorted(files)


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the file that `write_safetensors` makes of them."""
    return len(save(dict(tensors), {SUMS: f"{0:08x} {0:08x}"}))


def amount(size: float) -> str:
    """Bytes for people, to four digits."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.4g} {unit}"
    return f"{size / 1e3:.4g} kB"


class StandIn:
    """A modality's place in a data set of kept tokens: its samples are bf16 [K, D].

    Args:
        length: tokens of what stands in for an absent one.
        dim: width D.
    """

    def __init__(self, length: int, dim: int) -> None:
        self.length, self.dim = length, dim

    def blank(self) -> Tensor:
        return torch.zeros(self.length, self.dim, dtype=KEPT)

    def collate(self, samples: Sequence[Tensor]) -> dict[str, Tensor]:
        """``{"x": [B, N, D]}``, and ``mask``: bool [B, N] where they are of different lengths."""
        lengths = torch.tensor([len(x) for x in samples])
        longest = int(lengths.max())
        if bool((lengths == longest).all()):
            return {"x": torch.stack(list(samples))}
        x = torch.stack([nn.functional.pad(x, (0, 0, 0, longest - len(x))) for x in samples])
        return {"x": x, "mask": torch.arange(longest) < lengths[:, None]}


class KeptTokens(ClipDataset):
    """A `ClipDataset` whose samples are kept tokens; modality dropout as there, nothing else is drawn.

    Args:
        lower: filled.
        given: of `ClipDataset`, but for the modalities and the cache.
    """

    def __init__(self, lower: Lower, *given: Any, **options: Any) -> None:
        manifest, *rest = given
        super().__init__(manifest, cast(dict[str, Modality], lower.stand_ins), *rest, **options)
        self.lower = lower

    def samples(self, row: Row, draw: Draw) -> list[dict[str, Sample]]:
        kept = self.lower.load(row)
        names = self.stay(kept, draw) if self.training else kept
        return [{name: kept[name] for name in names}]


class Restore(nn.Module):
    """What `Preprocess` is for clips: a `Batch` of kept tokens on the device -> streams, as they enter the layer."""

    def forward(self, batch: Batch) -> dict[str, Tokens]:
        return {name: Tokens(kept["x"].float(), kept.get("mask")) for name, kept in batch.samples.items()}
