"""What `return_intermediates` tells, against a forward pass written out here."""

import pytest
import torch

from toy.models import STRATEGIES, build_tiny, inputs_for

pytestmark = pytest.mark.usefixtures("toys")
PRESENT = {
    "gamma": torch.tensor([True, True, False, True]),
    "alpha": torch.tensor([True, False, True, False]),
    "beta": torch.tensor([True, True, True, False]),
}


def run_block(block, x, keys, mask, attended):
    """A pre-norm block whose queries are `x`, with `attended`'s queries and keys in place of its own."""
    q, k = attended
    v = block.attn.qkv(block.norm1(keys)).chunk(3, -1)[2]
    v = v.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2)
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
    x = x + block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
    return x + block.mlp(block.norm2(x))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("pool", ["cls", "mean-joint"])
def test_records_are_what_happened(strategy, shared, pool):
    model = build_tiny(strategy, 3, pool, shared_encoder=shared)
    inputs = inputs_for(model)
    out = model(inputs, PRESENT, return_intermediates=True)
    torch.testing.assert_close(out.logits, model(inputs, PRESENT).logits, rtol=0, atol=0)
    assert len(out.intermediates) == model.backbone.depth
    embedded = model.embed(inputs, present=PRESENT)
    streams = {name: t.x for name, t in embedded.items()}
    real = {n: t.mask if t.mask is not None else t.x.new_ones(t.x.shape[:2]).bool() for n, t in embedded.items()}
    z = None
    for layer, record in enumerate(out.intermediates):
        fused = layer >= 1
        if layer == 1 and "bottleneck" in strategy:
            z = model.fusion.bottlenecks.expand(4, -1, -1)
        visible = {name: mask & PRESENT[name][:, None] for name, mask in real.items()}
        new, proposals = {}, []
        for name, x in streams.items():
            sources = record.sources[name]
            keys = torch.cat([streams[source] if source else z for source, _ in sources], 1)
            assert [number for _, number in sources] == [streams[s].shape[1] if s else 2 for s, _ in sources]
            own = visible if fused and strategy == "self-attention" else {**visible, name: real[name]}
            mask = torch.cat([own[s] if s else torch.ones(4, 2).bool() for s, _ in sources], 1)
            joint = fused and strategy == "self-attention"
            queries = keys if "bottleneck" in strategy or joint else x
            attended = record.attended["_joint" if joint else name]
            assert len(attended) == 1
            block = model.blocks["_shared" if shared else "_joint" if joint else name][str(layer)]
            mask = mask | ~mask.any(1, keepdim=True)  # nothing is there: the result is never looked at
            y = run_block(block, queries, keys, mask, attended[0])
            if joint:
                start = sum(number for source, number in sources[: list(streams).index(name)])
                y = y[:, start : start + x.shape[1]]
            elif z is not None:
                y, proposal = y[:, : x.shape[1]], y[:, x.shape[1] :]
                proposals.append(proposal)
                if strategy == "bottleneck-sequential":
                    z = torch.where(PRESENT[name][:, None, None], proposal, z)
            new[name] = y
        if strategy == "bottleneck" and fused:
            present = torch.stack([PRESENT[name] for name in streams])[:, :, None, None]
            z = (torch.stack(proposals) * present).sum(0) / present.sum(0)
        streams = new
        torch.testing.assert_close(record.tokens, new)
        if z is None:
            assert record.bottlenecks is None
        else:
            torch.testing.assert_close(record.bottlenecks, z)
    for name, x in streams.items():
        torch.testing.assert_close(out.tokens[name], model.head.norms["_shared"](x))


def test_sample_without_anything_keeps_its_bottlenecks():
    model = build_tiny("bottleneck", 3)
    nothing = {name: torch.zeros(4, dtype=torch.bool) for name in model.modalities}
    out = model(inputs_for(model), nothing, return_intermediates=True)
    start = model.fusion.bottlenecks.expand(4, -1, -1)
    torch.testing.assert_close(out.intermediates[-1].bottlenecks, start, rtol=0, atol=0)


@pytest.mark.parametrize("strategy", ["bottleneck", "self-attention"])
def test_records_are_not_doubled_by_checkpointing(strategy):
    model = build_tiny(strategy, 2, checkpointing=True).train()
    out = model(inputs_for(model), return_intermediates=True)
    out.logits.sum().backward()
    assert {len(pairs) for record in out.intermediates for pairs in record.attended.values()} == {1}


def test_nothing_is_recorded_unless_asked_for():
    model = build_tiny(count=2)
    assert model(inputs_for(model)).intermediates is None
