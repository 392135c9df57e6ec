"""What the core itself provides through the hooks: fusion strategies and loggers."""

from __future__ import annotations

from mbt_core.plugins.hookspecs import FusionSpec, LoggerSpec, hookimpl


@hookimpl
def mbt_fusions() -> list[FusionSpec]:
    package = "mbt_core.model.fusion"
    return [
        FusionSpec("bottleneck", f"{package}.bottleneck:Bottleneck", "MBT, symmetric: z is the streams' mean"),
        FusionSpec("bottleneck-sequential", f"{package}.bottleneck:SequentialBottleneck", "MBT, updated in order"),
        FusionSpec(
            "cross-attention",
            f"{package}.attention:CrossAttention",
            "own queries, everyone's keys and values",
        ),
        FusionSpec("self-attention", f"{package}.attention:SelfAttention", "all tokens in one sequence"),
        FusionSpec("late", f"{package}.late:Late", "no exchange; logits are averaged"),
    ]


@hookimpl
def mbt_loggers() -> list[LoggerSpec]:
    return [
        LoggerSpec("jsonl", "mbt_core.training.loggers:JsonLines"),
        LoggerSpec("tensorboard", "mbt_core.analysis.report.tensorboard:TensorBoard", "tensorboard", ("tensorboard",)),
    ]
