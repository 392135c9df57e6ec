"""``mbt bench`` on the paper's model, against a count by hand."""

import json
from functools import cache

import pytest
import typer
from typer.testing import CliRunner

from mbt_cli.bench import bench
from mbt_core import ConfigError, MBTConfig
from mbt_core.analysis.measure.bench import over_layers

D, DEPTH, FIRST, Z = 768, 12, 8, 4
RGB, AUDIO = 8 * 14 * 14, 50 * 8


def run(*arguments):
    app = typer.Typer()
    app.command()(bench)
    done = CliRunner().invoke(app, ["--no-time", *arguments], catch_exceptions=True)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@cache
def paper():
    return json.loads(run("--json"))


def block(queries, keys):
    """A transformer block of ViT-B with a multiplication and an addition as two operations."""
    projections = queries * D * D + 2 * keys * D * D + queries * D * D
    attention = 2 * queries * keys * D
    return 2 * (projections + attention + 2 * queries * D * 4 * D)


@pytest.mark.slow
def test_the_paper_s_model_by_hand():
    rgb, audio = RGB + 1, AUDIO + 1
    both = rgb + audio
    alone = block(rgb, rgb) + block(audio, audio)
    fused = {
        "bottleneck": block(rgb + Z, rgb + Z) + block(audio + Z, audio + Z),
        "bottleneck-sequential": block(rgb + Z, rgb + Z) + block(audio + Z, audio + Z),
        "cross-attention": block(rgb, both) + block(audio, both),
        "self-attention": block(both, both),
        "late": alone,
    }
    found = paper()
    assert found["tokens"] == {"rgb": RGB, "audio": AUDIO}
    assert found["fusion_layer"] == FIRST
    costs = {cost["strategy"]: cost["gflops"] for cost in found["strategies"]}
    assert next(iter(costs)) == "bottleneck"
    assert set(costs) >= set(fused)
    for strategy, flops in fused.items():
        assert costs[strategy]["tokenizers"] == pytest.approx(2 * D * (RGB * 3 * 256 + AUDIO * 256) / 1e9)
        assert costs[strategy]["stream layers"] == pytest.approx(FIRST * alone / 1e9)
        assert costs[strategy]["fused layers"] == pytest.approx((DEPTH - FIRST) * flops / 1e9)
        assert costs[strategy]["head"] == pytest.approx(2 * 2 * D * 527 / 1e9)
    assert costs["bottleneck"]["all"] == pytest.approx(433.98, abs=0.01)


def test_the_paper_s_parameters_by_hand():
    one = 4 * D * D + 4 * D + 2 * 4 * D * D + 5 * D + 4 * D
    costs = {cost["strategy"]: cost["parameters"] for cost in paper()["strategies"]}
    assert costs["late"]["fused layers"] == 2 * 4 * one
    assert costs["bottleneck"]["fused layers"] == 2 * 4 * one + Z * D
    assert costs["self-attention"]["fused layers"] == 4 * one
    assert costs["late"]["head"] == 2 * D + D * 527 + 527
    positions = (RGB + 1 + AUDIO + 1) * D
    assert costs["late"]["tokenizers"] == (3 * 256 + 256 + 2 + 2) * D + positions


@pytest.mark.slow
def test_bottlenecks_cost_less_than_pairwise_attention_at_every_fusion_layer():
    config = MBTConfig(modalities={"rgb": {}, "audio": {"mean": 0.0, "std": 1.0}}, head={"classes": 527})
    layers = [0, 8, 11, 12]
    curves = over_layers(config, ["bottleneck", "cross-attention", "self-attention", "late"], layers)
    for layer in layers[:-1]:
        assert curves["late"][layer] < curves["bottleneck"][layer]
        assert curves["bottleneck"][layer] < min(curves["cross-attention"][layer], curves["self-attention"][layer])
    assert len({round(curve[12], 6) for curve in curves.values()}) == 1
    # linear in the fusion layer, so it holds between those too
    for curve in curves.values():
        assert curve[8] == pytest.approx((curve[0] + 2 * curve[12]) / 3)
    assert curves["bottleneck"][0] < 1.01 * curves["late"][0]


SMALL = ("--set", "model.backbone={dim: 16, depth: 2, heads: 2}", "--set", "model.fusion.layer=1")


def test_tables_and_figure(tmp_path):
    out = run(*SMALL, "--modalities", "audio", "--plot", str(tmp_path / "cost.svg"))
    assert "tokens: audio 400; fusion from layer 1" in out
    assert "x late" in out
    assert "clips/s" not in out
    assert "fusion layer" in (tmp_path / "cost.svg").read_text(encoding="utf-8")


@pytest.mark.slow
def test_curves_as_json(tmp_path):
    found = json.loads(run(*SMALL, "--json", "--plot", str(tmp_path / "cost.png")))
    assert list(found["gflops_over_fusion_layer"]["late"]) == ["0", "1", "2"]
    assert found["device"] is None
    assert found["strategies"][0]["inference"] is None


def test_recipes_and_what_they_leave_open():
    found = json.loads(run("--recipe", "vggsound", "--json", *SMALL))
    assert found["tokens"]["audio"] == 400
    with pytest.raises(ConfigError, match=r"modalities\.rgb\.frames, .*'auto' is filled from data"):
        run("--recipe", "small")
    with pytest.raises(ConfigError, match="expected a name ending in"):
        run("--plot", "x.doc")
