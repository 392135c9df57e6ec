"""Building, saving, compiling, exporting and training a model, on anonymous modalities."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mbt_core as mbt
from mbt_core import PatchTokenizer
from mbt_core.config import MBTConfig
from mbt_core.errors import DataError, MBTError
from mbt_core.model.backbone import resolve_backbone
from mbt_core.model.block import Block
from toy.config import AlphaConfig
from toy.modalities import Alpha
from toy.models import FIRST_STRATEGY, POOLS, STRATEGIES, build_tiny, inputs_for, tiny

pytestmark = pytest.mark.usefixtures("toys")
PRESENT = {"gamma": torch.tensor([True, True, False, True]), "alpha": torch.tensor([True, False, True, False])}


@pytest.mark.parametrize("strategy", FIRST_STRATEGY)
def test_compiles_without_breaks(strategy):
    model = build_tiny(strategy, 2, drop_path=0.2).train()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    inputs = inputs_for(model)
    found, expected = (run_seeded(m, inputs, PRESENT) for m in (compiled, model))
    torch.testing.assert_close(found, expected)
    torch._dynamo.reset()


def run_seeded(model, inputs, present):
    torch.manual_seed(3)
    out = model(inputs, present)
    return out.logits, out.modality_logits


class Logits(torch.nn.Module):
    """Export takes modules that return tensors."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs, present):
        out = self.model(inputs, present)
        return out.logits, out.embedding


@pytest.mark.parametrize("strategy", FIRST_STRATEGY)
def test_exports_with_any_batch_and_length(strategy):
    model = Logits(build_tiny(strategy, 2))
    inputs = inputs_for(model.model)
    batch, length = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("length", min=2, max=6)
    axes = {"inputs": {"gamma": ({0: batch, 1: length}, {0: batch, 1: length}), "alpha": {0: batch}}}
    axes["present"] = {"gamma": {0: batch}, "alpha": {0: batch}}
    exported = torch.export.export(model, (inputs, PRESENT), dynamic_shapes=axes).module()
    for given in (inputs, inputs_for(model.model, 7)):
        size = len(given["alpha"])
        present = {name: here.repeat(2)[:size] for name, here in PRESENT.items()}
        torch.testing.assert_close(exported(given, present), model(given, present))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("over", [{"pool": p} for p in POOLS] + [{"shared_encoder": True}, {"head": {"shared": False}}])
def test_saved_and_loaded_again(strategy, over, tmp_path):
    model = build_tiny(strategy, 3, **over).float()
    model.classes = {"label": ["a", "é", "c", "d", "e"]}
    model.save_pretrained(tmp_path)
    loaded = mbt.MBT.from_pretrained(tmp_path)
    assert loaded.classes == model.classes
    assert loaded.config == model.config
    inputs = {n: (g[0].float(), g[1]) if isinstance(g, tuple) else g.float() for n, g in inputs_for(model).items()}
    torch.testing.assert_close(loaded.eval()(inputs).logits, model(inputs).logits, rtol=0, atol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ([], r"classes=\[\]; expected task -> names of its classes"),
        ({"other": ["a"] * 5}, r"classes of 'other', a task that the model has not \(label\)"),
        ({"label": ["a"] * 3}, "classes of 'label': 3 names; expected 5, as its head has outputs"),
        ({"label": [1, 2, 3, 4, 5]}, r"classes of 'label': \[1, 2, 3, 4, 5\]; expected 5"),
        ({"label": None}, "classes of 'label': None; expected 5"),
    ],
)
def test_names_of_classes_that_do_not_fit_are_refused(classes, said, tmp_path):
    build_tiny(count=2).float().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"classes": classes}))
    with pytest.raises(DataError, match=said):
        mbt.MBT.from_pretrained(tmp_path)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(MBTError, match=r"taken.*cannot be written: (File exists|Not a directory)"):
        build_tiny(count=2).float().save_pretrained(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_state_that_does_not_fit_is_refused(tmp_path):
    build_tiny(count=2).float().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    state["head.classifiers._shared.label.weight"] = torch.zeros(4, 8)
    state["surplus"] = state.pop("fusion.bottlenecks")
    save_file(state, path)
    message = (
        r"model.safetensors does not fit this model: missing fusion.bottlenecks; unknown surplus; "
        r"head.classifiers._shared.label.weight is \[4, 8\], expected \[5, 8\]$"
    )
    with pytest.raises(mbt.DataError, match=message):
        mbt.MBT.from_pretrained(tmp_path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(mbt.DataError, match="no safetensors file, or a truncated one"):
        mbt.MBT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(mbt.DataError, match="expected the keys model and classes of a saved model"):
        mbt.MBT.from_pretrained(tmp_path)
    with pytest.raises(mbt.DataError, match=r"nowhere/config.json: cannot be read: No such file"):
        mbt.MBT.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("shared", [False, True])
def test_state_has_no_duplicates(strategy, shared):
    model = build_tiny(strategy, 3, shared_encoder=shared, head={"shared": shared})
    state = model.state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state)
    sets = {key.split(".")[1] for key in state if key.startswith("blocks.")}
    own = {"gamma", "alpha", "beta"}
    assert sets == ({"_shared"} if shared else own | ({"_joint"} if strategy == "self-attention" else set()))
    assert {key.split(".")[2] for key in state if key.startswith("head.")} == ({"_shared"} if shared else own)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_shared_encoder_is_one_set_of_weights(strategy):
    shared = build_tiny(strategy, 3, shared_encoder=True)
    separate = build_tiny(strategy, 3)
    blocks = shared.state_dict()
    own = separate.state_dict()
    for key in own:
        source = "blocks._shared." + key.split(".", 2)[2] if key.startswith("blocks.") else key
        own[key] = blocks[source]
    separate.load_state_dict(own)
    inputs = inputs_for(shared)
    torch.testing.assert_close(shared(inputs).logits, separate(inputs).logits)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_checkpointing_changes_nothing(strategy):
    """Same outputs and gradients, stochastic depth and dropout included."""
    found = []
    for checkpointing in (False, True):
        model = build_tiny(strategy, 3, checkpointing=checkpointing, drop_path=0.3, dropout=0.1, attention_dropout=0.1)
        torch.manual_seed(1)
        out = model.train()(inputs_for(model))
        out.logits.square().sum().backward()
        found.append((out.logits.detach(), {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("pool", POOLS)
def test_runs_in_bf16(strategy, pool):
    model = build_tiny(strategy, 2, pool).float()
    inputs = {n: (g[0].float(), g[1]) if isinstance(g, tuple) else g.float() for n, g in inputs_for(model).items()}
    expected = model(inputs, PRESENT).logits
    with torch.autocast("cpu", torch.bfloat16):
        out = model(inputs, PRESENT)
    assert out.logits.dtype == torch.float32  # what is ranked is not rounded to bf16
    assert not torch.equal(out.logits, out.logits.bfloat16().float())
    torch.testing.assert_close(out.logits, expected, rtol=0.05, atol=0.05)
    out.logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def kept(rescale, seed, batch=4000):
    """What a block with stochastic depth 0.3 adds to equal samples, as a multiple of the branch: [batch]."""
    torch.manual_seed(0)
    config = mbt.MBTConfig(**tiny(count=1, drop_path_rescale=rescale))
    block = Block(config.backbone, config, 0.3).train()
    torch.nn.init.zeros_(block.mlp.fc2.weight)
    torch.nn.init.zeros_(block.mlp.fc2.bias)
    x = torch.randn(1, 3, 8)
    branch = block.attn(block.norm1(x))
    torch.manual_seed(seed)
    added = block(x.expand(batch, -1, -1)) - x
    return (added / branch).mean((1, 2))


@pytest.mark.parametrize(("rescale", "factor", "mean"), [(True, 1 / 0.7, 1.0), (False, 1.0, 0.7)])
def test_stochastic_depth_has_the_right_expectation(rescale, factor, mean):
    found = kept(rescale, seed=1)
    assert found.mean().item() == pytest.approx(mean, abs=0.03)
    either = torch.stack([found, found - factor]).abs().min(0).values
    assert either.max() < 1e-3
    torch.testing.assert_close(found, kept(rescale, seed=1), rtol=0, atol=0)
    assert not torch.equal(found, kept(rescale, seed=2))


def test_stochastic_depth_drops_each_branch_and_sample_by_itself():
    torch.manual_seed(0)
    config = mbt.MBTConfig(**tiny(count=1))
    block = Block(config.backbone, config, 0.5).train()
    y = block(torch.randn(1, 3, 8).expand(2000, -1, -1))
    outcomes, counts = y.detach().round(decimals=4).flatten(1).unique(dim=0, return_counts=True)
    assert len(outcomes) == 4
    np.testing.assert_allclose(counts / 2000, 0.25, atol=0.04)


def test_stochastic_depth_grows_linearly():
    for depth, expected in ((4, [0, 0.1, 0.2, 0.3]), (1, [0])):
        model = mbt.MBT(tiny(count=2, drop_path=0.3, backbone={"depth": depth}))
        for name in ("gamma", "alpha"):
            blocks = model.blocks[name].values()
            rates = [[getattr(p, "drop_prob", 0) for p in (b.drop_path1, b.drop_path2)] for b in blocks]
            np.testing.assert_allclose(rates, np.stack([expected, expected], 1))
    inputs = inputs_for(model.double())
    torch.testing.assert_close(model.eval()(inputs).logits, model(inputs).logits, rtol=0, atol=0)


def test_heads_of_several_tasks():
    head = {"classes": None, "tasks": {"verb": 3, "noun": 4}, "shared": False, "representation": 6}
    model = build_tiny(count=3, head=head)
    out = model(inputs_for(model), {**PRESENT, "beta": torch.tensor([False, True, True, False])})
    assert {task: tuple(x.shape) for task, x in out.logits.items()} == {"verb": (4, 3), "noun": (4, 4)}
    assert out.embedding.shape == (4, 6)
    assert out.embedding.abs().max() <= 1
    assert list(out.modality_logits) == ["gamma", "alpha", "beta"]
    gamma, _, beta = (out.modality_logits[name]["noun"][1] for name in out.modality_logits)
    torch.testing.assert_close(out.logits["noun"][1], (gamma + beta) / 2)
    token = out.tokens["alpha"][:, 0]
    expected = model.head.classifiers["alpha"]["verb"](model.head.representations["alpha"](token).tanh())
    torch.testing.assert_close(out.modality_logits["alpha"]["verb"], expected)


def test_pools():
    inputs = inputs_for(build_tiny(count=2))
    for registers in (0, 2):
        for pool, prefix in (("cls", 1 + registers), ("mean", registers), ("mean-joint", registers)):
            model = build_tiny(count=2, pool=pool, backbone={"registers": registers})
            out = model(inputs)
            assert model.prefix == prefix
            assert {n: x.shape[1] for n, x in out.tokens.items()} == {"gamma": prefix + 4, "alpha": prefix + 3}
            real = [out.tokens["gamma"][2, prefix : prefix + 3], out.tokens["alpha"][2, prefix:]]
            if pool == "cls":
                expected = (out.tokens["gamma"][2, 0] + out.tokens["alpha"][2, 0]) / 2
            elif pool == "mean":
                expected = (real[0].mean(0) + real[1].mean(0)) / 2
            else:
                expected = torch.cat(real).mean(0)
                assert out.modality_logits == {}
            torch.testing.assert_close(out.embedding[2], expected)


def test_fresh_models_start_as_the_reference():
    torch.manual_seed(0)
    model = mbt.MBT(tiny(count=2, backbone={"dim": 64, "heads": 4}, fusion={"bottlenecks": 64}))
    state = model.state_dict()
    assert not any(state[f"head.classifiers._shared.label.{part}"].any() for part in ("weight", "bias"))
    assert not state["streams.alpha.cls_token"].any()
    for name, std in (("fusion.bottlenecks", 0.02), ("streams.alpha.pos_embed", 0.02)):
        assert state[name].std().item() == pytest.approx(std, rel=0.15)
    bound = (6 / 128) ** 0.5  # Xavier of each 64 x 64 projection, not of the 192 x 64 matrix
    for part in state["blocks.alpha.0.attn.qkv.weight"].split(64):
        assert bound * 0.95 < part.abs().max() <= bound
    assert not model(inputs_for(model.double())).logits.any()


def test_geometry_is_that_of_the_named_model():
    small = resolve_backbone("vit_tiny_patch16_224.augreg_in21k")
    assert (small.dim, small.depth, small.heads, small.mlp, small.act) == (192, 12, 3, 768, "gelu")
    assert (small.eps, small.qkv_bias, small.layer_scale, small.registers) == (1e-6, True, None, 0)
    dino = resolve_backbone("vit_small_patch14_reg4_dinov2")
    assert (dino.layer_scale, dino.registers, dino.embed_prefix) == (1e-5, 4, False)
    assert resolve_backbone("vit_so150m_patch16_reg4_gap_256").qk_norm is False
    assert resolve_backbone("vit_base_patch16_clip_quickgelu_224").pre_norm
    assert resolve_backbone("vit_base_patch32_siglip_256").act == "gelu_tanh"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_bse_patch16_224", "timm knows no model 'vit_bse_patch16_224'. Did you mean 'vit_base_patch16_224'?"),
        ("resnet18", "'resnet18' is a ResNet; expected a timm VisionTransformer"),
        ("vit_base_patch16_rpn_224", "'vit_base_patch16_rpn_224' has blocks of another form; expected timm's pre-norm"),
        ("test_vit4", "'test_vit4' has blocks of another form; expected timm's pre-norm Block with layer norms"),
        ("vit_small_patch16_18x2_224", "'vit_small_patch16_18x2_224' has blocks of another form"),
    ],
)
def test_backbones_we_do_not_have(name, message):
    with pytest.raises(mbt.ConfigError) as error:
        resolve_backbone(name)
    assert str(error.value).startswith(f"model.backbone: {message}")


def test_width_of_the_mlp_is_exact():
    model = mbt.MBT(tiny(count=1, backbone={"dim": 56, "heads": 2, "mlp": 61}))
    assert model.blocks["gamma"]["0"].mlp.fc1.out_features == 61


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"fusion": {"layer": 4}}, "model.fusion.layer: 4 is above the depth 3; expected 0 to 3"),
        ({"head": {"classes": None}}, "model.head: give classes (one task) or tasks (several)"),
        (
            {"modalities": {"values": {"kind": "alpha"}}},
            "the name 'values' is reserved; choose another one for this modality or task",
        ),
        (
            {"head": {"classes": None, "tasks": {"type": 3}}},
            "the name 'type' is reserved; choose another one for this modality or task",
        ),
        ({"fusion": {"options": {"width": 3}}}, "model.fusion.options: 'bottleneck' takes none, got ['width']"),
        ({"modalities": {"alpha": {"samples": 3}}}, "an input of (3,) is smaller than one patch of (4,)"),
    ],
)
def test_models_that_cannot_be(over, message):
    with pytest.raises(mbt.ConfigError) as error:
        mbt.MBT(tiny(count=2, **over))
    assert str(error.value) == message


def test_inputs_that_cannot_be():
    model = build_tiny(count=2)
    inputs = inputs_for(model)
    cases = [
        ({}, None, r"no inputs; expected some of \['gamma', 'alpha'\]"),
        ({"alpa": inputs["alpha"]}, None, r"unknown modality 'alpa'. Did you mean 'alpha'\? Known: alpha, gamma"),
        (inputs, {"alpha": PRESENT["alpha"]}, r"it leaves out \['gamma'\]"),
        (
            {"alpha": inputs["alpha"][:, :, :5]},
            None,
            r"^alpha: the tokenizer's input is \[B, 2, 5\], expected \[B, 2, 13\]",
        ),
        ({"gamma": (torch.zeros(1, 7, 3).double(), None)}, None, r"^gamma: got 7 tokens, the grid \(6,\) holds 6"),
    ]
    for given, present, message in cases:
        with pytest.raises(ValueError, match=message):
            model(given, present)


def test_settings_left_to_the_data_are_told_by_name(toys, monkeypatch):
    """When the model is made; those that only the preprocessor needs where they turn out to be needed."""
    modalities = {"depth": {"kind": "alpha", "channels": "auto"}, "gamma": {}}
    with pytest.raises(mbt.ConfigError, match=r"^modalities\.depth\.channels: 'auto' is filled from the data of a run"):
        mbt.MBT(tiny(count=0, modalities=modalities))
    monkeypatch.setattr(AlphaConfig, "of_preprocessor", ("channels",))
    monkeypatch.setattr(Alpha, "tokenizer", lambda self, dim: NeedsChannels(self.config, dim))
    model = mbt.MBT(tiny(count=0, modalities=modalities))
    with pytest.raises(mbt.ConfigError, match=r"^modalities\.depth\.channels: still 'auto', and its tokenizer fails: "):
        model({"depth": torch.zeros(1, 2, 13)})


class NeedsChannels(PatchTokenizer):
    def __init__(self, config, dim):
        super().__init__(2, (config.samples,), (config.patch,), dim)
        self.wanted = config.channels

    def forward(self, x, mask=None):
        return super().forward(x / self.wanted, mask)


def test_other_errors_of_a_tokenizer_keep_their_kind_and_tell_whose_they_are(monkeypatch):
    model = build_tiny(count=2)
    monkeypatch.setattr(type(model.stream("alpha").tokenizer), "forward", lambda self, x, mask: x @ x)
    with pytest.raises(RuntimeError) as error:
        model(inputs_for(model))
    assert error.value.__notes__ == ["while 'alpha' was embedded"]


def test_a_configuration_may_be_built_from_objects():
    config = MBTConfig(
        modalities={"left": AlphaConfig(), "right": AlphaConfig(samples=8)},
        backbone={"dim": 8, "depth": 2, "heads": 2},
        fusion={"layer": 1},
        head={"classes": 2},
    )
    model = mbt.MBT(config)
    assert list(model.modalities) == ["left", "right"]
    assert model.streams["right"].grid == (2,)
