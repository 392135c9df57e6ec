"""Models that start from image ViTs and from earlier runs."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import QuickGELU
from timm.models.vision_transformer import VisionTransformer

from mbt_core import MBT, ConfigError, DataError, MBTError, build
from mbt_core.model.backbone import geometry
from mbt_core.pretrained import build_with_report
from toy.models import INSTANCES, inputs_for, tiny

VARIANTS = {
    "augreg": {},
    "dinov2": {"init_values": 1e-5},
    "registers": {"init_values": 1e-5, "reg_tokens": 3, "no_embed_class": True},
    "embedded_registers": {"reg_tokens": 3},
    "deit3": {"init_values": 1e-6, "no_embed_class": True},
    "clip": {"pre_norm": True, "act_layer": QuickGELU},
    "no_qkv_bias": {"qkv_bias": False},
}


def make_vit(**options):
    """A small ViT of timm, every parameter random."""
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 4} | options
    vit = VisionTransformer(**options).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return vit


def backbone_of(vit, **changes):
    return geometry(vit, "a ViT").model_dump() | changes


def saved(vit, folder, name="weights.safetensors"):
    save_file(vit.state_dict(), folder / name)
    return str(folder / name)


def config(vit, pretrained, **changes):
    """A still as input, of the ViT's size and patch: the stream should be the ViT itself."""
    return {
        "modalities": {"rgb": {"frames": 1, "size": 32, "patch": 8, "tubelet": 1}},
        "backbone": backbone_of(vit),
        "pretrained": pretrained,
        "fusion": {"layer": 2},
        "head": {"classes": 5},
    } | changes


def same_tokens(model, vit, image=None):
    image = torch.randn(2, 3, 32, 32) if image is None else image
    with torch.no_grad():
        ours = model.eval()({"rgb": image[:, :, None]}).tokens["rgb"]
        torch.testing.assert_close(ours, vit.forward_features(image), rtol=0, atol=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stream_is_the_vit_itself(tmp_path, variant):
    vit = make_vit(**VARIANTS[variant])
    model, report = build_with_report(config(vit, saved(vit, tmp_path)))
    same_tokens(model, vit)
    assert [start.part for start in report.starts if not start.source] == ["head.classifiers._shared"]
    assert report.fresh == 24 * 5 + 5
    assert report.loaded + report.fresh == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("dinov2", {"layer_scale": None}),
        ("augreg", {"layer_scale": 1e-5}),
        ("deit3", {"embed_prefix": True}),
        ("augreg", {"embed_prefix": False}),
        ("registers", {"embed_prefix": True}),
        ("embedded_registers", {"embed_prefix": False}),
        ("no_qkv_bias", {"qkv_bias": True}),
    ],
)
def test_another_form_of_the_same_function(tmp_path, variant, changes):
    vit = make_vit(**VARIANTS[variant])
    model = build(config(vit, saved(vit, tmp_path), backbone=backbone_of(vit, **changes)))
    same_tokens(model, vit)


def test_a_torch_file_and_its_wrapper(tmp_path):
    vit = make_vit()
    torch.save({"model": vit.state_dict(), "epoch": 3}, tmp_path / "weights.pth")
    same_tokens(build(config(vit, str(tmp_path / "weights.pth"))), vit)


def test_objects_are_never_unpickled(tmp_path):
    vit = make_vit()
    torch.save({"model": vit}, tmp_path / "weights.pth")
    with pytest.raises(DataError, match="never unpickled"):
        build(config(vit, str(tmp_path / "weights.pth")))


def test_half_precision_becomes_single(tmp_path):
    vit = make_vit().half()
    model = build(config(vit, saved(vit, tmp_path)))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    same_tokens(model, vit.float())


@pytest.mark.parametrize("how", ["prefix", "file name", "folder", "backbone"])
def test_the_normalisation_of_a_known_architecture_is_folded(tmp_path, how):
    """Pixels normalised our way give what pixels normalised its way give the ViT."""
    name = "deit3_small_patch16_224"
    vit = make_vit(num_heads=6, **VARIANTS["deit3"])
    path = saved(vit, tmp_path, f"{name}.v1.safetensors" if how == "file name" else "model.safetensors")
    changes = {}
    if how == "prefix":
        path = f"{name}@{path}"
    elif how == "folder":
        normalisation = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        content = {"architecture": name, "pretrained_cfg": normalisation}
        (tmp_path / "config.json").write_text(json.dumps(content))
        path = str(tmp_path)
    elif how == "backbone":
        vit = timm.create_model(name, depth=12, img_size=32, patch_size=8).eval()
        path, changes = saved(vit, tmp_path), {"backbone": name, "fusion": {"layer": 12}}
    model, report = build_with_report(config(vit, path, **changes))
    assert "its normalisation folded in" in {start.part: start.how for start in report.starts}["streams.rgb.tokenizer"]
    pixels = torch.rand(2, 3, 1, 32, 32)
    mean, std = (torch.tensor(v)[:, None, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        ours = model.eval()({"rgb": (pixels - 0.5) / 0.5}).tokens["rgb"]
        theirs = vit.forward_features(((pixels - mean) / std)[:, :, 0])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


def test_sound_sees_a_grey_image_and_video_a_still(tmp_path):
    vit = make_vit()
    modalities = {
        "rgb": {"frames": 4, "size": 32, "patch": 8, "tubelet": 2},
        "audio": {"seconds": 0.32, "mel_bins": 32, "patch": [8, 8], "mean": 0, "std": 1},
    }
    model, report = build_with_report(config(vit, saved(vit, tmp_path), modalities=modalities))
    grey = torch.randn(2, 1, 32, 32)
    image = grey.expand(-1, 3, -1, -1)
    still = image[:, :, None].expand(-1, -1, 4, -1, -1)
    with torch.no_grad():
        sound = model.eval()({"audio": grey}).tokens["audio"]
        torch.testing.assert_close(sound, vit.forward_features(image), rtol=0, atol=2e-5)
        patches = model.streams["rgb"].tokenizer(still).x
        torch.testing.assert_close(patches, vit.patch_embed(image).repeat(1, 2, 1), rtol=0, atol=1e-5)
    positions = model.streams["rgb"].pos_embed
    assert torch.equal(positions[:, 1:17], positions[:, 17:])
    how = {start.part: start.how for start in report.starts}
    assert how["streams.audio.tokenizer"] == "channels folded from 3 to 1"
    assert how["streams.rgb.pos_embed"] == "resampled from 4 x 4 to 2 x 4 x 4"
    assert how["streams.rgb.tokenizer"].startswith("kernel fitted from 8 x 8 to 2 x 8 x 8")
    assert how["blocks.rgb"] == how["blocks.audio"] == "copied"
    assert how["head.classifiers._shared"] == "fresh"


def test_a_source_for_each_modality_or_none(tmp_path):
    first, second = make_vit(), make_vit()
    with torch.no_grad():
        second.blocks[0].norm1.bias.add_(1)
        second.norm.bias.add_(1)
    modalities = {
        "rgb": {"frames": 1, "size": 32, "patch": 8, "tubelet": 1},
        "audio": {"seconds": 0.32, "mel_bins": 32, "patch": [8, 8], "mean": 0, "std": 1},
    }
    sources = {"rgb": saved(first, tmp_path, "a.safetensors"), "audio": saved(second, tmp_path, "b.safetensors")}
    model = build(config(first, sources, modalities=modalities))
    assert torch.equal(model.blocks["rgb"]["0"].norm1.bias, first.blocks[0].norm1.bias)
    assert torch.equal(model.blocks["audio"]["0"].norm1.bias, second.blocks[0].norm1.bias)
    assert torch.equal(model.head.norms["_shared"].bias, first.norm.bias)
    model, report = build_with_report(config(first, sources | {"rgb": None}, modalities=modalities))
    assert torch.equal(model.head.norms["_shared"].bias, second.norm.bias)
    assert {start.part for start in report.starts if not start.source} >= {"blocks.rgb", "streams.rgb.tokenizer"}


def test_shared_and_joint_blocks_and_bottlenecks_of_positions(tmp_path):
    vit = make_vit()
    path = saved(vit, tmp_path)
    model = build(config(vit, path, shared_encoder=True))
    assert torch.equal(model.blocks["_shared"]["1"].norm1.bias, vit.blocks[1].norm1.bias)
    sound = {"seconds": 1, "mel_bins": 32, "mean": 0, "std": 1}
    modalities = {"rgb": {"frames": 1, "size": 32, "patch": 8}, "audio": sound}
    fusion = {"strategy": "self-attention", "layer": 1}
    model = build(config(vit, path, modalities=modalities, fusion=fusion))
    assert torch.equal(model.blocks["_joint"]["1"].norm1.bias, vit.blocks[1].norm1.bias)
    fusion = {"layer": 1, "bottlenecks": 5, "bottleneck_init": "positions"}
    model = build(config(vit, path, modalities=modalities, fusion=fusion))
    assert torch.equal(model.fusion.bottlenecks[:, 0], vit.pos_embed[:, 0])
    grid = vit.pos_embed[:, 1:].unflatten(1, (2, 2, 2, 2)).mean((2, 4)).flatten(1, 2)
    assert model.fusion.bottlenecks[:, 1:].shape == grid.shape
    assert model.fusion.bottlenecks.std() > 0.05


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"embed_dim": 48}, {}, "another width than the model: 48, expected 24"),
        ({"depth": 1}, {}, "another depth than the model: 1, expected 2"),
        ({"mlp_ratio": 2}, {}, r"blocks.rgb.0.mlp.fc1.weight is \[48, 24\], expected \[96, 24\]"),
        ({"pre_norm": True}, {}, "another norm before the blocks"),
        ({"reg_tokens": 2}, {}, "has 2 register tokens, the model 0; set .*registers: 2"),
        ({"qk_norm": True}, {}, "attn.q_norm.weight has no place"),
        ({}, {"qk_norm": True}, "attn.q_norm.weight is missing"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, options, changes, message):
    plain, vit = make_vit(), make_vit(**options)
    path = saved(vit, tmp_path)
    with pytest.raises(ConfigError, match=message):
        build(config(plain, path, backbone=backbone_of(plain, **changes)))


def test_another_number_of_heads_is_refused_where_it_is_known(tmp_path):
    vit = make_vit()
    with pytest.raises(ConfigError, match="another number of heads than the model: 6, expected 3"):
        build(config(vit, f"vit_small_patch16_224@{saved(vit, tmp_path)}"))


def test_a_deeper_vit_gives_its_first_blocks(tmp_path):
    vit = make_vit(depth=3)
    model, report = build_with_report(config(vit, saved(vit, tmp_path), backbone=backbone_of(vit, depth=2)))
    assert torch.equal(model.blocks["rgb"]["1"].norm1.bias, vit.blocks[1].norm1.bias)
    assert "the first 2 of 3" in {start.how for start in report.starts}


def test_a_vit_that_pools_by_the_mean(tmp_path):
    """It has no class token, and its final norm goes by another name."""
    vit = make_vit(class_token=False, global_pool="avg", fc_norm=True)
    model, report = build_with_report(config(vit, saved(vit, tmp_path)))
    assert torch.equal(model.head.norms["_shared"].bias, vit.fc_norm.bias)
    assert "streams.rgb.cls_token" in {start.part for start in report.starts if not start.source}
    model = build(config(vit, saved(vit, tmp_path), pool="mean"))
    assert torch.equal(model.streams["rgb"].pos_embed, vit.pos_embed)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "vit_smal_patch16_224",
            "neither a file, nor a folder, nor a timm .* Did you mean 'vit_small_patch16_224'",
        ),
        ("nowhere/weights.safetensors", "no such file or folder: nowhere/weights.safetensors"),
        ("vit_small_patch16_224@nowhere.safetensors", "there is no file 'nowhere.safetensors'"),
        ("resnet50", "'resnet50' is a ResNet; expected a timm VisionTransformer"),
    ],
)
def test_unknown_sources(given, message):
    with pytest.raises(ConfigError, match=message):
        build(config(make_vit(), given))


def test_weights_that_cannot_be_fetched(monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: (_ for _ in ()).throw(OSError("no network")))
    monkeypatch.setattr("mbt_core.pretrained.timm_weights.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nowhere")
    with pytest.raises(MBTError, match=r"'vit_tiny_patch16_224' could not be fetched: .*vit_tiny_patch16_224@FILE"):
        build(config(make_vit(), "vit_tiny_patch16_224"))


def test_files_of_something_else(tmp_path):
    vit = make_vit()
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.safetensors")
    with pytest.raises(DataError, match=r"no VisionTransformer of timm: missing .*pos_embed; unknown conv1.weight"):
        build(config(vit, str(tmp_path / "resnet.safetensors")))
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html>")
    with pytest.raises(DataError, match="a web page, where weights"):
        build(config(vit, str(tmp_path / "page.safetensors")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no weights; expected a run"):
        build(config(vit, str(tmp_path / "empty")))
    state = {key: value for key, value in vit.state_dict().items() if "blocks.1.attn.proj" not in key}
    save_file(state, tmp_path / "gap.safetensors")
    with pytest.raises(ConfigError, match=r"blocks.1.attn.proj.weight is missing"):
        build(config(vit, str(tmp_path / "gap.safetensors")))


# ---- earlier runs


@pytest.fixture
def run(tmp_path, toys):
    """Saves a tiny model of anonymous modalities, and returns it with its folder."""

    def save(folder, strategy="bottleneck", names=("gamma", "alpha", "beta"), **options):
        torch.manual_seed(len(folder))
        model = MBT(only(names, tiny(strategy, **options)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
        model.save_pretrained(tmp_path / folder)
        return model.eval(), str(tmp_path / folder)

    return save


def only(names, tree):
    return tree | {"modalities": {name: INSTANCES[name] for name in names}}


def state_of(model, prefix):
    return {key.removeprefix(prefix): value for key, value in model.state_dict().items() if key.startswith(prefix)}


def equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_single_modality_runs_into_a_joint_model(run):
    runs = {name: run(name, names=[name]) for name in ("alpha", "beta", "gamma")}
    joint, report = build_with_report(tiny() | {"pretrained": {n: path for n, (_, path) in runs.items()}})
    for name, (model, _) in runs.items():
        equal(state_of(joint, f"streams.{name}."), state_of(model, f"streams.{name}."))
        equal(state_of(joint, f"blocks.{name}."), state_of(model, f"blocks.{name}."))
    fresh = {start.part for start in report.starts if not start.source}
    assert fresh == {"fusion.bottlenecks", "head.classifiers._shared"}


def test_a_joint_run_into_fewer_and_more_modalities(run):
    joint, path = run("joint")
    fewer = build(tiny(count=2, pretrained=path))
    for name in ("gamma", "alpha"):
        equal(state_of(fewer, f"streams.{name}."), state_of(joint, f"streams.{name}."))
        equal(state_of(fewer, f"blocks.{name}."), state_of(joint, f"blocks.{name}."))
    assert torch.equal(fewer.fusion.bottlenecks, joint.fusion.bottlenecks)
    equal(state_of(fewer, "head.norms."), state_of(joint, "head.norms."))
    more = tiny(count=3, pretrained=path)
    more["modalities"]["zeta"] = {"kind": "beta", "size": [8, 6]}
    more["modalities"]["eta"] = {"kind": "gamma", "longest": 9}
    more, report = build_with_report(more)
    # by its kind where there is none of its name
    equal(state_of(more, "blocks.zeta."), state_of(joint, "blocks.beta."))
    equal(state_of(more, "streams.eta.tokenizer."), state_of(joint, "streams.gamma.tokenizer."))
    assert more.streams["zeta"].pos_embed.shape == (1, 9, 8)
    assert {start.part for start in report.starts if not start.source} == {"head.classifiers._shared"}


def test_a_run_without_a_counterpart(run):
    _, path = run("joint", names=["gamma", "alpha"])
    other = only(["alpha", "beta"], tiny(pretrained=path))
    _, report = build_with_report(other)
    assert "blocks.beta" in {start.part for start in report.starts if not start.source}
    other["pretrained"] = {"beta": path}
    with pytest.raises(ConfigError, match="has the streams gamma, alpha: none for 'beta' of the kind 'beta'"):
        build(other)


def test_the_only_stream_serves_any_modality(run):
    alone, path = run("alone", names=["gamma"])
    model, report = build_with_report(only(["alpha"], tiny(pretrained=path)))
    equal(state_of(model, "blocks.alpha."), state_of(alone, "blocks.gamma."))
    # a padded sequence has no patches
    assert "streams.alpha.tokenizer" in {start.part for start in report.starts if not start.source}
    with pytest.raises(ConfigError, match=r"no rule leads from a grid of \(6,\) to one of \(2, 2\)"):
        build(only(["beta"], tiny(pretrained=path)))


@pytest.mark.parametrize("strategy", ["bottleneck", "self-attention"])
@pytest.mark.parametrize("shared", [False, True])
def test_the_same_model_again_but_for_its_classifier(run, strategy, shared):
    model, path = run("first", strategy, shared_encoder=shared)
    again = build(tiny(strategy, shared_encoder=shared, pretrained=path)).eval()
    inputs = {n: (x[0].float(), x[1]) if isinstance(x, tuple) else x.float() for n, x in inputs_for(model).items()}
    with torch.no_grad():
        ours, theirs = again(inputs).tokens, model(inputs).tokens
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6)
