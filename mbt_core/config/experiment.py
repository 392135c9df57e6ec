"""The experiment: everything that decides a run, as strict pydantic models. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from mbt_core.config.schema import Auto, ModalityConfig, Scale, StrictModel, validate
from mbt_core.config.training import NonNegative, TrainConfig, check_rates
from mbt_core.errors import ConfigError, unknown
from mbt_core.plugins import registry

TaskKind = Literal["single", "multilabel", "regression"]
MOST_CLASSES = 10_000_000
DEFAULT_TASK = "label"
"""The name of the task when only one is configured (`head.classes`)."""


class BackboneConfig(StrictModel):
    """Geometry of the transformer blocks, where no timm name is given."""

    dim: int = Field(128, gt=0, le=16_384)
    """Width D."""
    depth: int = Field(4, gt=0, le=256)
    """Number of blocks."""
    heads: int = Field(4, gt=0, le=1024)
    """Attention heads."""
    mlp: int | None = Field(None, gt=0, le=131_072)
    """Width of the MLP; 4 x dim if not given."""
    act: Literal["gelu", "gelu_tanh", "relu", "silu", "quick_gelu"] = "gelu"
    """Activation of the MLP; ``gelu_tanh`` is the reference's."""
    eps: float = Field(1e-6, gt=0)
    """Epsilon of the layer norms."""
    qkv_bias: bool = True
    """Whether query, key and value projections have a bias."""
    qk_norm: bool = False
    """Layer norm on queries and keys."""
    layer_scale: float | None = None
    """Initial value of LayerScale; None: none."""
    registers: int = Field(0, ge=0, le=4096)
    """Register tokens per stream (arXiv 2309.16588)."""
    embed_prefix: bool = True
    """Whether class and register tokens get a position embedding."""
    pre_norm: bool = False
    """A layer norm before the first block (CLIP)."""

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> BackboneConfig:
        if self.dim % self.heads:
            raise ConfigError(f"model.backbone: dim {self.dim} is not a multiple of heads {self.heads}")
        return self

    @property
    def mlp_width(self) -> int:
        return self.mlp or 4 * self.dim


class FusionConfig(StrictModel):
    """How the streams exchange information."""

    strategy: str = "bottleneck"
    """Name of the strategy (`mbt plugins list` shows all)."""
    layer: Annotated[int, Field(ge=0, le=256)] | Auto = 8
    """First fused layer: 0 is early fusion, the depth is late fusion; ``auto``: after two thirds of the depth."""
    bottlenecks: int = Field(4, gt=0, le=4096)
    """Number of bottleneck tokens B."""
    bottleneck_init: Literal["normal", "positions"] = "normal"
    """``normal``: N(0, 0.02), the paper; ``positions``: a pre-trained ViT's position embeddings, the reference."""
    eval_bottlenecks: bool = True
    """False: evaluation runs every stream alone, without exchange (the reference's ``test_with_bottlenecks``)."""
    exchange_drop: float = Field(0.0, ge=0, lt=1)
    """Share of a training batch whose streams exchange nothing: each learns from its own modality alone, and is good
    alone at test time, while none is left out as by ``train.modality_dropout``."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keywords for a strategy of a plugin."""

    @field_validator("strategy")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in registry().fusions:
            raise ValueError(unknown("fusion strategy", value, registry().fusions))
        return value

    @property
    def first(self) -> int:
        """`layer`. Raises `ConfigError` while it is ``auto``."""
        if self.layer == "auto":
            raise ConfigError("model.fusion.layer is still 'auto': it follows from the depth of model.backbone")
        return self.layer


class HeadConfig(StrictModel):
    """Classifiers. Give `classes` (one task) or `tasks` (several)."""

    classes: int | None = Field(None, gt=0, le=MOST_CLASSES)
    """Number of classes of the only task; filled from the data in a run."""
    tasks: dict[str, int] | None = None
    """Number of classes of each of several tasks, e.g. ``{verb: 97, noun: 300}``."""
    task: TaskKind | dict[str, TaskKind] = "single"
    """Kind of task, for all or for each."""
    loss: Literal["per-modality", "fused"] = "per-modality"
    """``per-modality``: mean over modalities of each one's loss (the reference); ``fused``: loss of the averaged
    logits, the only one for pool ``mean-joint``."""
    shared: bool = True
    """One final norm and classifier for all streams, or one each."""
    representation: int | None = Field(None, gt=0, le=131_072)
    """Width of a tanh layer before the classifier; None: no such layer."""
    task_weights: dict[str, NonNegative] = Field(default_factory=dict)
    """Weight of a task's loss; 1 if not given."""
    modality_weights: dict[str, NonNegative] = Field(default_factory=dict)
    """Weight of a modality's loss; 1 if not given."""
    scales: dict[str, Scale] | None = None
    """Regression task -> mean and deviation of its numbers, by which its loss is measured; predictions are in the
    numbers' own units. Filled from the data in a run; ``{}``: none."""
    huber_delta: float | None = Field(None, gt=0)
    """Of a regression: Huber loss in place of the squared error, so that outliers pull less: half the squared error up
    to this many standard deviations of the training data (those of `scales`; 1 is usual), linear beyond. None: off."""
    joint: dict[str, list[str]] = Field(default_factory=dict)
    """Metrics of several single tasks together, e.g. ``{action: [verb, noun]}``: right if all are."""

    @model_validator(mode="after")
    def _joint_of_single_tasks(self) -> HeadConfig:
        for name, members in self.joint.items():
            where = f"model.head.joint.{check_name(name, 'model.head.joint')}"
            known = self.tasks or {}
            if name in known:
                raise ConfigError(f"{where}: a task has that name already")
            if len(set(members)) < 2 or len(set(members)) < len(members):
                raise ConfigError(f"{where}: expected two or more different tasks, got {members}")
            for task in members:
                if known and task not in known:
                    raise ConfigError(f"{where}: {unknown('task', task, known)}")
                if self.kind_of(task) != "single":
                    raise ConfigError(f"{where}: task {task!r} is of kind {self.kind_of(task)!r}; expected single ones")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> HeadConfig:
        if self.classes is not None and self.tasks is not None:
            raise ConfigError(
                "model.head: both classes and tasks are given; use classes for one task, tasks for several"
            )
        if self.tasks is not None and not self.tasks:
            raise ConfigError("model.head.tasks: empty; expected TASK: number of classes")
        for name, count in (self.tasks or {}).items():
            check_name(name, "model.head.tasks")
            if count < 1:
                raise ConfigError(f"model.head.tasks.{name}: expected at least 1 class, got {count}")
            if count > MOST_CLASSES:
                raise ConfigError(f"model.head.tasks.{name}: expected at most {MOST_CLASSES:,} classes, got {count}")
        names = set(self.outputs) or None
        for key, given in (
            ("task", self.task if isinstance(self.task, dict) else {}),
            ("task_weights", self.task_weights),
            ("scales", self.scales or {}),
        ):
            for name in given:
                if names is not None and name not in names:
                    raise ConfigError(f"model.head.{key}: {unknown('task', name, names)}")
        for name, scale in (self.scales or {}).items():
            if self.kind_of(name) != "regression":
                raise ConfigError(f"model.head.scales.{name}: task {name!r} is {self.kind_of(name)!r}, no regression")
            if names is not None and len(scale.mean) != self.outputs[name]:
                raise ConfigError(
                    f"model.head.scales.{name}: {len(scale.mean)} numbers; the task has {self.outputs[name]} outputs"
                )
        return self

    @model_validator(mode="after")
    def _huber_of_a_regression(self) -> HeadConfig:
        kinds = set(self.task.values()) if isinstance(self.task, dict) else {self.task}
        if self.huber_delta is not None and "regression" not in kinds:
            raise ConfigError(
                f"model.head.huber_delta: expected a task of kind 'regression' to use it, got {self.task!r} as "
                "model.head.task; set that, or leave out huber_delta"
            )
        return self

    @property
    def outputs(self) -> dict[str, int]:
        """Task -> number of outputs; empty while unknown."""
        if self.tasks is not None:
            return dict(self.tasks)
        return {} if self.classes is None else {DEFAULT_TASK: self.classes}

    def kind_of(self, task: str) -> TaskKind:
        """The kind of a task."""
        return self.task.get(task, "single") if isinstance(self.task, dict) else self.task

    def scale_of(self, task: str) -> Scale | None:
        """What the numbers of a regression are measured by; None: they are taken as they are, as of other kinds."""
        return (self.scales or {}).get(task)


class ModelConfig(StrictModel):
    """The model, but for its modalities."""

    backbone: str | BackboneConfig = "vit_base_patch16_224"
    """A timm VisionTransformer's name, or the geometry itself; ``auto``: that of the weights in `pretrained`."""
    pretrained: str | dict[str, str | None] | None = None
    """Where initial weights come from: a timm name or a file or run, for all or one per modality."""
    shared_encoder: bool = False
    """One set of blocks for all streams, or one each."""
    pool: Literal["cls", "mean", "mean-joint", "auto"] = "cls"
    """Class token; mean over a stream's tokens; or mean over all tokens of all streams (the released models);
    ``auto``: the class token, unless the weights in `pretrained` have none."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth of the last block; grows linearly from 0 in the first."""
    drop_path_rescale: bool = True
    """Whether kept branches are divided by the probability of being kept; the reference does not."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on attention's output and in the MLP."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on attention weights."""
    patch_drop: float | dict[str, float] = 0.0
    """Share of a stream's patch tokens, drawn for each example, that training leaves out (arXiv 2212.00794); for all
    modalities or for each."""
    checkpointing: bool = False
    """Activation checkpointing per block: less memory, about a third more time."""
    fusion: FusionConfig = FusionConfig()
    """The fusion strategy."""
    head: HeadConfig = HeadConfig()
    """The classifiers."""

    @field_validator("backbone", mode="before")
    @classmethod
    def _backbone(cls, value: Any) -> Any:
        return validate(BackboneConfig, value, "model.backbone") if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        check_rates(self.patch_drop, "model.patch_drop")
        if self.pool == "mean-joint" and self.head.loss == "per-modality":
            if "loss" in self.head.model_fields_set:
                raise ConfigError(
                    "model.head.loss: 'per-modality' needs logits per modality, but model.pool 'mean-joint' has none; "
                    "set model.head.loss=fused, or model.pool=mean or cls"
                )
            self.head = self.head.model_copy(update={"loss": "fused"})
        if self.pool == "mean-joint" and not self.head.shared:
            raise ConfigError("model.head.shared: false needs logits per modality; set model.pool=mean or cls")
        if isinstance(self.backbone, BackboneConfig):
            self._check_layer(self.backbone.depth)
        return self

    def of_depth(self, depth: int) -> Self:
        """With what ``auto`` comes to in a model of `depth` blocks: the fusion layer, and the class token as pool.

        Raises:
            ConfigError: for a fusion layer above the depth.
        """
        self._check_layer(depth)
        update: dict[str, Any] = {"pool": "cls"} if self.pool == "auto" else {}
        if self.fusion.layer == "auto":
            update["fusion"] = self.fusion.model_copy(update={"layer": round(depth * 2 / 3)})
        return self.model_copy(update=update)

    def _check_layer(self, depth: int) -> None:
        if self.fusion.layer != "auto" and self.fusion.layer > depth:
            raise ConfigError(
                f"model.fusion.layer: {self.fusion.layer} is above the depth {depth}; expected 0 to {depth}"
            )


Modalities = dict[str, SerializeAsAny[ModalityConfig]]


def check_name(name: str, where: str) -> str:
    """A name of a modality instance or task: ``[a-z][a-z0-9_]*``. Raises `ConfigError`."""
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"{where}: the name {name!r} is not of the form [a-z][a-z0-9_]*")
    return name


def parse_modalities(value: Any) -> Any:
    """``{"left": {"kind": "x", ...}}`` or ``{"x": {...}}`` -> each kind's own configuration."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"modalities: expected NAME: settings, got {value!r}")
    if not value:
        raise ConfigError(f"modalities: none given; known kinds: {', '.join(sorted(registry().modalities)) or 'none'}")
    parsed = {}
    for name, settings in value.items():
        check_name(name, "modalities")
        if isinstance(settings, ModalityConfig):
            parsed[name] = settings
            continue
        if settings is not None and not isinstance(settings, Mapping):
            raise ConfigError(f"modalities.{name}: expected settings as KEY: VALUE, got {settings!r}")
        full = {"kind": name, **(settings or {})}
        try:
            config_class = registry().config_class(str(full["kind"]))
        except ConfigError as error:
            raise ConfigError(f"modalities.{name}: {error}") from None
        parsed[name] = validate(config_class, full, f"modalities.{name}")
    return parsed


class MBTConfig(ModelConfig):
    """A whole model: `ModelConfig` and its modalities, in the order of the streams."""

    modalities: Modalities
    """Name -> settings of a kind."""

    @field_validator("modalities", mode="before")
    @classmethod
    def _modalities(cls, value: Any) -> Any:
        return parse_modalities(value)

    @model_validator(mode="after")
    def _names(self) -> MBTConfig:
        for key, names in (
            ("head.modality_weights", self.head.modality_weights),
            ("pretrained", self.pretrained if isinstance(self.pretrained, dict) else {}),
            ("patch_drop", self.patch_drop if isinstance(self.patch_drop, dict) else {}),
        ):
            for name in names:
                if name not in self.modalities:
                    raise ConfigError(f"model.{key}: {unknown('modality', name, self.modalities)}")
        return self


class DataConfig(StrictModel):
    """Where examples come from and how they are read."""

    path: str | None = None
    """Manifest (CSV, Parquet, JSONL), folder with one sub-folder per class, or folder of shards (also by URL)."""
    dataset: str | None = None
    """A data set that makes itself on first use, in place of `path`."""
    root: str | None = None
    """What the manifest's paths are relative to; its own folder if not given."""
    confine: bool = False
    """Refuse paths that leave the root."""
    max_missing: float = Field(0.01, ge=0, le=1)
    """Share of a split's named files that may be missing or unreadable before the run stops."""
    val_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of train held out (by a hash of `id`) where there is no val split."""
    test_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the rows held out as test, class by class as `val_fraction` then is, where the data have no splits at
    all; 0: only val is held out."""
    group: str | None = None
    """A column whose values must not straddle splits (speaker, patient, recording)."""
    folds: int | None = Field(None, ge=2)
    """Cross-validation: number of folds of the train and val rows, about the same share of each class in all of them;
    spans of one file, and rows of one `group`, stay together. `mbt train --folds` trains them all."""
    fold: int = Field(0, ge=0)
    """Which fold is val, of `folds`."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the training rows used, nested: a smaller share is a subset of a larger one."""
    sync: bool = True
    """Whether the modalities' windows are at the same place of the part of a clip that all of them have, or each at its
    own of all that its modality has."""
    sampler: Literal["uniform", "balanced"] = "uniform"
    """``balanced`` weighs a row by the inverse frequency of its classes."""
    cache: Literal["none", "memory", "disk", "auto"] = "auto"
    """Keep decoded clips; ``auto`` keeps them in memory where they are small. The samples are the same."""
    workers: Annotated[int, Field(ge=0, le=512)] | Auto = "auto"
    """Reading processes; results do not depend on their number. 0: none, and a file that kills its reader ends the
    command."""
    timeout: float = Field(60.0, gt=0, le=1e6)
    """Seconds after which decoding one clip fails."""

    @model_validator(mode="after")
    def _fold_exists(self) -> DataConfig:
        if self.fold >= (self.folds or 1):
            raise ConfigError(f"data.fold: {self.fold}, but data.folds is {self.folds}; folds count from 0")
        return self


class EvaluateConfig(StrictModel):
    """Evaluation."""

    views: int = Field(1, ge=1, le=1000)
    """Windows per clip, spread uniformly over it (the paper: 4)."""
    average: Literal["logits", "probabilities"] = "logits"
    """What is averaged over views."""
    batch_size: int | None = Field(None, ge=1, le=1_000_000)
    """Clips per step; the training's if not given."""


class Experiment(StrictModel):
    """Everything that decides a run."""

    modalities: Modalities
    """Name -> settings of a kind, in the order of the streams."""
    model: ModelConfig = ModelConfig()
    """The model."""
    data: DataConfig = DataConfig()
    """The data."""
    train: TrainConfig = TrainConfig()
    """The training."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """The evaluation."""

    @field_validator("modalities", mode="before")
    @classmethod
    def _modalities(cls, value: Any) -> Any:
        return parse_modalities(value)

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        self.mbt_config()
        dropped = self.train.modality_dropout
        for key, names in (
            ("lr_factors", self.train.lr_factors),
            ("modality_dropout", dropped if isinstance(dropped, dict) else {}),
        ):
            for name in names:
                if name not in self.modalities:
                    raise ConfigError(f"train.{key}: {unknown('modality', name, self.modalities)}")
        if self.train.mixup_per_modality and (self.model.pool == "mean-joint" or self.model.head.loss == "fused"):
            raise ConfigError(
                "train.mixup_per_modality: each modality's labels are mixed by its own weight, which needs "
                "model.head.loss=per-modality and model.pool=cls or mean"
            )
        if self.train.class_weights == "balanced":
            self._check_class_weights()
        if self.model.head.modality_weights and self.model.head.loss == "fused":
            raise ConfigError(
                "model.head.modality_weights: they weigh each modality's own loss, which needs "
                "model.head.loss=per-modality and model.pool=cls or mean"
            )
        return self

    def _check_class_weights(self) -> None:
        if self.data.sampler == "balanced":
            raise ConfigError(
                "train.class_weights: data.sampler=balanced draws rare classes more often already, and with both they "
                "would count twice; set one of the two"
            )
        head = self.model.head
        tasks = head.outputs or ([] if isinstance(head.task, dict) else [DEFAULT_TASK])
        if tasks and all(head.kind_of(task) == "regression" for task in tasks):
            raise ConfigError("train.class_weights: expected a task with classes, got none but regression")

    def mbt_config(self) -> MBTConfig:
        """The configuration of the model alone."""
        given = self.model.model_fields_set & ModelConfig.model_fields.keys()
        fields = {name: getattr(self.model, name) for name in given}
        return MBTConfig(**fields, modalities=self.modalities)
