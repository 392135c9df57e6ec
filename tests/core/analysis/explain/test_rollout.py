"""Attention led back to the inputs, against the definition: products of explicit matrices over all tokens.

Nodes are all streams' tokens in the model's order, then the bottlenecks.
"""

import pytest
import torch
from torch.nn import functional as F

from mbt_core import ConfigError, MBTError
from mbt_core.analysis.explain import rollout
from mbt_core.analysis.explain.rollout import FUSED, METHODS, trace_attention
from mbt_core.model.block import Block
from mbt_core.model.fusion.attention import CrossAttention
from mbt_core.model.fusion.base import add_up, recorder
from toy.models import POOLS, STRATEGIES, build_tiny, inputs_for

pytestmark = pytest.mark.usefixtures("toys")
COUNTS = (1, 2, 3)
PRESENT = {
    "gamma": torch.tensor([True, True, False, False]),
    "alpha": torch.tensor([True, False, True, False]),
    "beta": torch.tensor([True, True, True, False]),
}


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


class Calls(list):
    """The weights [B, H, N, K] of every attention in the order of the calls, and the values [B, H, K, E]."""

    def __init__(self):
        super().__init__()
        self.values = []

    def clear(self):
        super().clear()
        self.values.clear()


@pytest.fixture
def attention(monkeypatch):
    """What every attention does, which is written out."""
    weights = Calls()

    def dense(q, k, v, attn_mask=None, dropout_p=0.0):
        scores = q @ k.mT / q.shape[-1] ** 0.5
        a = (scores if attn_mask is None else scores.masked_fill(~attn_mask, -torch.inf)).softmax(-1)
        weights.append(a)
        weights.values.append(v)
        return a @ v

    monkeypatch.setattr(F, "scaled_dot_product_attention", dense)
    return weights


def per_layer(model, weights, names):
    """Layer -> the weights of its calls: one a stream, or one for all."""
    weights, layers = list(weights), []
    for layer in range(model.backbone.depth):
        joint = model.fusion.joint and layer >= model.first_fused
        layers.append([weights.pop(0) for _ in range(1 if joint else len(names))])
    assert not weights
    return layers


def dense_step(step_BMM, rows, columns, a_BNK, residual):
    """Attention of the nodes `rows` over the nodes `columns`, in a matrix over all nodes."""
    for i, row in enumerate(rows):
        step_BMM[:, row] = 0
        step_BMM[:, row, columns] = a_BNK[:, i]
        step_BMM[:, row, row] += residual
    return step_BMM


def dense_layer(model, layer, calls, spans, z, present, residual):
    """One layer as a matrix: output nodes times input nodes."""
    strategy, names = model.config.fusion.strategy, list(spans)
    size, B = sum(map(len, spans.values())) + len(z), calls[0].shape[0]
    eye = torch.eye(size).double().expand(B, -1, -1)
    everything = [node for name in names for node in spans[name]]
    if layer < model.first_fused or strategy == "late" or (not z and "bottleneck" in strategy):
        matrix = eye.clone()
        for name, a in zip(names, calls, strict=True):
            dense_step(matrix, spans[name], spans[name], a, residual)
        return matrix
    if strategy == "self-attention":
        return dense_step(eye.clone(), everything, everything, calls[0], residual)
    if strategy == "cross-attention":
        matrix = eye.clone()
        for name, a in zip(names, calls, strict=True):
            others = [node for other in names if other != name for node in spans[other]]
            dense_step(matrix, spans[name], [*spans[name], *others], a, residual)
        return matrix
    each = [
        dense_step(eye.clone(), [*nodes, *z], [*nodes, *z], a, residual)
        for nodes, a in zip(spans.values(), calls, strict=True)
    ]
    if strategy == "bottleneck-sequential":
        matrix = eye.clone()
        for name, step in zip(names, each, strict=True):
            if present is not None:  # an absent stream leaves the bottlenecks as they are
                step[:, z] = torch.where(present[name][:, None, None], step[:, z], eye[:, z])
            matrix = step @ matrix
        return matrix
    matrix = eye.clone()
    here = torch.ones(B, len(names)) if present is None else torch.stack([present[n] for n in names], 1)
    for number, (name, step) in enumerate(zip(names, each, strict=True)):
        matrix[:, spans[name]] = step[:, spans[name]]
        part = (here[:, number] / here.sum(1).clamp(min=1))[:, None, None]
        matrix[:, z] = part * step[:, z] + (0 if number == 0 else matrix[:, z])
    return matrix


def dense(model, embedded, layers, present, method):
    """Rows over the nodes [B, Q, nodes], and the shares at every layer."""
    spans, start = {}, 0
    for name, tokens in embedded.items():
        spans[name] = list(range(start, start + tokens.x.shape[1]))
        start += tokens.x.shape[1]
    strategy = model.config.fusion.strategy
    z = list(range(start, start + 2)) if "bottleneck" in strategy and len(model.modalities) > 1 else []
    rows = torch.zeros(4, len(spans), start + len(z)).double()
    for number, (name, (x, mask)) in enumerate(embedded.items()):
        real = torch.ones(x.shape[:2]) if mask is None else mask
        for b in range(4):
            if present is None or present[name][b]:
                pooled = [spans[name][0]] if model.config.pool == "cls" else spans[name][model.prefix :]
                pooled = [node for node in pooled if real[b, node - spans[name][0]]]
                rows[b, number, pooled] = 1.0 if model.config.pool == "mean-joint" else 1 / len(pooled)
    if model.config.pool == "mean-joint":
        rows = rows.sum(1, keepdim=True)
        rows = rows / rows.sum(-1, keepdim=True).clamp(min=1)
    residual = {"contributions": 0.0, "rollout": 0.5, "last": 0.0, "gradient": 1.0}[method]

    def shares(rows):
        parts = [rows[..., nodes].sum(-1) for nodes in (*spans.values(), z)]
        found = torch.stack(parts, -1)
        return found / found.sum(-1, keepdim=True).clamp(min=1e-30)

    found = [shares(rows)]
    for layer in reversed(range(model.backbone.depth)):
        matrices = [dense_layer(model, layer, calls, spans, z, present, residual) for calls in layers[layer]]
        rows = torch.cat([rows[:, i : i + 1] @ m for i, m in enumerate(matrices)], 1)
        found.insert(0, shares(rows))
        if method == "last":
            break
    rows = rows / rows.sum(-1, keepdim=True).clamp(min=1e-30)
    return {n: rows[..., nodes] for n, nodes in spans.items()}, rows[..., z], torch.stack(found)


def contributions(block, x, out, a, v):
    """Shares [B, N, K] of the keys in each token after a block's attention, from every vector that is added to it."""
    N = x.shape[1]
    added = (a[..., None] * v[:, :, None]).permute(0, 2, 3, 1, 4).flatten(3) @ block.attn.proj.weight.T
    added = added * getattr(block.ls1, "gamma", 1)
    for i in range(N):
        added[:, i, i] += x[:, i]
    along = (added * out[:, :, None]).sum(-1).clamp(min=0)
    return along / along.sum(-1, keepdim=True)


def expected(model, inputs, present, method, weights, **over):
    """`dense` of a forward pass whose attention is written out."""
    weights.clear()
    blocks, before, after, hooks = [], [], [], []
    for block in (m for m in model.modules() if isinstance(m, Block)):
        hooks.append(block.register_forward_pre_hook(lambda m, x: blocks.append(m) or before.append(x[0])))
        hooks.append(block.norm2.register_forward_pre_hook(lambda m, x: after.append(x[0])))
    out = model(inputs, present)
    for hook in hooks:
        hook.remove()
    calls = list(weights)
    joint = model.config.pool == "mean-joint"
    logits = {FUSED: out.logits} if joint else out.modality_logits
    classes = out.logits.argmax(1)
    names = list(inputs)
    layers = []
    if method == "gradient":
        for x in logits.values():
            objective = x.gather(1, classes[:, None]).sum()
            slopes = torch.autograd.grad(objective, calls, retain_graph=True, allow_unused=True)
            weighed = [
                torch.zeros_like(a[:, 0]) if g is None else (g * a).clamp(min=0).mean(1)
                for a, g in zip(calls, slopes, strict=True)
            ]
            layers.append(per_layer(model, weighed, names))
    elif method == "contributions":
        shares = [contributions(*given) for given in zip(blocks, before, after, calls, weights.values, strict=True)]
        layers = [per_layer(model, shares, names)] * len(logits)
    else:
        half = 0.5 if method == "rollout" else 1.0
        layers = [per_layer(model, [half * a.mean(1) for a in calls], names)] * len(logits)
    by_layer = list(zip(*layers, strict=True))
    return dense(model, model.embed(inputs, present=present), by_layer, present, method)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_equals_products_of_matrices(attention, strategy, count, pool, absent, method):
    model = build_tiny(strategy, count, pool, backbone={"registers": 1})
    inputs = inputs_for(model)
    present = {name: PRESENT[name] for name in inputs} if absent else None
    tokens, bottlenecks, shares = expected(model, inputs, present, method, attention)
    prediction, relevance = trace_attention(model, inputs, present, method=method)
    torch.testing.assert_close(prediction.logits, model(inputs, present).logits)
    assert relevance.predictions == ((FUSED,) if pool == "mean-joint" else tuple(inputs))
    close(relevance.tokens, tokens)
    close(relevance.bottlenecks, bottlenecks)
    close(relevance.shares, shares)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("method", METHODS)
def test_relevance_adds_up_and_stays_off_padding_and_absent_modalities(strategy, method):
    model = build_tiny(strategy, 3)
    inputs = inputs_for(model)
    _, relevance = trace_attention(model, inputs, PRESENT, method=method)
    everything = torch.cat([*relevance.tokens.values(), relevance.bottlenecks], -1)
    assert everything.min() >= 0
    here = torch.stack(list(PRESENT.values()), 1)
    torch.testing.assert_close(everything.sum(-1), here.double())
    for name, x in relevance.tokens.items():
        assert not x[~PRESENT[name]].any()
    padding = ~inputs["gamma"][1][:, None].expand(-1, 3, -1)
    assert not relevance.tokens["gamma"][..., 1:][padding].any()


@pytest.mark.parametrize(
    "config",
    [
        {"backbone": {"qk_norm": True}},
        {"shared_encoder": True},
        {"backbone": {"qkv_bias": False}},
        {"backbone": {"layer_scale": 0.3}},
    ],
)
@pytest.mark.parametrize("strategy", ["bottleneck", "cross-attention", "self-attention"])
@pytest.mark.parametrize("method", ["contributions", "rollout", "gradient"])
def test_other_blocks(attention, strategy, config, method):
    model = build_tiny(strategy, 2, **config)
    inputs = inputs_for(model)
    tokens, _, _ = expected(model, inputs, None, method, attention)
    close(trace_attention(model, inputs, method=method)[1].tokens, tokens)


def test_without_exchange_nothing_comes_across():
    model = build_tiny("bottleneck", 2, fusion={"eval_bottlenecks": False})
    _, relevance = trace_attention(model, inputs_for(model), method="rollout")
    assert relevance.bottlenecks.shape[-1] == 0
    torch.testing.assert_close(relevance.shares[0, :, 0, 0], torch.ones(4).double())


@pytest.mark.parametrize("strategy", ["bottleneck", "bottleneck-sequential", "cross-attention", "self-attention"])
def test_what_comes_across_lies_on_the_others_below_the_fused_layers(strategy):
    model = build_tiny(strategy, 3)
    _, relevance = trace_attention(model, inputs_for(model), method="rollout")
    assert relevance.shares.shape == (4, 4, 3, 4)
    torch.testing.assert_close(relevance.shares.sum(-1), torch.ones(4, 4, 3).double())
    top, below = relevance.of("alpha", relevance.shares)[[3, 1]]
    assert torch.equal(top, torch.tensor([[0.0, 1, 0, 0]] * 4).double())
    assert (below[:, [0, 2]] > 1e-3).all()
    # below the fused layers each stream keeps what it has
    torch.testing.assert_close(relevance.shares[0], relevance.shares[1])


def test_fused_prediction_is_the_mean_of_those_present():
    model = build_tiny("bottleneck", 3)
    _, relevance = trace_attention(model, inputs_for(model), PRESENT)
    x = relevance.tokens["beta"][:, :, 1:]
    torch.testing.assert_close(relevance.patches("beta")[0], x[0].mean(0))
    torch.testing.assert_close(relevance.patches("beta")[2], x[2, 1:].mean(0))
    assert not relevance.patches("beta")[3].any()
    assert torch.equal(relevance.patches("beta", "alpha"), x[:, 1])
    mean = relevance.of(FUSED, relevance.shares)
    torch.testing.assert_close(mean.sum(-1)[:, :3], torch.ones(4, 3).double())


def test_gradient_is_of_the_class_and_task():
    model = build_tiny("bottleneck", 2, head={"classes": None, "tasks": {"one": 3, "two": 4}})
    inputs = inputs_for(model)

    def tokens(**chosen):
        return trace_attention(model, inputs, method="gradient", **chosen)[1].tokens

    first, last = (tokens(task="two", classes=torch.full((4,), c))["alpha"] for c in (0, 3))
    assert (first - last).abs().max() > 1e-4
    best = model(inputs).logits["one"].argmax(1)
    torch.testing.assert_close(tokens(), tokens(task="one", classes=best))
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("method", METHODS)
def test_memory_grows_with_tokens_not_with_their_square(monkeypatch, method):
    """The largest tensor of a pass over 1,000 tokens is smaller than their attention matrix, and all parts agree."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Largest(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            self.found = max([self.found, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
            return out

    model = build_tiny("bottleneck", 2, modalities={"alpha": {"samples": 4_000}})
    inputs = inputs_for(model, 1)
    found = []
    for chunk in (20_000, 300_000):
        monkeypatch.setattr(rollout, "CHUNK", chunk)
        with Largest() as largest:
            found.append(trace_attention(model, inputs, method=method)[1].tokens["alpha"])
        assert largest.found < max(chunk, 50_000) + 1 < 1000**2
    torch.testing.assert_close(*found)


def test_unknown_method_and_task():
    model = build_tiny("late", 1)
    with pytest.raises(ConfigError, match="unknown method 'rolout'. Did you mean 'rollout'"):
        trace_attention(model, inputs_for(model), method="rolout")
    with pytest.raises(ConfigError, match="unknown task 'x'. Known: label"):
        trace_attention(model, inputs_for(model), method="gradient", task="x")


class Summaries(CrossAttention):
    """Every stream sees one mean token of each other stream."""

    def layer(self, index, blocks, streams, state, masks, present, record=None):
        new = {}
        for name, x in streams.items():
            context = torch.cat([streams[other].mean(1, keepdim=True) for other in streams if other != name], 1)
            new[name] = blocks[name](x, context, None, recorder(record, name))
        return new, state


class SaysWhose(Summaries):
    def sources(self, streams, name):
        return [(name, streams[name].shape[1]), *((other, 1) for other in streams if other != name)]


class Traces(SaysWhose):
    def trace(self, rows, attend, present):
        led = []
        for name, x in rows.items():
            found = attend(name, x)
            led.append({n: y if n == name else y.expand_as(rows[n]) / rows[n].shape[-1] for n, y in found.items()})
        return add_up(led)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Summaries, "'alpha' attends to 5 keys: the fusion strategy has to define `sources`"),
        (SaysWhose, "is not to its tokens: the fusion strategy has to define `trace`"),
        (Traces, None),
    ],
)
def test_strategies_of_plugins(strategy, message):
    model = build_tiny("cross-attention", 0, modalities={"alpha": {}, "beta": {}})
    model.fusion.__class__ = strategy
    if message is None:
        _, relevance = trace_attention(model, inputs_for(model), method="rollout")
        total = sum(x.sum(-1) for x in relevance.tokens.values())
        torch.testing.assert_close(total, torch.ones(4, 2).double())
        assert relevance.shares[0, :, 0, 1].min() > 1e-3
        return
    with pytest.raises(MBTError, match=message):
        trace_attention(model, inputs_for(model), method="rollout")
