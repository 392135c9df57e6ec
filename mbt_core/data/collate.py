"""From examples to a batch, and from a batch to a model's inputs.

Shapes: B views of examples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from mbt_core.data.dataset import Example
from mbt_core.errors import MBTError
from mbt_core.modality import Modality, Sample


@dataclass
class Batch:
    """Examples side by side; all views of a row lie together.

    Args:
        samples: modality -> what its `collate` returned.
        present: modality -> bool [B], whether a sample is no stand-in.
        targets: task -> int64 [B] classes, or float32 [B, C].
        weight: float32 [B], 0 where nothing could be read.
        index: int64 [B], row of the manifest.
        view: int64 [B], number of the view.
        errors: (row, why nothing could be read).
        complete: whether every sample has every modality.
    """

    samples: dict[str, Any]
    present: dict[str, Tensor]
    targets: dict[str, Tensor]
    weight: Tensor
    index: Tensor
    view: Tensor
    errors: list[tuple[int, str]]
    complete: bool

    def __len__(self) -> int:
        return len(self.index)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        names = ("samples", "present", "targets", "weight", "index", "view")
        return replace(self, **{name: _map_tree(getattr(self, name), change) for name in names})

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Self:
        """The batch on a device; copied in the background only from page-locked memory, which nobody reuses."""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking and x.is_pinned()))

    def pin_memory(self) -> Self:
        """The batch in page-locked memory, from where it is copied to a GPU in the background."""
        return self._map(Tensor.pin_memory)

    def split(self, parts: int) -> list[Self]:
        """At most `parts` batches of consecutive examples, of sizes that differ by at most one."""
        sizes = [len(part) for part in torch.arange(len(self)).tensor_split(min(parts, len(self)))]
        if len(sizes) == 1:
            return [self]
        ends = torch.tensor(sizes).cumsum(0).tolist()
        batches = []
        for end, size in zip(ends, sizes, strict=True):
            part = self._map(lambda x, low=end - size, high=end: x[low:high])  # type: ignore[misc]
            rows = set(part.index.tolist()) if self.errors else set()
            batches.append(replace(part, errors=[error for error in self.errors if error[0] in rows]))
        return batches


def _map_tree(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    return {key: _map_tree(value, change) for key, value in tree.items()}


class Copier:
    """Copies batches to a device; to a GPU on a stream of its own, beside what is still being computed there."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        if self._stream is None:
            return batch.to(self.device)
        with torch.cuda.stream(self._stream):
            there = batch.to(self.device)
        now = torch.cuda.current_stream(self.device)
        now.wait_stream(self._stream)

        def keep(x: Tensor) -> Tensor:
            x.record_stream(now)  # its memory is not given away before what is computed with it is done
            return x

        return there._map(keep)


class Collate:
    """Examples of several rows -> `Batch`; runs in the worker process."""

    def __init__(self, modalities: Mapping[str, Modality]) -> None:
        self.modalities = dict(modalities)

    def __call__(self, rows: Sequence[Sequence[Example]]) -> Batch:
        examples = [example for views in rows for example in views]
        present = {name: torch.tensor([e.present[name] for e in examples]) for name in self.modalities}
        return Batch(
            {name: self._collate(name, [e.samples[name] for e in examples]) for name in self.modalities},
            present,
            {task: torch.stack([e.targets[task] for e in examples]) for task in examples[0].targets},
            torch.tensor([e.weight for e in examples]),
            torch.tensor([e.index for e in examples]),
            torch.tensor([e.view for e in examples]),
            [(views[0].index, views[0].error) for views in rows if views[0].error is not None],
            all(bool(here.all()) for here in present.values()),
        )

    def _collate(self, name: str, samples: Sequence[Sample]) -> Any:
        try:
            return self.modalities[name].collate(samples)
        except (RuntimeError, KeyError) as error:  # sizes or keys that do not fit together
            raise MBTError(
                f"{name}: the samples of a batch do not fit together: {_described(samples)} ({error}). "
                "Every sample must have the shape that the configuration gives, whatever the file"
            ) from error


def _described(samples: Sequence[Sample]) -> str:
    """The different shapes of the samples, at most four."""
    shapes = {
        ", ".join(f"{key} {list(x.shape)}" for key, x in sample.items())
        if isinstance(sample, dict)
        else str(list(sample.shape)): None
        for sample in samples
    }
    return " and ".join(list(shapes)[:4])


def blank_batch(modalities: Mapping[str, Modality], size: int) -> Batch:
    """A batch of stand-ins with everything present, for trials of speed and memory."""
    samples = {name: modality.blank() for name, modality in modalities.items()}
    example = Example(0, 0, samples, dict.fromkeys(samples, True), {}, 1.0, None)
    return Collate(modalities)([[example]] * size)


class Preprocess(nn.Module):
    """Every modality's preprocessor: a `Batch` on the device -> the inputs of `MBT`. It has nothing to train."""

    def __init__(self, modalities: Mapping[str, Modality]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: modality.preprocessor() for name, modality in modalities.items()})

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Modality -> float input, or (input, mask)."""
        return {name: part(batch.samples[name]) for name, part in self.parts.items()}
