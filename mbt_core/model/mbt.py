"""MBT: the whole model and its forward pass.

Shapes: B batch, N tokens of a stream (with P prefix tokens: class token, registers), D width, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mbt_core.config import DEFAULT_TASK, HeadConfig, MBTConfig
from mbt_core.config.assets import copy_attached, find_attached, portable
from mbt_core.config.schema import validate
from mbt_core.errors import ConfigError, DataError, MBTError, unknown
from mbt_core.io.files import read_json, read_safetensors, read_shapes, write_atomically, write_safetensors
from mbt_core.io.hub import locate, upload
from mbt_core.modality import Modality
from mbt_core.modality.tokens import Tokens
from mbt_core.model.backbone import resolve_backbone
from mbt_core.model.block import Attended, Block
from mbt_core.model.fusion.base import JOINT, Fusion, LayerRecord, recorder
from mbt_core.model.head import SHARED, Head
from mbt_core.model.stream import Stream
from mbt_core.plugins import registry

Inputs = Mapping[str, Tensor | tuple[Tensor, Tensor | None]]
TokenTransform = Callable[[dict[str, Tokens]], dict[str, Tokens]]


@dataclass
class Prediction:
    """What a forward pass returns.

    Args:
        logits: [B, C], or task -> [B, C] where the head has `tasks`; mean over the present modalities.
        modality_logits: name -> the same for one modality alone; empty for pool ``mean-joint``.
        tokens: name -> [B, P + N, D] after the final norm; in training without those that ``patch_drop`` left out.
        embedding: [B, R], what the classifier sees, mean over the present modalities.
        modality_embeddings: name -> [B, R]; empty for pool ``mean-joint``.
        intermediates: one record a layer, if asked for.
    """

    logits: Any
    modality_logits: dict[str, Any]
    tokens: dict[str, Tensor]
    embedding: Tensor
    modality_embeddings: dict[str, Tensor]
    intermediates: list[LayerRecord] | None = None


class MBT(nn.Module):
    """N-modality ViT with a fusion strategy (Nagrani et al., arXiv 2107.00135), always freshly initialised.

    Args:
        config: an `MBTConfig` or the same as a dictionary.

    Attributes:
        modalities: name -> `Modality` instance.
        classes: task -> names of its classes, if known; saved with the model.
        never_trained: names of the parameters that plugins have frozen when they made them.
        saved_config: the configuration as it is saved: it tells what was in the files that belong to the model.

    Raises:
        ConfigError: for a wrong configuration.
    """

    def __init__(self, config: MBTConfig | Mapping[str, Any]) -> None:
        super().__init__()
        self.config = validate(MBTConfig, config)
        self.backbone = resolve_backbone(self.config.backbone)
        if unfilled := [field for name in self.config.modalities for field in self._unfilled(name, before=True)]:
            raise ConfigError(
                f"{', '.join(unfilled)}: 'auto' is filled from the data of a run; a model alone needs a value"
            )
        self.modalities: dict[str, Modality] = {
            name: registry().modality_class(c.kind)(name, c) for name, c in self.config.modalities.items()
        }
        self.classes: dict[str, list[str]] = {}
        names = list(self.modalities)
        for name in (*names, *self.config.head.outputs):
            if hasattr(nn.ModuleDict, name):
                raise ConfigError(f"the name {name!r} is reserved; choose another one for this modality or task")
        self.config = self.config.of_depth(self.backbone.depth)
        fusion = self.config.fusion
        if not self.config.head.outputs:
            raise ConfigError("model.head: give classes (one task) or tasks (several)")
        drop = self.config.patch_drop
        self.streams = nn.ModuleDict(
            {
                n: Stream(
                    m.tokenizer(self.backbone.dim),
                    self.backbone,
                    self.config.pool == "cls",
                    drop.get(n, 0.0) if isinstance(drop, dict) else drop,
                )
                for n, m in self.modalities.items()
            }
        )
        strategy = registry().fusion_class(fusion.strategy)
        self.fusion: Fusion = strategy(fusion, self.backbone, names, **fusion.options)
        self.blocks = self._make_blocks(names)
        self.head = Head(self.config.head, self.backbone, self.config.pool, names)
        self.saved_config = portable(self.config)
        self.never_trained = frozenset(name for name, p in self.named_parameters() if not p.requires_grad)
        self._never_training = [module for module in self.modules() if not module.training]

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; what a plugin has put into evaluation mode when it made it stays there."""
        super().train(mode)
        for module in self._never_training:
            module.training = False
        return self

    def _make_blocks(self, names: list[str]) -> nn.ModuleDict:
        """Set of blocks -> layer -> block; only the blocks that are used exist."""
        depth, first = self.backbone.depth, self.config.fusion.first
        layers = {SHARED: range(depth)} if self.config.shared_encoder else {name: range(depth) for name in names}
        if self.fusion.joint and not self.config.shared_encoder:
            layers = {name: range(first) for name in names} | {JOINT: range(first, depth)}
        rate = self.config.drop_path / max(depth - 1, 1)
        return nn.ModuleDict(
            {
                key: nn.ModuleDict({str(i): Block(self.backbone, self.config, rate * i) for i in indices})
                for key, indices in layers.items()
            }
        )

    def blocks_of(self, layer: int) -> dict[str, Any]:
        """Name (or `JOINT`, where the strategy runs it) -> the block of `layer`, checkpointed if configured."""
        index, found = str(layer), {}
        joint = self.fusion.joint and layer >= self.config.fusion.first
        # in evaluation without exchange each stream runs through the joint blocks by itself
        for name in [JOINT] if joint and layer >= self.first_fused else self.modalities:
            key = SHARED if self.config.shared_encoder else JOINT if joint else name
            block = self.blocks[key][index]  # type: ignore[index]
            found[name] = _checkpointed(block) if self.config.checkpointing and self.training else block
        return found

    def forward(
        self,
        inputs: Inputs,
        present: Mapping[str, Tensor] | None = None,
        return_intermediates: bool = False,
        transform: TokenTransform | None = None,
        start: int | None = None,
    ) -> Prediction:
        """Classifies a batch.

        Args:
            inputs: name -> the tokenizer's input, or (input, mask); any non-empty subset of the modalities. Never
                changed.
            present: name -> bool [B], whether a sample has the modality; None: all samples have all of `inputs`.
            return_intermediates: record tokens, bottlenecks, queries and keys of every layer.
            transform: applied to the tokens before class token and positions are added (mixup).
            start: `inputs` are streams as they enter this layer (the depth: the head), which were computed before; what
                is embedded and computed below it is left out.

        Raises:
            ValueError: for no input at all, an unknown modality, or one that `present` leaves out.
        """
        if start is not None:
            streams = {name: Tokens(*given) for name, given in inputs.items()}
            return self.encode(streams, present, start, return_intermediates)
        embedded = self.embed(inputs, transform, present)
        return self.encode(embedded, present, return_intermediates=return_intermediates)

    def embed(
        self,
        inputs: Inputs,
        transform: TokenTransform | None = None,
        present: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tokens]:
        """Inputs -> streams as they enter the first block, in the model's order of modalities.

        Arguments and errors are those of `forward`. What stands in for an absent sample may be anything: it is blanked,
        since not even zero times not-a-number is zero.
        """
        for name in inputs:
            if name not in self.modalities:
                raise ValueError(unknown("modality", name, self.modalities))
        if not inputs:
            raise ValueError(f"no inputs; expected some of {list(self.modalities)}")
        if present is not None and (unsaid := [name for name in inputs if name not in present]):
            raise ValueError(f"`present` must name every modality of the inputs; it leaves out {unsaid}")
        tokens = {}
        for name in self.modalities:
            if name in inputs:
                given = inputs[name]
                x, mask = given if isinstance(given, tuple) else (given, None)
                if present is not None:
                    x = torch.where(present[name].reshape(-1, *[1] * (x.dim() - 1)), x, 0)
                tokens[name] = self._embedded(name, self.stream(name).tokenizer, x, mask)
        if transform is not None:
            tokens = transform(tokens)
        return {name: self._embedded(name, self.stream(name), t) for name, t in tokens.items()}

    def _embedded(self, name: str, part: nn.Module, *inputs: Any) -> Tokens:
        """What a part of modality `name`'s stream makes of its inputs; an error tells whose it is."""
        try:
            tokens: Tokens = part(*inputs)
            return tokens
        except MBTError:
            raise
        except Exception as error:
            if unfilled := self._unfilled(name):
                raise ConfigError(f"{', '.join(unfilled)}: still 'auto', and its tokenizer fails: {error}") from error
            if isinstance(error, ValueError):
                raise ValueError(f"{name}: {error}") from error
            error.add_note(f"while {name!r} was embedded")
            raise

    def _unfilled(self, name: str, before: bool = False) -> list[str]:
        """Settings of a modality still at ``auto``; `before` the model is made, those it cannot be made without."""
        config = self.config.modalities[name]
        spared = config.of_preprocessor if before else ()
        return [f"modalities.{name}.{field}" for field in config.auto_fields() if field not in spared]

    def stream(self, name: str) -> Stream:
        """Modality `name`'s tokenizer, class token and positions."""
        found = self.streams[name]
        assert isinstance(found, Stream)
        return found

    @property
    def first_fused(self) -> int:
        """The first layer with exchange, as the model stands (training or evaluation)."""
        alone = not self.training and not self.config.fusion.eval_bottlenecks
        return self.backbone.depth if alone else self.config.fusion.first

    def encode_alone(self, embedded: Mapping[str, Tokens]) -> dict[str, Tokens]:
        """Runs the layers below the fusion layer: each modality's result depends on that modality only."""
        return self.run_layers(embedded, None, range(self.first_fused))

    def run_layers(
        self,
        streams: Mapping[str, Tokens],
        present: Mapping[str, Tensor] | None,
        layers: range,
        records: list[LayerRecord] | None = None,
    ) -> dict[str, Tokens]:
        """Runs consecutive layers, which may end, but not begin, among the fused ones; `records` receives theirs."""
        masks = {name: t.mask for name, t in streams.items()}
        x = {name: t.x for name, t in streams.items()}
        first = self.first_fused
        state: Any = None
        for layer in layers:
            blocks = self.blocks_of(layer)
            record: dict[str, list[Attended]] | None = None if records is None else {}
            if layer == first:
                state = self.fusion.start(x)
            if layer < first:
                x = run_alone(blocks, x, masks, record)
            else:
                x, state = self.fusion.layer(layer, blocks, x, state, masks, present, record)
            if records is not None and record is not None:
                alone = {n: [(n, y.shape[1])] for n, y in x.items()}
                sources = alone if layer < first else {n: self.fusion.sources(x, n) for n in x}
                records.append(LayerRecord(dict(x), record, sources, self.fusion.bottlenecks_of(state)))
        return {name: Tokens(y, masks[name]) for name, y in x.items()}

    def encode(
        self,
        embedded: Mapping[str, Tokens],
        present: Mapping[str, Tensor] | None = None,
        start: int = 0,
        return_intermediates: bool = False,
    ) -> Prediction:
        """Runs the blocks from layer `start` (at most `first_fused`, or the depth: none), and the head."""
        records: list[LayerRecord] | None = [] if return_intermediates else None
        if self.training and self.config.fusion.exchange_drop > 0 and len(embedded) > 1:
            last = self._with_exchange_dropped(embedded, present, start)
        else:
            last = self.run_layers(embedded, present, range(start, self.backbone.depth), records)
        streams, masks = {name: t.x for name, t in last.items()}, {name: t.mask for name, t in last.items()}
        out = self.head(streams, masks, present, self.prefix)
        single = self.config.head.tasks is None
        return Prediction(
            out.logits[DEFAULT_TASK] if single else out.logits,
            {n: by_task[DEFAULT_TASK] if single else by_task for n, by_task in out.modality_logits.items()},
            out.tokens,
            out.embedding,
            out.modality_embeddings,
            records,
        )

    def _with_exchange_dropped(
        self, embedded: Mapping[str, Tokens], present: Mapping[str, Tensor] | None, start: int
    ) -> dict[str, Tokens]:
        """Runs the layers from `start` on, the fused ones stream by stream for the first examples of the batch.

        Batches are shuffled: so these are random ones. How many is `exchange_drop` in expectation; one example at least
        exchanges, so that the strategy's own parameters are part of every step.
        """
        batch = next(iter(embedded.values())).x.shape[0]
        dropped = self.config.fusion.exchange_drop * batch + float(torch.rand(()))
        count = min(int(dropped), batch - 1)
        if count == 0:
            return self.run_layers(embedded, present, range(start, self.backbone.depth))
        first, alone = self.first_fused, dict[str, Tokens]()
        lower = self.run_layers(embedded, present, range(start, first))
        fused = range(max(start, first), self.backbone.depth)
        for name, tokens in lower.items():
            alone |= self.run_layers({name: _rows(tokens, slice(count))}, None, fused)
        rest = slice(count, None)
        others = None if present is None else {name: values[rest] for name, values in present.items()}
        exchanged = self.run_layers({name: _rows(tokens, rest) for name, tokens in lower.items()}, others, fused)
        return {
            name: Tokens(torch.cat((alone[name].x, exchanged[name].x)), tokens.mask) for name, tokens in lower.items()
        }

    @property
    def prefix(self) -> int:
        """Number of class and register tokens that lead each stream."""
        return int(self.config.pool == "cls") + self.backbone.registers

    def output_names(self, task: str) -> list[str]:
        """Of a task's outputs: its classes, ``class_0`` and so on if they have no names; of a regression that has none,
        the task's name, or ``size 1``, ``size 2`` and so on."""
        count, names = self.config.head.outputs[task], self.classes.get(task)
        if names:
            return names
        if self.config.head.kind_of(task) == "regression":
            return [task] if count == 1 else [f"{task} {i + 1}" for i in range(count)]
        return [f"class_{i}" for i in range(count)]

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes ``config.json``, ``model.safetensors`` and ``files/`` that settings name, atomically each.

        Raises:
            DataError: if one of those files is gone, or has changed since the model was made.
            MBTError: if something cannot be written.
        """
        folder = Path(folder)
        copy_attached(self.config, self.saved_config, folder)
        content = {"model": self.saved_config, "classes": self.classes}
        write_atomically(folder / "config.json", lambda p: p.write_text(json.dumps(content, indent=1) + "\n"))
        write_safetensors(folder / "model.safetensors", self.state_dict())

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Uploads what `save_pretrained` writes; `Run.push_to_hub` adds the configuration and a model card.

        Options, errors and the returned address are those of `mbt_core.io.hub.upload`.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(Path(folder), repo, **options)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> MBT:
        """Loads a folder that `save_pretrained` or a run wrote, or a repository of the Hugging Face hub.

        Args:
            source: a folder, which wins, or ORG/NAME on the hub.
            options: for the hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, as in `mbt_core.io.hub`.

        Raises:
            DataError: if there is no such folder or repository, or a file is missing or not what it should be.
            MBTError: if the hub cannot be reached.
        """
        folder = locate(source, **options)
        content = read_json(folder / "config.json")
        if not isinstance(content, dict) or "model" not in content:
            raise DataError(f"{folder / 'config.json'}: expected the keys model and classes of a saved model")
        weights = folder / "model.safetensors"
        try:
            config = validate(MBTConfig, find_attached(content["model"], folder))
            check_sizes(config, read_shapes(weights), str(weights))
            model = cls(config)
        except ConfigError as error:
            raise DataError(f"{folder / 'config.json'}: {error}") from None
        except (RuntimeError, TypeError, OverflowError) as error:  # as torch refuses sizes
            reason = str(error).partition("\n")[0]
            raise DataError(f"{folder / 'config.json'}: no model of these sizes can be made: {reason}") from error
        model.classes = _checked_classes(content.get("classes", {}), model.config.head, folder / "config.json")
        model.load_weights(read_safetensors(weights), str(weights))
        return model

    def load_weights(self, state: Mapping[str, Tensor], source: str) -> None:
        """Loads a complete state. Raises `DataError` that lists what does not fit."""
        self.check_shapes({key: list(value.shape) for key, value in state.items()}, source)
        self.load_state_dict(dict(state))

    def check_shapes(self, shapes: Mapping[str, list[int]], source: str) -> None:
        """Raises `DataError` that lists what does not fit, unless these are the shapes of a complete state."""
        own = {key: list(value.shape) for key, value in self.state_dict().items()}
        problems = [f"missing {key}" for key in own if key not in shapes]
        problems += [f"unknown {key}" for key in shapes if key not in own]
        problems += [
            f"{key} is {shapes[key]}, expected {shape}"
            for key, shape in own.items()
            if key in shapes and shapes[key] != shape
        ]
        if problems:
            more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise DataError(f"{source} does not fit this model: {'; '.join(problems[:5])}{more}")


def check_sizes(config: MBTConfig, shapes: Mapping[str, list[int]], source: str) -> None:
    """Raises `DataError` if a model of `config` has other tensors than a file of weights, before it takes memory.

    Args:
        config: of the model; somebody else may have written it.
        shapes: of the file's tensors.
        source: the file, for messages.
    """
    try:
        with torch.device("meta"):
            model = MBT(config)
    except MBTError:
        raise
    except (
        Exception
    ):  # a tokenizer of a plugin that needs values of its tensors; what is wrong is said where it is made
        return
    model.check_shapes(shapes, source)


def _checked_classes(classes: Any, head: HeadConfig, source: Path) -> dict[str, list[str]]:
    """The names of classes of a saved model. Raises `DataError` unless a task has one for each output, or none."""
    if not isinstance(classes, dict):
        raise DataError(f"{source}: classes={classes!r}; expected task -> names of its classes")
    for task, names in classes.items():
        size = head.outputs.get(task)
        if size is None:
            raise DataError(f"{source}: classes of {task!r}, a task that the model has not ({', '.join(head.outputs)})")
        listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not listed or len(names) not in (0, size):
            came = f"{len(names)} names" if listed else repr(names)
            raise DataError(f"{source}: classes of {task!r}: {came}; expected {size}, as its head has outputs")
    return classes


def run_alone(
    blocks: Mapping[str, Any], streams: Mapping[str, Tensor], masks: Mapping[str, Any], record: Any
) -> dict[str, Tensor]:
    """One layer without exchange."""
    return {n: blocks[n](x, mask=masks[n], record=recorder(record, n)) for n, x in streams.items()}


def _rows(tokens: Tokens, rows: slice) -> Tokens:
    return Tokens(tokens.x[rows], None if tokens.mask is None else tokens.mask[rows])


def _checkpointed(block: nn.Module) -> Callable[..., Tensor]:
    def run(x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, record: Any = None) -> Tensor:
        if record is not None:  # the backward pass runs the block again, which would record again
            return block(x, context, mask, record)
        return checkpoint(block, x, context, mask, record, use_reentrant=False)

    return run
