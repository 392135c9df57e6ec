"""The model as one graph of plain tensors: what goes in, what comes out, and batches to trace and check it with.

Shapes: B batch, N tokens of a padded input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mbt_core.errors import ConfigError, MBTError, unknown
from mbt_core.modality import Modality
from mbt_core.model import MBT
from mbt_core.model.loss import by_task

MASK = "mask"
TRACED = 3
"""Batch size of the trace; a size of 1 would be taken for a constant."""


@dataclass(frozen=True)
class Input:
    """One tensor that the graph takes.

    Args:
        name: the modality's, with ``.KEY`` where it takes several.
        modality: whose.
        key: of the sample; ``""`` where the sample is one tensor, `MASK` for the mask of a preprocessed input.
        example: what a batch of one looks like.
        longest: most elements along axis 1 where it may vary; None: all axes but the batch are fixed.
        values: whether the example's values may be replaced by any others of its type.
    """

    name: str
    modality: str
    key: str
    example: Tensor
    longest: int | None = None

    @property
    def shape(self) -> list[int | str]:
        """``["batch", ...]``, with the names of the axes that vary."""
        rest: list[int | str] = [*self.example.shape[1:]]
        if self.longest is not None:
            rest[0] = length_name(self.modality)
        return ["batch", *rest]

    @property
    def dtype(self) -> str:
        return str(self.example.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Output:
    """One tensor [B, C] of logits that the graph returns; `modality` is None for the fused ones."""

    name: str
    task: str
    modality: str | None


def length_name(modality: str) -> str:
    """Of the axis along which a padded input of `modality` varies."""
    return f"{modality}_length"


class Graph(nn.Module):
    """A model in evaluation, for a fixed subset of its modalities, all present, from tensors to a tuple of logits.

    Args:
        model: in evaluation mode.
        names: the subset; None: all.
        preprocessed: take the tokenizers' inputs, instead of samples as `Modality.read` returns them in evaluation.
            A modality that pads takes its tokenizer's input in either case, so that its length may vary.

    Raises:
        ConfigError: for a modality that the model does not have, or none.
        MBTError: for one that pads in a way that cannot be exported.
    """

    def __init__(self, model: MBT, names: Sequence[str] | None = None, preprocessed: bool = False) -> None:
        super().__init__()
        chosen = list(model.modalities) if names is None else list(dict.fromkeys(names))
        for name in chosen:
            if name not in model.modalities:
                raise ConfigError(f"--modalities: {unknown('modality', name, model.modalities)}")
        if not chosen:
            raise ConfigError(f"--modalities: expected at least one of {', '.join(model.modalities)}")
        self.model = model
        self.names = [name for name in model.modalities if name in chosen]
        self.parts = nn.ModuleDict()
        self.inputs: list[Input] = []
        self.unused: dict[str, dict[str, Tensor]] = {}
        for name in self.names:
            self._add(name, model.modalities[name].without_augmentation(), preprocessed)
        tasks = list(model.config.head.outputs)
        sources = [None, *self.names] if model.config.pool != "mean-joint" else [None]
        self.outputs = [Output(_output_name(model, t, source), t, source) for source in sources for t in tasks]

    def _add(self, name: str, modality: Modality, preprocessed: bool) -> None:
        preprocessor = modality.preprocessor().eval()
        batch = modality.collate([modality.blank()])
        with torch.no_grad():
            given = preprocessor(batch)
        x, mask = given if isinstance(given, tuple) else (given, None)
        if mask is not None:
            longest = self._longest(name, x, mask)
            first = torch.zeros(longest, dtype=torch.int64)
            self.inputs += [
                Input(name, name, "", x[:, first], longest),
                Input(f"{name}.{MASK}", name, MASK, mask[:, first] | True, longest),
            ]
        elif preprocessed:
            self.inputs.append(Input(name, name, "", x))
        else:
            self.parts[name] = preprocessor
            leaves = batch if isinstance(batch, dict) else {"": batch}
            used = {key: leaf for key, leaf in leaves.items() if leaf.numel()}
            # of drawn augmentation nothing is left but empty tensors
            self.unused[name] = {key: leaf for key, leaf in leaves.items() if not leaf.numel()}
            self.inputs += [
                Input(name if len(used) == 1 else f"{name}.{key}", name, key, leaf) for key, leaf in used.items()
            ]

    def _longest(self, name: str, x: Tensor, mask: Tensor) -> int:
        grid = self.model.stream(name).grid
        if len(grid) != 1 or x.shape[:2] != mask.shape or not x.shape[1]:
            raise MBTError(
                f"{name}: its input {list(x.shape)} and mask {list(mask.shape)} cannot be exported: "
                "expected [B, N, ...] and [B, N] of a one-dimensional grid"
            )
        return grid[0]

    @property
    def preprocessed(self) -> list[str]:
        """The modalities that come in as their tokenizers take them."""
        return [name for name in self.names if name not in self.parts]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """`inputs` in their order -> `outputs` in theirs, [B, C] each."""
        given: dict[str, dict[str, Tensor]] = {name: {} for name in self.names}
        for port, x in zip(self.inputs, tensors, strict=True):
            given[port.modality][port.key] = x
        out = self.model({name: self._prepare(name, leaves) for name, leaves in given.items()})
        by_source = {None: by_task(out.logits)} | {n: by_task(x) for n, x in out.modality_logits.items()}
        return tuple(by_source[port.modality][port.task] for port in self.outputs)

    def _prepare(self, name: str, leaves: Mapping[str, Tensor]) -> Any:
        if name not in self.parts:
            return (leaves[""], leaves[MASK]) if MASK in leaves else leaves[""]
        size = next(iter(leaves.values())).shape[0]
        empty = {key: leaf.new_zeros((size, *leaf.shape[1:])) for key, leaf in self.unused[name].items()}
        return self.parts[name](leaves.get("", {**leaves, **empty}))

    def batch(self, size: int, share: float = 1.0) -> tuple[Tensor, ...]:
        """A batch of random values of each input's type and range; padded inputs have `share` of their longest length.

        Whole numbers of 32 and 64 bits are ids, whose range only their modality knows: they keep the stand-in's values.
        """
        generator = torch.Generator().manual_seed(size)
        return tuple(_random(port, size, share, generator) for port in self.inputs)

    @torch.no_grad()
    def trace(self) -> ExportedProgram:
        """The graph by `torch.export`, without its example inputs, which would be written as a pickle.

        Raises:
            MBTError: for what cannot be exported.
        """
        axes: list[dict[int, Any]] = []
        batch = Dim("batch")
        lengths = {p.modality: Dim(length_name(p.modality), max=p.longest) for p in self.inputs if varies(p)}
        for port in self.inputs:
            axes.append({0: batch} | ({1: lengths[port.modality]} if varies(port) else {}))
        try:
            program = torch.export.export(self.eval(), self.batch(TRACED), dynamic_shapes=(tuple(axes),))
        except Exception as error:  # the exporter has many ways to say so
            raise MBTError(f"the model cannot be exported by torch.export: {first_line(error)}") from error
        program.example_inputs = None
        return program


def varies(port: Input) -> bool:
    """Whether axis 1 of an input is free; of length 1 it is fixed."""
    return port.longest is not None and port.longest > 1


def first_line(error: Exception) -> str:
    """What an exporter says, without its pages of advice."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _output_name(model: MBT, task: str, modality: str | None) -> str:
    """As metrics are named: ``logits``, ``logits[NAME]``, with several tasks ``TASK/logits[NAME]``."""
    name = "logits" if model.config.head.tasks is None else f"{task}/logits"
    return name if modality is None else f"{name}[{modality}]"


def _random(port: Input, size: int, share: float, generator: torch.Generator) -> Tensor:
    example = port.example.expand(size, *port.example.shape[1:])
    if port.longest is not None:
        longest = max(1, int(share * port.longest))
        example = example[:, :longest]
        if port.key == MASK:
            return torch.arange(longest) < torch.randint(1, longest + 1, (size, 1), generator=generator)
    if example.is_floating_point():
        return torch.randn(example.shape, generator=generator).to(example.dtype)
    if example.dtype in (torch.uint8, torch.int8, torch.int16):
        bounds = torch.iinfo(example.dtype)
        return torch.randint(bounds.min, bounds.max + 1, example.shape, generator=generator, dtype=example.dtype)
    return example.clone()
