"""What a prediction rests on: attention led back from the pooled tokens to the inputs, through every kind of fusion.

Relevance is a row per prediction over all tokens. It is led down layer by layer, and the rows of attention it meets are
computed from queries and keys a few at a time: memory grows with tokens times layers, never with tokens squared.

Shapes: B batch, Q predictions, N tokens of a stream with its P prefix tokens, K keys, Z bottlenecks, H heads, E head
width, D = H * E, M modalities, T layers and one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from mbt_core.analysis.explain.accounted import check_accounted
from mbt_core.errors import ConfigError, MBTError, unknown
from mbt_core.evaluate.evaluator import FUSED
from mbt_core.modality.tokens import Tokens
from mbt_core.model import MBT, Prediction
from mbt_core.model.block import Attention, Block
from mbt_core.model.fusion.base import BOTTLENECKS, JOINT, LayerRecord, Masks, Presence, Rows, trace_alone
from mbt_core.model.loss import by_task
from mbt_core.model.mbt import Inputs

Method = Literal["contributions", "rollout", "last", "gradient"]
METHODS: tuple[Method, ...] = get_args(Method)
DEFAULT: Method = "contributions"
CHUNK = 2**22
"""Most attention weights that exist at a time, over batch and heads."""


@dataclass(frozen=True)
class Relevance:
    """What predictions rest on: non-negative; all of a prediction adds up to 1, or to 0 where its modality is absent.

    Args:
        predictions: modalities with logits of their own, in order; with pool ``mean-joint`` only `FUSED`.
        tokens: modality -> [B, Q, P + N], class and register tokens first.
        bottlenecks: [B, Q, Z], what rests on the bottleneck tokens as they start; Z = 0 without any.
        shares: [T, B, Q, M + 1], the share of each modality's tokens, and of the bottlenecks: in the last entry at the
            output of the last layer, in the one before it at that layer's input, and so on down to where `tokens` are:
            the input of the first layer (of the last one for the method ``last``).
        prefix: P.
    """

    predictions: tuple[str, ...]
    tokens: dict[str, Tensor]
    bottlenecks: Tensor
    shares: Tensor
    prefix: int

    def patches(self, modality: str, prediction: str = FUSED) -> Tensor:
        """[B, N]: the part of `of` that rests on a modality's own tokens."""
        return self.of(prediction, self.tokens[modality])[:, self.prefix :]

    def of(self, prediction: str, rows: Tensor) -> Tensor:
        """One prediction's part of a field [..., Q, X]; for `FUSED`, a mean of logits, the mean of those present."""
        if prediction in self.predictions:
            return rows[..., self.predictions.index(prediction), :]
        present_B = self.shares[-1].sum(-1).round().sum(-1)
        return rows.sum(-2) / present_B.clamp(min=1)[:, None]


def trace_attention(
    model: MBT,
    inputs: Inputs,
    present: Mapping[str, Tensor] | None = None,
    *,
    method: Method = DEFAULT,
    task: str | None = None,
    classes: Tensor | None = None,
) -> tuple[Prediction, Relevance]:
    """Runs a model, and leads its attention back from each prediction's pooled tokens to the inputs.

    - ``contributions``: attention makes of a token the sum of its own vector and of one from each key. Each counts by
      its projection on the sum, as far as it is positive, and all of a token add up to 1. So neither the residual nor
      the heads need a weight, and a key with nothing to say counts for nothing, however much it is looked at (the
      parts of Kobayashi et al., arXiv 2109.07152; led down layer by layer as by Ferrando et al., arXiv 2203.04212).
    - ``rollout``: half the mean over heads, half identity (Abnar & Zuidema, arXiv 2005.00928).
    - ``last``: the last layer's attention alone, mean over heads.
    - ``gradient``: identity plus the mean over heads of the positive part of attention times its gradient, for one
      class of each prediction (Chefer et al., arXiv 2103.15679), normalised at the end.

    Args:
        model: in evaluation mode.
        inputs: as of `MBT.forward`.
        present: name -> bool [B]; None: all.
        method: one of `METHODS`.
        task: of ``gradient``; by default the first.
        classes: of ``gradient``, int64 [B]; by default what the fused prediction ranks first.

    Raises:
        ConfigError: for an unknown method or task.
        MBTError: if the fusion strategy takes information on ways that its `trace` does not lead back on.
    """
    if method not in METHODS:
        raise ConfigError(f"method: {unknown('method', method, METHODS)}")
    assert not model.training
    tapping = method in ("contributions", "gradient")
    tapped = [m for m in model.blocks.modules() if isinstance(m, Block)] if tapping else []
    with torch.set_grad_enabled(tapping), _Taps(tapped) as taps:
        embedded = {name: Tokens(t.x.detach(), t.mask) for name, t in model.embed(inputs, present=present).items()}
        for x, _ in embedded.values():
            x.requires_grad_(tapping)
        prediction = model.encode(embedded, present, return_intermediates=True)
        starts = _starts(model, embedded, present)
        slopes = (
            taps.slopes(_objectives(model, prediction, list(starts), task, classes)) if method == "gradient" else ()
        )
    with torch.no_grad():
        masks = {name: t.mask for name, t in embedded.items()}
        layers = [_attentions(record, masks, present) for record in prediction.intermediates or ()]
        if tapped and len(taps.values) != sum(map(len, layers)):
            name = model.config.fusion.strategy
            raise MBTError(f"the fusion strategy {name!r} runs blocks without `record`: their attention is not known")
        entering = [{name: t.x for name, t in embedded.items()}, *(r.tokens for r in prediction.intermediates or ())]
        sources = [{key: a.sources for key, a in x.items()} for x in layers]
        check_accounted(model, entering[model.first_fused], masks, present, sources)
        if method == "contributions":
            layers = taps.add_to(layers, *taps.contributions())
        if method == "gradient":  # each prediction meets gradients of its own
            parts = [
                _descend(model, taps.add_to(layers, slope), _side_by_side([start]), present, method)
                for start, slope in zip(starts.values(), slopes, strict=True)
            ]
        else:
            parts = [_descend(model, layers, _side_by_side(list(starts.values())), present, method)]
        rows = _side_by_side([rows for rows, _ in parts])
        shares = torch.cat([shares for _, shares in parts], -2)
    total = sum(x.sum(-1, keepdim=True) for x in rows.values())
    rows = {name: x / torch.as_tensor(total).clamp(min=1e-30) for name, x in rows.items()}
    bottlenecks = rows.pop(BOTTLENECKS, next(iter(rows.values()))[..., :0])
    return prediction, Relevance(tuple(starts), rows, bottlenecks, shares, model.prefix)


def _side_by_side(rows: Sequence[Rows]) -> Rows:
    return {name: torch.cat([x[name] for x in rows], 1) for name in rows[0]}


def _starts(model: MBT, embedded: Mapping[str, Tokens], present: Presence) -> dict[str, Rows]:
    """Prediction -> what the head pools of each stream's last output, [B, 1, N]: a class token, or a mean."""
    pooled = {}
    for name, (x_BND, mask_BN) in embedded.items():
        here = x_BND.new_zeros(x_BND.shape[:2])
        here[:, slice(1) if model.config.pool == "cls" else slice(model.prefix, None)] = 1
        if mask_BN is not None:
            here = here * mask_BN
        pooled[name] = here[:, None] if present is None else here[:, None] * present[name][:, None, None]
    if model.config.pool == "mean-joint":
        total = torch.cat(list(pooled.values()), -1).sum(-1, keepdim=True)
        return {FUSED: {name: x / total.clamp(min=1) for name, x in pooled.items()}}
    return {
        name: {n: x / x.sum(-1, keepdim=True).clamp(min=1) if n == name else 0 * x for n, x in pooled.items()}
        for name in pooled
    }


@dataclass(frozen=True)
class _Attention:
    """One attention of a layer, row by row.

    Args:
        queries: [B, H, N, E].
        keys: [B, H, K, E]; the first N are the queries' own tokens.
        mask: bool [B, K] of what is attended to.
        sources: whose tokens the keys are.
        slope: values [B, H, K, E], and the gradient of what is explained with respect to their mixture [B, H, N, E].
        own: [B, N], what each query's own vector contributes beside its attention.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor
    sources: list[tuple[str, int]]
    slope: tuple[Tensor, Tensor] | None = None
    own: Tensor | None = None

    def lead(self, rows_BQN: Tensor, method: Method) -> Rows:
        """Rows over the queries -> rows over the keys."""
        B, H, N, _ = self.queries.shape
        K = self.keys.shape[2]
        led_BQK = rows_BQN.new_zeros(*rows_BQN.shape[:2], K)
        size = max(1, CHUNK // (B * H * K))
        for part in (slice(i, i + size) for i in range(0, N, size)):
            if rows_BQN[..., part].any():
                led_BQK += rows_BQN[..., part] @ self._weights(part).to(rows_BQN.dtype)
        if method == "rollout":
            led_BQK *= 0.5
        if method in ("rollout", "gradient"):
            led_BQK[..., :N] += rows_BQN * (0.5 if method == "rollout" else 1)
        return dict(zip((n for n, _ in self.sources), led_BQK.split([k for _, k in self.sources], -1), strict=True))

    def _weights(self, part: slice) -> Tensor:
        """Some queries' rows of attention, as the method weighs heads: [B, part, K]."""
        q, k = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (self.queries[:, :, part], self.keys))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(~self.mask[:, None, None], -torch.inf).softmax(-1)
        if self.slope is not None:
            values, gradient = self.slope
            weights = weights * (gradient[:, :, part] @ values.transpose(-1, -2))
            if self.own is not None:
                return _with_own(weights.sum(1), self.own, part)
            weights = weights.clamp(min=0)
        return weights.mean(1)


def _with_own(added_BnK: Tensor, own_BN: Tensor, part: slice) -> Tensor:
    """What keys add to some queries, and the queries' own vectors beside it: as shares, [B, n, K]."""
    own_Bn = own_BN[:, part]
    added_BnK.diagonal(part.start, 1, 2)[:, : own_Bn.shape[1]] += own_Bn
    shares_BnK = added_BnK.clamp(min=0)
    return shares_BnK / shares_BnK.sum(-1, keepdim=True).clamp(min=1e-30)


def _attentions(record: LayerRecord, masks: Masks, present: Presence) -> dict[str, _Attention]:
    """Set of blocks -> its attention in one layer, in the order of the calls."""
    found = {}
    for key, attended in record.attended.items():
        if len(attended) != 1 or not (key == JOINT or key in record.sources):
            raise MBTError(
                f"{len(attended)} attentions are recorded of {key!r} in a layer; what a prediction rests on is known "
                "where a fusion strategy runs each stream's block once, and no others with its `record`"
            )
        ((q, k),) = attended
        sources = next(iter(record.sources.values())) if key == JOINT else record.sources[key]
        if sum(number for _, number in sources) != k.shape[2]:
            raise MBTError(
                f"{key!r} attends to {k.shape[2]} keys: the fusion strategy has to define `sources` for them"
            )
        visible = []
        for name, number in sources:
            real = masks.get(name)
            if real is None or real.shape[1] != number:  # keys that a strategy has made of a stream's tokens
                real = q.new_ones(q.shape[0], number, dtype=torch.bool)
            hidden = present is not None and name not in (key, BOTTLENECKS)
            visible.append(real & present[name][:, None] if hidden else real)  # type: ignore[index]
        mask = torch.cat(visible, 1)
        found[key] = _Attention(q, k, mask | ~mask.any(1, keepdim=True), sources)
    return found


def _descend(
    model: MBT, layers: Sequence[Mapping[str, _Attention]], rows: Rows, present: Presence, method: Method
) -> tuple[Rows, Tensor]:
    """Leads rows over the last layer's output down, and says where they are on the way: `Relevance.shares`."""
    order = [*rows, BOTTLENECKS]
    count = next((n for a in layers[-1].values() for name, n in a.sources if name == BOTTLENECKS), 0)
    if count:
        first = next(iter(rows.values()))
        rows = rows | {BOTTLENECKS: first.new_zeros(*first.shape[:2], count)}
    shares = [_shares(rows, order)]
    for index in reversed(range(len(layers))):

        def attend(name: str, x: Tensor, layer: Mapping[str, _Attention] = layers[index]) -> Rows:
            return layer[name].lead(x, method)

        # below the fused layers, the bottlenecks are not there yet
        fused = index >= model.first_fused
        led = model.fusion.trace(rows, attend, present) if fused else rows | trace_alone(rows, attend)
        rows = {name: led[name] for name in order if name in led}
        shares.append(_shares(rows, order))
        if method == "last":
            break
    return rows, torch.stack(shares[::-1])


def _shares(rows: Rows, order: Sequence[str]) -> Tensor:
    none = next(iter(rows.values())).sum(-1) * 0
    share = torch.stack([rows[name].sum(-1) if name in rows else none for name in order], -1)
    return share / share.sum(-1, keepdim=True).clamp(min=1e-30)


def _objectives(
    model: MBT, prediction: Prediction, names: Sequence[str], task: str | None, classes: Tensor | None
) -> list[Tensor]:
    """What each prediction says about the class, summed over the batch; of a number in its deviations."""
    fused = by_task(prediction.logits)
    task = next(iter(fused)) if task is None else task
    if task not in fused:
        raise ConfigError(f"task: {unknown('task', task, fused)}")
    classes_B = fused[task].argmax(1) if classes is None else classes
    scale = model.config.head.scale_of(task)
    logits = [prediction.logits if name == FUSED else prediction.modality_logits[name] for name in names]
    chosen = [by_task(x)[task].gather(1, classes_B[:, None]) for x in logits]
    # the unit of a number must not decide how much attention weighs beside the token itself
    return [(x if scale is None else x / x.new_tensor(scale.std)[classes_B, None]).sum() for x in chosen]


class _Taps:
    """Notes of every block of a forward pass its input, its attention's values, their mixture, and what comes of it."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks, self.hooks = blocks, ExitStack()
        self.inputs: list[Tensor] = []
        self.values: list[Tensor] = []
        self.mixed: list[Tensor] = []
        self.updates: list[Tensor] = []

    def __enter__(self) -> Self:
        for block in self.blocks:
            for hook in (
                block.register_forward_pre_hook(lambda _, x: self.inputs.append(x[0])),
                block.attn.register_forward_pre_hook(self._note_values),
                block.attn.proj.register_forward_pre_hook(lambda _, x: self.mixed.append(x[0])),
                block.ls1.register_forward_hook(lambda _, x, update: self.updates.append(update)),
            ):
                self.hooks.enter_context(hook)
        return self

    def __exit__(self, *_: object) -> None:
        self.hooks.close()

    @torch.no_grad()
    def _note_values(self, attention: Attention, given: tuple[Any, ...]) -> None:
        x_BND, context_BMD = given[:2]
        keys_BKD = x_BND if context_BMD is None else torch.cat((x_BND, context_BMD), 1)
        weight, bias = attention.qkv.weight.chunk(3)[2], attention.qkv.bias
        values_BKD = F.linear(keys_BKD, weight, None if bias is None else bias.chunk(3)[2])
        self.values.append(values_BKD.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2))

    def slopes(self, objectives: Sequence[Tensor]) -> list[list[Tensor]]:
        """For each objective, its gradient with respect to each attention's mixture, [B, H, N, E]."""
        return [
            self._per_head(torch.autograd.grad(objective, self.mixed, retain_graph=True, materialize_grads=True))
            for objective in objectives
        ]

    def contributions(self) -> tuple[list[Tensor], list[Tensor]]:
        """Of each attention: the slope of what comes out along itself, [B, H, N, E], and the input's part in that."""
        out = [(x + update).detach() for x, update in zip(self.inputs, self.updates, strict=True)]
        each = zip(self.updates, self.mixed, out, strict=True)
        slopes = [torch.autograd.grad(update, mixed, direction)[0] for update, mixed, direction in each]
        return self._per_head(slopes), [(x * y).sum(-1) for x, y in zip(self.inputs, out, strict=True)]

    def _per_head(self, mixtures: Sequence[Tensor]) -> list[Tensor]:
        heads = [v.shape[1] for v in self.values]
        return [g.unflatten(-1, (h, -1)).transpose(1, 2) for g, h in zip(mixtures, heads, strict=True)]

    def add_to(
        self, layers: Sequence[Mapping[str, _Attention]], slopes: Sequence[Tensor], own: Sequence[Tensor | None] = ()
    ) -> list[dict[str, _Attention]]:
        """The same attentions, weighted by slopes."""
        found = iter(zip(self.values, slopes, own or (None,) * len(slopes), strict=True))

        def weighted(attention: _Attention) -> _Attention:
            values, slope, part = next(found)
            return replace(attention, slope=(values, slope), own=part)

        return [{key: weighted(attention) for key, attention in layer.items()} for layer in layers]
