"""What `auto` comes to in a model that starts from weights: geometry, pool, patches, the fusion layer."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from mbt_core import MBT, ConfigError, build
from mbt_core.config import MBTConfig
from mbt_core.pretrained.follow import backbone_of, follow_weights
from mbt_core.pretrained.sources import IMAGE, open_source
from toy.models import tiny

pytestmark = pytest.mark.usefixtures("toys")


def write_vit(path, **options):
    """A small ViT of 2 blocks, 128 wide, patches of 8."""
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2} | options
    vit = VisionTransformer(num_classes=0, **options).eval()
    save_file(vit.state_dict(), path)
    return vit


def config(pretrained, **changes):
    return {
        "modalities": {"rgb": {"frames": 1, "size": 32, "patch": "auto"}},
        "backbone": "auto",
        "pool": "auto",
        "pretrained": pretrained,
        "fusion": {"layer": "auto"},
        "head": {"classes": 3},
    } | changes


def test_a_model_takes_all_from_the_file(tmp_path):
    vit = write_vit(tmp_path / "weights.safetensors", mlp_ratio=3, init_values=0.1, reg_tokens=3)
    model = build(config(str(tmp_path / "weights.safetensors")))
    assert model.backbone.model_dump(exclude_defaults=True) == {
        **{"depth": 2, "heads": 2, "mlp": 384, "layer_scale": 1.0, "registers": 3}
    }
    assert (model.config.pool, model.config.fusion.layer) == ("cls", 1)
    assert model.modalities["rgb"].config.patch == 8
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = model.eval()({"rgb": image[:, :, None]}).tokens["rgb"]
        torch.testing.assert_close(tokens, vit.forward_features(image), rtol=0, atol=2e-5)


def test_a_vit_without_a_class_token_is_pooled_by_the_mean(tmp_path):
    write_vit(tmp_path / "weights.safetensors", class_token=False, global_pool="avg")
    assert build(config(str(tmp_path / "weights.safetensors"))).config.pool == "mean"


@pytest.mark.parametrize(("dim", "heads"), [(192, 3), (128, 2), (48, 1), (1280, 16)])
def test_heads_that_a_file_hides(tmp_path, dim, heads):
    write_vit(tmp_path / "weights.safetensors", embed_dim=dim, num_heads=heads, depth=1)
    vit = open_source(str(tmp_path / "weights.safetensors"), "auto").streams[IMAGE]
    assert backbone_of(vit).heads == heads


def test_the_name_of_a_file_tells_its_heads_and_must_be_right(tmp_path):
    path = tmp_path / "vit_tiny_patch16_224.some.safetensors"
    write_vit(path, embed_dim=192, num_heads=3)
    vit = open_source(str(path), "auto").streams[IMAGE]
    assert (backbone_of(vit).heads, vit.mean) == (3, (0.5, 0.5, 0.5))
    with pytest.raises(ConfigError, match=r"is said to be a vit_small_patch16_224, which is 384 wide, .* 192 wide"):
        build(config(f"vit_small_patch16_224@{path}"))
    with pytest.raises(ConfigError, match=r"192 wide, which is no multiple of 5 heads; .* NAME@FILE"):
        backbone_of(replace(vit, heads=5))


def test_weights_of_two_geometries_are_refused(tmp_path):
    write_vit(tmp_path / "one.safetensors")
    write_vit(tmp_path / "other.safetensors", depth=3)
    sources = {name: f"{tmp_path}/{file}.safetensors" for name, file in (("rgb", "one"), ("left", "other"))}
    modalities = {"rgb": {"frames": 1, "size": 32}, "left": {"kind": "rgb", "frames": 1, "size": 32}}
    with pytest.raises(ConfigError, match=r"are of different models \(depth 2 and 3\)"):
        build(config(sources, modalities=modalities))


def test_auto_without_weights():
    for make in (MBT, build):
        with pytest.raises(ConfigError, match=r"model\.backbone is still 'auto': .* set model\.backbone to"):
            make(tiny(backbone="auto"))
    model = MBT(tiny(pool="auto", fusion={"layer": "auto"}))
    assert (model.config.pool, model.config.fusion.layer) == ("cls", 2)
    assert model.saved_config["fusion"]["layer"] == 2


def test_a_run_gives_its_inputs_too(tmp_path):
    """Of the same kind, whatever the name; what is set stays."""
    own = {"frames": 1, "size": 48, "patch": 12}
    MBT(config(None, modalities={"rgb": own}, backbone={"dim": 24, "depth": 3, "heads": 3}, fusion={"layer": 1})
        ).save_pretrained(tmp_path / "model")  # fmt: skip
    modalities = {"left": {"kind": "rgb", "frames": 1, "size": "auto", "patch": "auto"},
                  "right": {"kind": "rgb", "frames": 1, "size": 24, "patch": "auto"}}  # fmt: skip
    parsed = MBTConfig(**config(str(tmp_path / "model"), modalities=modalities))
    model, filled = follow_weights(parsed, parsed.modalities)
    assert (model.backbone.dim, model.backbone.depth, model.backbone.heads) == (24, 3, 3)
    assert model.fusion.layer == 2
    assert [(c.size, c.patch) for c in filled.values()] == [(48, 12), (24, 12)]


def test_statistics_of_a_run_are_those_of_inputs_made_alike(tmp_path):
    own = {"seconds": 1.0, "mel_bins": 32, "patch": [16, 16], "mean": -5.0, "std": 4.0}
    MBT(config(None, modalities={"audio": own}, backbone={"dim": 24, "depth": 3, "heads": 3}, fusion={"layer": 1})
        ).save_pretrained(tmp_path / "model")  # fmt: skip
    found = {}
    for mel_bins in (32, 64):
        open_ = {"seconds": 1.0, "mel_bins": mel_bins, "patch": "auto", "mean": "auto", "std": "auto"}
        parsed = MBTConfig(**config(str(tmp_path / "model"), modalities={"audio": open_}))
        found[mel_bins] = follow_weights(parsed, parsed.modalities)[1]["audio"]
    assert (found[32].mean, found[32].std) == (-5.0, 4.0)
    assert (found[64].mean, found[64].std) == ("auto", "auto")
    assert found[32].patch == found[64].patch == (16, 16)
