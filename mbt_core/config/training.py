"""How a model is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mbt_core.config.schema import Auto, StrictModel
from mbt_core.errors import ConfigError, unknown
from mbt_core.plugins import registry

NonNegative = Annotated[float, Field(ge=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
LAST = "last"
"""In place of a metric that chooses the best weights: the last ones are taken."""


class TrainConfig(StrictModel):
    """Optimisation."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Decides initial weights, order, windows, augmentation, dropout."""
    steps: int | Auto | None = "auto"
    """Optimiser steps; ``auto``: enough for small data, passes over large data capped."""
    epochs: Annotated[float, Field(gt=0)] | Auto | None = None
    """Passes over the training split, in place of `steps`; ``auto``: by the number of clips, the work of a pass and the
    device (`mbt_core.training.fine_tuning`)."""
    batch_size: int | Auto = 64
    """Examples per optimiser step over all devices; ``auto``: the largest that fits."""
    accumulate: int = Field(1, ge=1)
    """Number of parts a batch is computed in, to save memory."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum (the paper) or AdamW."""
    lr: float = Field(0.5, gt=0)
    """Base learning rate."""
    momentum: Momentum = 0.9
    """Of SGD."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """Of AdamW."""
    weight_decay: float = Field(0.0, ge=0)
    """Not applied to biases, norms, class tokens, positions and bottlenecks."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps with linear warm-up (the paper: 2.5 of 50 epochs); cosine to zero after it."""
    clip_grad: float | None = Field(None, gt=0)
    """Largest global gradient norm."""
    precision: Literal["32", "bf16"] = "32"
    """Of the forward and backward pass but for the classifiers, whose logits are ranked; weights stay in fp32."""
    mixup: float = Field(0.0, ge=0)
    """Alpha of mixup's Beta distribution (paper 0.3, released models 0.5); 0: off."""
    mixup_per_modality: bool = False
    """One mixup weight per modality instead of one per batch."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Target * (1 - e) + e / classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weights of classes in the loss by their training rows. ``balanced``: of a single label, rows / (classes * rows of
    the class), in a weighted mean over the batch; of several, rows without / rows with a class, on its positives. All
    rows are seen equally often, unlike with ``data.sampler=balanced``."""
    modality_dropout: float | dict[str, float] = 0.0
    """Probability that a modality is left out of a training example; one always stays."""
    lr_factors: dict[str, NonNegative] = Field(default_factory=dict)
    """Factor on the learning rate of a modality's own parameters."""
    head_lr_factor: NonNegative = 1.0
    """Factor on the learning rate of the head, which starts afresh where the rest is pre-trained."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Factor on the learning rate per layer below the head."""
    tune: Literal["all", "fused", "head", "auto"] = "all"
    """What is trained: everything; from the fusion layer on; the classifier only; ``auto``: as much as the device has
    done in minutes (`mbt_core.training.fine_tuning`)."""
    freeze: list[str] = Field(default_factory=list)
    """Patterns (shell style) of parameter names that stay as they are."""
    cache_lower: bool | Auto = False
    """Compute what enters the first trained layer (with `tune` fused or head) once and keep it on disk; every clip is
    then read as in evaluation: its middle, without augmentation. ``auto``: where less than all is
    trained."""
    cache_limit: float = Field(50.0, gt=0)
    """Gigabytes that `cache_lower` may take."""
    eval_every: int | Auto = "auto"
    """Steps between evaluations on val; ``auto``: an epoch, at most 20 in a run."""
    monitor: str | Auto = "auto"
    """Metric that chooses the best weights, of equal ones those with the lower loss; ``auto``: mAP or top1, mean over
    tasks; ``last``: none does, the last weights are taken, and val only shows how the training went."""
    select: Literal["best", "latest"] = "best"
    """Which weights are taken: those of the ``best`` evaluation on val, or of the ``latest`` that is within two
    standard errors of the best, as a small val cannot tell these apart. Only top1 and top5 have standard errors; by
    other metrics, the best."""
    patience: int | None = Field(None, ge=1)
    """Evaluations without improvement after which training stops."""
    save_every: float = Field(60.0, gt=0)
    """Largest number of seconds between saved states."""
    log_every: int = Field(10, ge=1)
    """Steps between logged losses."""
    loggers: list[str] = Field(default_factory=lambda: ["jsonl"])
    """Which loggers run (`mbt plugins list` shows all)."""
    compile: bool = False
    """torch.compile each block."""

    @field_validator("precision", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value  # YAML reads 32 as a number

    @field_validator("loggers")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in registry().loggers:
                raise ValueError(unknown("logger", name, registry().loggers))
        return value

    @field_validator("steps", "batch_size", "eval_every")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if isinstance(value, int) and value < 1:
            raise ValueError("expected at least 1")
        return value

    @model_validator(mode="after")
    def _rates(self) -> TrainConfig:
        check_rates(self.modality_dropout, "train.modality_dropout")
        return self

    @model_validator(mode="after")
    def _something_to_wait_for(self) -> TrainConfig:
        if self.patience is not None and self.monitor == LAST:
            raise ConfigError(
                f"train.patience: {self.patience} evaluations without improvement of what? train.monitor is {LAST}; "
                "name a metric there, or leave patience out"
            )
        return self

    @model_validator(mode="after")
    def _nothing_drawn_below(self) -> TrainConfig:
        if self.cache_lower is True and self.mixup > 0:
            raise ConfigError(
                f"train.cache_lower: train.mixup={self.mixup:g} mixes tokens before the first layer, in every step "
                "anew; set train.mixup=0, or train.cache_lower=false"
            )
        return self


def check_rates(rates: float | dict[str, float], where: str) -> None:
    """Raises `ConfigError` for a rate outside [0, 1)."""
    for rate in rates.values() if isinstance(rates, dict) else [rates]:
        if not 0 <= rate < 1:
            raise ConfigError(f"{where}: expected 0 <= p < 1, got {rate}")
