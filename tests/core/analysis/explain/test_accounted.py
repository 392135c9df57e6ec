"""Strategies that take information on ways of their own: explained if their `trace` knows them, else refused."""

import pytest
import torch
from torch import nn

from mbt_core import MBTError
from mbt_core.analysis.explain.rollout import METHODS, trace_attention
from mbt_core.model.block import Block
from mbt_core.model.fusion.attention import CrossAttention
from mbt_core.model.fusion.base import BOTTLENECKS, Fusion, add_up, recorder, trace_alone
from mbt_core.model.fusion.bottleneck import Bottleneck
from toy.models import build_tiny, inputs_for

pytestmark = pytest.mark.usefixtures("toys")


def mean_of_others(streams, name):
    """[B, 1, D]"""
    return torch.stack([x.mean(1) for other, x in streams.items() if other != name]).mean(0)[:, None]


class Alone(Fusion):
    """Every stream by itself, between two steps that the strategies below replace."""

    def before(self, index, streams):
        return streams

    def after(self, index, streams, new):
        return new

    def layer(self, index, blocks, streams, state, masks, present, record=None):
        given = self.before(index, streams)
        new = {n: blocks[n](x, mask=masks[n], record=recorder(record, n)) for n, x in given.items()}
        return self.after(index, streams, new), state


class Scaled(Alone):
    """What a block gives, token by token through something learned."""

    def after(self, index, streams, new):
        return {name: 0.7 * torch.nn.functional.layer_norm(x, x.shape[-1:]) for name, x in new.items()}


class MixesOutside(Alone):
    def after(self, index, streams, new):
        return {name: x + 0.5 * mean_of_others(streams, name) for name, x in new.items()}


class MixesWhatBlocksGive(Alone):
    def after(self, index, streams, new):
        return {name: x + 0.5 * mean_of_others(new, name) for name, x in new.items()}


class MixesBefore(Alone):
    def before(self, index, streams):
        return {name: x + 0.1 * mean_of_others(streams, name) for name, x in streams.items()}


class MixesOnlyInTheLastLayer(MixesOutside):
    def after(self, index, streams, new):
        return super().after(index, streams, new) if index == 2 else new


class GatedByOthers(Alone):
    def after(self, index, streams, new):
        return {name: x * mean_of_others(streams, name).mean(-1, keepdim=True).sigmoid() for name, x in new.items()}


class GatedWithoutGradient(Alone):
    """By a threshold, where no gradient would tell of it."""

    def after(self, index, streams, new):
        return {n: x * (1 + (mean_of_others(streams, n).sum(-1, keepdim=True) > 0).double()) for n, x in new.items()}


class KeepsItsTokens(Alone):
    def after(self, index, streams, new):
        return {name: x + streams[name] for name, x in new.items()}


class Skips(Fusion):
    def layer(self, index, blocks, streams, state, masks, present, record=None):
        return streams, state


class Cross(CrossAttention):
    """Attention to the others, and a way beside it: attention to a modality is no leave to take from it unseen."""

    def layer(self, index, blocks, streams, state, masks, present, record=None):
        new, state = super().layer(index, blocks, streams, state, masks, present, record)
        return {name: x + 0.5 * mean_of_others(streams, name) for name, x in new.items()}, state


class CrossBefore(CrossAttention):
    def layer(self, index, blocks, streams, state, masks, present, record=None):
        mixed = {name: x + 0.5 * mean_of_others(streams, name) for name, x in streams.items()}
        return super().layer(index, blocks, mixed, state, masks, present, record)


class Remembers(Alone):
    """Through its state, past the layers."""

    def layer(self, index, blocks, streams, state, masks, present, record=None):
        new, _ = super().layer(index, blocks, streams, state, masks, present, record)
        if state is not None:
            new = {name: x + state["memory"] for name, x in new.items()}
        return new, {"memory": mean_of_others(streams, "alpha"), "layer": index}


class StartsFromTokens(Bottleneck):
    def start(self, streams):
        return super().start(streams) + next(iter(streams.values())).mean(1, keepdim=True)


class Twice(Alone):
    def after(self, index, streams, new):
        return new

    def layer(self, index, blocks, streams, state, masks, present, record=None):
        new, state = super().layer(index, blocks, streams, state, masks, present, record)
        return super().layer(index, blocks, new, state, masks, present, record)


class WithoutRecord(Alone):
    def layer(self, index, blocks, streams, state, masks, present, record=None):
        return super().layer(index, blocks, streams, state, masks, present, None)


class Pools(Alone):
    """Queries that are no tokens."""

    def before(self, index, streams):
        return {name: x[:, :2] for name, x in streams.items()}

    def after(self, index, streams, new):
        return {n: torch.cat([y, streams[n][:, 2:]], 1) for n, y in new.items()}


class OwnBlocks(Alone):
    """Blocks of its own that read the other streams."""

    recorded = False

    def layer(self, index, blocks, streams, state, masks, present, record=None):
        new, state = super().layer(index, blocks, streams, state, masks, present, record)
        seen = recorder(record, "alpha") if self.recorded else None
        return {name: self.extra(x, mean_of_others(streams, name), None, seen) for name, x in new.items()}, state


class OwnBlocksRecorded(OwnBlocks):
    recorded = True


class OwnBlocksOfTheStreamAlone(Alone):
    """Own blocks that read nothing but what the stream's own block gave: no way across, but within the stream."""

    def after(self, index, streams, new):
        return {name: self.extra(x) for name, x in new.items()}


class Shuffles(Alone):
    def after(self, index, streams, new):
        return {name: x.roll(1, 1) for name, x in new.items()}


class ShufflesBefore(Alone):
    def before(self, index, streams):
        return {name: x.roll(1, 1) for name, x in streams.items()}


class Opaque(Alone):
    def layer(self, index, blocks, streams, state, masks, present, record=None):
        return super().layer(index, blocks, streams, object(), masks, present, record)


class TracesOutside(MixesOutside):
    """An honest one: of what rests on a token after the layer, a third lies on the others' mean."""

    def trace(self, rows, attend, present):
        parts = []
        for name, x in rows.items():
            others = [other for other in rows if other != name]
            parts.append(attend(name, x * 2 / 3))
            for other in others:
                each = x.sum(-1, keepdim=True) / 3 / len(others) / rows[other].shape[-1]
                parts.append({other: each.expand(-1, -1, rows[other].shape[-1])})
        return add_up(parts)


class TracesElsewhere(MixesOutside):
    """It knows that something comes from beside the blocks, and takes it for the stream's own."""

    def trace(self, rows, attend, present):
        return add_up([trace_alone({n: x / 2 for n, x in rows.items()}, attend), {n: x / 2 for n, x in rows.items()}])


class Loses(Alone):
    def trace(self, rows, attend, present):
        return trace_alone({name: x / 2 for name, x in rows.items()}, attend)


class TracesBefore(MixesBefore):
    """Its queries are no tokens but sums: what is on one lies on the token and on the others' mean."""

    def trace(self, rows, attend, present):
        parts = []
        for name, x in rows.items():
            led = attend(name, x)[name]
            parts.append({name: 0.9 * led})
            for other in (other for other in rows if other != name):
                count = rows[other].shape[-1]
                parts.append({other: 0.1 * led.sum(-1, keepdim=True).expand(-1, -1, count) / count})
        return add_up(parts)


class Broken(Alone):
    def trace(self, rows, attend, present):
        return {name: attend(name, x)["nobody"] for name, x in rows.items()}


def made_by(strategy, base="cross-attention"):
    model = build_tiny(base, 0, modalities={"alpha": {}, "beta": {}})
    model.fusion.__class__ = strategy
    model.fusion.extra = Block(model.backbone, model.config, 0.0).double().eval()
    return model


@pytest.mark.parametrize("strategy", [Alone, Scaled, TracesOutside, TracesBefore])
@pytest.mark.parametrize("method", ["contributions", "rollout"])
def test_what_a_trace_knows_is_explained(strategy, method):
    model = made_by(strategy)
    inputs = inputs_for(model)
    _, relevance = trace_attention(model, inputs, method=method)
    across = relevance.of("alpha", relevance.tokens["beta"]).sum(-1)
    moved = {**inputs, "beta": inputs["beta"] + 1}
    follows = not torch.allclose(
        model(inputs).modality_logits["alpha"], model(moved).modality_logits["alpha"], atol=1e-9
    )
    assert follows == (strategy in (TracesOutside, TracesBefore))
    assert bool((across > 1e-3).all()) == follows


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (MixesOutside, "layer 1: the tokens of 'beta' after it take from the tokens of 'alpha' beside the blocks"),
        (MixesOnlyInTheLastLayer, "layer 2: the tokens of 'beta' after it take from the tokens of 'alpha' beside"),
        (MixesWhatBlocksGive, "the tokens of 'beta' after it take from what the block of 'alpha' gives"),
        (MixesBefore, "the keys that stand for the tokens of 'beta' take from the tokens of 'alpha'"),
        (GatedByOthers, "the tokens of 'beta' after it take from the tokens of 'alpha' beside the blocks"),
        (GatedWithoutGradient, "take from the tokens of '(alpha|beta)' beside the blocks"),
        (KeepsItsTokens, "the tokens of 'alpha' after it take from the tokens of 'alpha' beside the blocks"),
        (Cross, "the tokens of 'beta' after it take from the tokens of 'alpha' beside the blocks"),
        (CrossBefore, "the keys that stand for the tokens of '(alpha|beta)' take from the tokens of"),
        (Remembers, "layer 2: what its state holds of the streams besides `bottlenecks_of` takes part"),
        (Opaque, "its state holds a object; expected tensors"),
        (Pools, "'alpha' attends to 2 keys: the fusion strategy has to define `sources`"),
        (Skips, "the block of 'alpha' does not run, or not with `record`"),
        (Twice, "2 attentions are recorded of 'alpha' in a layer"),
        (WithoutRecord, "runs (blocks )?without `record`"),
        (
            OwnBlocksOfTheStreamAlone,
            "token . of 'alpha' takes from token 0 of 'alpha' beside the attention of its block",
        ),
        (Shuffles, "token . of 'alpha' takes from token 0 of 'alpha' beside the attention of its block"),
        (ShufflesBefore, "token . of 'alpha' takes from token 0 of 'alpha' beside the attention of its block"),
        (OwnBlocks, "the tokens of '(alpha|beta)' after it take from the tokens of '(alpha|beta)' beside the blocks"),
        (OwnBlocksRecorded, "[23] attentions are recorded of 'alpha' in a layer"),
        (TracesElsewhere, "the tokens of '(alpha|beta)' after it take from the tokens of '(alpha|beta)' beside"),
        (Loses, "`trace` does not lead all of what rests on the tokens of 'alpha' to the layer's input"),
        (Broken, "its methods fail: KeyError: 'nobody'"),
    ],
)
@pytest.mark.parametrize("method", ["contributions", "rollout"])
def test_what_it_does_not_know_is_refused(strategy, message, method):
    model = made_by(strategy)
    with pytest.raises(MBTError, match=message) as error:
        trace_attention(model, inputs_for(model), method=method)
    assert "strategy" in str(error.value) or "strategies" in str(error.value)


@pytest.mark.parametrize("method", METHODS)
def test_no_method_explains_it(method):
    model = made_by(MixesOutside)
    with pytest.raises(MBTError, match="beside the blocks, and `trace` does not lead back there"):
        trace_attention(model, inputs_for(model), method=method)


def test_bottlenecks_that_start_from_tokens_are_refused():
    model = made_by(StartsFromTokens, "bottleneck")
    with pytest.raises(MBTError, match="at the start: its bottlenecks start from the tokens of 'alpha'"):
        trace_attention(model, inputs_for(model), method="rollout")


def test_bottlenecks_that_a_trace_forgets_are_refused():
    class Forgets(Bottleneck):
        def trace(self, rows, attend, present):
            return trace_alone({n: x for n, x in rows.items() if n != BOTTLENECKS}, lambda n, x: attend(n, self.pad(x)))

        @staticmethod
        def pad(x):
            return nn.functional.pad(x, (0, 2))

    model = made_by(Forgets, "bottleneck")
    with pytest.raises(MBTError, match="`trace` does not lead all of what rests on the bottlenecks"):
        trace_attention(model, inputs_for(model), method="rollout")


def test_one_modality_of_a_mixing_strategy():
    """Alone, nothing is mixed in: the same strategy is explained."""
    model = made_by(MixesOutside)
    model.fusion.after = lambda index, streams, new: new
    _, relevance = trace_attention(model, {"alpha": inputs_for(model)["alpha"]})
    torch.testing.assert_close(relevance.tokens["alpha"].sum(-1), torch.ones(4, 1).double())
