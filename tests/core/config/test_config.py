"""The experiment: defaults, what is refused and how it is said, and the way through YAML and flags."""

import json

import pytest
import yaml

import mbt_core as mbt
from mbt_core.config import BackboneConfig, HeadConfig, MBTConfig, TrainConfig, parse_modalities
from mbt_core.config.schema import validate
from mbt_core.config.settings import apply_sets, merge, read_yaml, to_yaml

pytestmark = pytest.mark.usefixtures("toys")


def experiment(**parts):
    return validate(mbt.Experiment, {"modalities": {"alpha": {}, "gamma": {}}, **parts})


def refused(**parts):
    with pytest.raises(mbt.ConfigError) as error:
        experiment(**parts)
    assert error.value.exit_code == 2
    return str(error.value)


STRATEGIES = "bottleneck, bottleneck-sequential, cross-attention, late, self-attention"
WRONG = [
    # model
    ({"fusoin": {}}, "fusoin: unknown key. Did you mean 'fusion'?"),
    ({"backbone": {"dmi": 8}}, "backbone.dmi: unknown key. Did you mean 'dim'?"),
    ({"backbone": {"dim": 10}}, "backbone: dim 10 is not a multiple of heads 4"),
    ({"backbone": {"depth": 0}}, "backbone.depth: input should be greater than 0, got 0."),
    ({"backbone": 5}, "backbone: input should be a valid string or a valid dictionary"),
    ({"backbone": {"depth": 2}, "fusion": {"layer": 3}}, "fusion.layer: 3 is above the depth 2; expected 0 to 2"),
    ({"fusion": {"layer": -1}}, "fusion.layer: input should be greater than or equal to 0 or 'auto', got -1."),
    (
        {"fusion": {"strategy": "bottlneck"}},
        f"fusion.strategy: unknown fusion strategy 'bottlneck'. Did you mean 'bottleneck'? Known: {STRATEGIES}",
    ),
    ({"fusion": {"bottlenecks": 0}}, "fusion.bottlenecks: input should be greater than 0, got 0."),
    ({"pool": "max"}, "pool: input should be 'cls', 'mean', 'mean-joint' or 'auto', got 'max'."),
    ({"drop_path": 1.0}, "drop_path: input should be less than 1, got 1.0."),
    ({"head": {"classes": 3, "tasks": {"a": 2}}}, "head: both classes and tasks are given; use classes for one task"),
    ({"head": {"tasks": {}}}, "head.tasks: empty; expected TASK: number of classes"),
    ({"head": {"tasks": {"a": 0}}}, "head.tasks.a: expected at least 1 class, got 0"),
    ({"head": {"tasks": {"A b": 2}}}, "head.tasks: the name 'A b' is not of the form [a-z][a-z0-9_]*"),
    ({"head": {"classes": 2, "task": "singel"}}, "head.task: input should be 'single', 'multilabel' or 'regression'"),
    (
        {"head": {"tasks": {"verb": 2}, "task": {"vreb": "single"}}},
        "head.task: unknown task 'vreb'. Did you mean 'verb'?",
    ),
    ({"head": {"tasks": {"verb": 2}, "task_weights": {"x": 1}}}, "head.task_weights: unknown task 'x'. Known: verb"),
    ({"head": {"task_weights": {"label": -1}}}, "head.task_weights.label: input should be greater than or equal to 0"),
    (
        {"head": {"modality_weights": {"alpa": 1}}},
        "head.modality_weights: unknown modality 'alpa'. Did you mean 'alpha'? Known: alpha, gamma",
    ),
    ({"pretrained": {"beta": None}}, "pretrained: unknown modality 'beta'. Known: alpha, gamma"),
    (
        {"pool": "mean-joint", "head": {"loss": "per-modality"}},
        "head.loss: 'per-modality' needs logits per modality, but model.pool 'mean-joint' has none; "
        "set model.head.loss=fused, or model.pool=mean or cls",
    ),
    (
        {"pool": "mean-joint", "head": {"shared": False}},
        "head.shared: false needs logits per modality; set model.pool=mean or cls",
    ),
]


@pytest.mark.parametrize(("model", "message"), WRONG)
def test_wrong_models(model, message):
    said = refused(model=model)
    assert said.startswith(f"model.{message}")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("part", "given", "message"),
    [
        ("train", {"lr": 0}, "train.lr: input should be greater than 0, got 0."),
        ("train", {"lr": float("inf")}, "train.lr: input should be a finite number, got inf."),
        ("train", {"lr": True}, "train.lr: expected a number, not a boolean (got: True)"),
        ("train", {"steps": True}, "train.steps: expected a number, not a boolean (got: True)"),
        ("train", {"betas": [0.9, False]}, "train.betas: expected a number, not a boolean (got: [0.9, False])"),
        ("train", {"lr_factors": {"alpha": True}}, "train.lr_factors: expected a number, not a boolean (got:"),
        ("train", {"steps": 0}, "train.steps: expected at least 1 (got: 0)"),
        (
            "train",
            {"batch_size": "atuo"},
            "train.batch_size: input should be a valid integer or 'auto', got 'atuo'. Did",
        ),
        (
            "train",
            {"optimizer": "adam"},
            "train.optimizer: input should be 'sgd' or 'adamw', got 'adam'. Did you mean",
        ),
        ("train", {"betas": [0.9, 1]}, "train.betas.1: input should be less than 1, got 1."),
        ("train", {"precision": 16}, "train.precision: input should be '32' or 'bf16', got '16'."),
        ("train", {"modality_dropout": 1}, "train.modality_dropout: expected 0 <= p < 1, got 1"),
        ("train", {"modality_dropout": {"alpa": 0.1}}, "train.modality_dropout: unknown modality 'alpa'. Did you mean"),
        ("train", {"lr_factors": {"beta": 2}}, "train.lr_factors: unknown modality 'beta'. Known: alpha, gamma"),
        ("train", {"lr_factors": {"alpha": -1}}, "train.lr_factors.alpha: input should be greater than or equal to 0"),
        ("train", {"loggers": ["json"]}, "train.loggers: unknown logger 'json'. Did you mean 'jsonl'? Known: jsonl"),
        ("data", {"workers": -1}, "data.workers: input should be greater than or equal to 0 or 'auto', got -1."),
        ("data", {"folds": 3, "fold": 3}, "data.fold: 3, but data.folds is 3; folds count from 0"),
        ("data", {"fold": 1}, "data.fold: 1, but data.folds is None; folds count from 0"),
        ("data", {"fraction": 0}, "data.fraction: input should be greater than 0, got 0."),
        ("data", {"max_missing": 2}, "data.max_missing: input should be less than or equal to 1, got 2."),
        ("evaluate", {"views": 0}, "evaluate.views: input should be greater than or equal to 1, got 0."),
        ("modalities", {}, "modalities: none given; known kinds: alpha, audio, beta"),
        ("modalities", ["alpha"], "modalities: expected NAME: settings, got ['alpha']"),
        ("modalities", {"alpha": 3}, "modalities.alpha: expected settings as KEY: VALUE, got 3"),
        ("modalities", {"alpa": {}}, "modalities.alpa: unknown modality 'alpa'. Did you mean 'alpha'? Known: alpha"),
        ("modalities", {"a": {"kind": "alpa"}}, "modalities.a: unknown modality 'alpa'. Did you mean 'alpha'?"),
        ("modalities", {"a": {"kind": ["alpha"]}}, "modalities.a: unknown modality \"['alpha']\""),
        (
            "modalities",
            {"alpha": {"pacth": 3}},
            "modalities.alpha.pacth: unknown key. Did you mean 'patch'? Known here:",
        ),
        ("modalities", {"beta": {"size": [4, 0]}}, "modalities.beta.size.1: input should be greater than 0, got 0."),
        ("modalities", {"Alpha": {"kind": "alpha"}}, "modalities: the name 'Alpha' is not of the form [a-z][a-z0-9_]*"),
        ("modalities", {1: {"kind": "alpha"}}, "modalities: the name 1 is not of the form [a-z][a-z0-9_]*"),
        ("optim", {}, "optim: unknown key. Known here: data, evaluate, modalities, model, train"),
    ],
)
def test_wrong_experiments(part, given, message):
    said = refused(**{part: given})
    assert said.startswith(message)
    assert "\n" not in said


def test_names_are_checked_for_ready_made_settings_too(toys):
    settings = experiment().modalities["alpha"]
    with pytest.raises(mbt.ConfigError, match=r"the name 'Bad.Name' is not of the form"):
        parse_modalities({"Bad.Name": settings})
    assert parse_modalities({"good_1": settings}) == {"good_1": settings}


def test_defaults_are_the_paper():
    model = experiment().model
    assert (model.backbone, model.pool, model.shared_encoder) == ("vit_base_patch16_224", "cls", False)
    assert (model.fusion.strategy, model.fusion.layer, model.fusion.bottlenecks) == ("bottleneck", 8, 4)
    train = experiment().train
    assert (train.optimizer, train.lr, train.momentum, train.batch_size) == ("sgd", 0.5, 0.9, 64)
    assert BackboneConfig(dim=8, heads=2).mlp_width == 32


def test_instances_of_kinds_keep_their_order_and_kind():
    modalities = experiment(
        modalities={"right": {"kind": "gamma"}, "alpha": None, "left": {"kind": "alpha"}}
    ).modalities
    assert {name: config.kind for name, config in modalities.items()} == {
        "right": "gamma",
        "alpha": "alpha",
        "left": "alpha",
    }
    assert list(modalities) == ["right", "alpha", "left"]


def test_tasks():
    one = HeadConfig(classes=7, task="multilabel")
    assert (one.outputs, one.kind_of("label")) == ({"label": 7}, "multilabel")
    several = HeadConfig(tasks={"verb": 3, "size": 1}, task={"size": "regression"})
    assert several.outputs == {"verb": 3, "size": 1}
    assert [several.kind_of(task) for task in several.outputs] == ["single", "regression"]
    assert HeadConfig().outputs == {}


def test_joint_pool_has_the_fused_loss():
    """The configuration says what is done, and loads again after it was written out in full."""
    shared = HeadConfig(classes=3)
    for pool, loss in (("mean-joint", "fused"), ("mean", "per-modality")):
        config = MBTConfig(modalities={"alpha": {}}, pool=pool, head=shared)
        assert config.head.loss == loss
        again = validate(MBTConfig, json.loads(config.model_dump_json()))
        assert again == config
    assert shared.loss == "per-modality"


@pytest.mark.parametrize("value", [32, "32"])
def test_precision_may_be_a_number(value):
    assert TrainConfig(precision=value).precision == "32"


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {
            "model": {
                "pool": "mean-joint",
                "backbone": {"dim": 8, "heads": 2, "depth": 9},
                "head": {"tasks": {"verb": 2}},
            }
        },
        {
            "modalities": {"left": {"kind": "beta", "size": [8, 8]}, "alpha": {"channels": "auto"}},
            "model": {"pretrained": {"left": "vit_tiny_patch16_224", "alpha": None}, "head": {"classes": 4}},
            "data": {"path": "clips/größe.csv", "folds": 5, "fold": 4, "workers": 0},
            "train": {"precision": 32, "betas": [0.8, 0.9], "modality_dropout": {"left": 0.5}, "freeze": ["streams.*"]},
        },
    ],
)
def test_written_as_yaml_and_read_again(parts, tmp_path):
    config = experiment(**parts)
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    again = validate(mbt.Experiment, read_yaml(path))
    assert again == config
    assert to_yaml(again) == to_yaml(config)


def test_model_of_an_experiment():
    config = experiment(model={"head": {"classes": 3}, "pool": "mean"}).mbt_config()
    assert isinstance(config, MBTConfig)
    assert (config.pool, config.head.classes, list(config.modalities)) == ("mean", 3, ["alpha", "gamma"])
    nested = mbt.Experiment(modalities={"alpha": {}}, model=config)
    assert list(nested.mbt_config().modalities) == ["alpha"]


def test_mixup_per_modality_needs_labels_per_modality():
    expected = (
        "train.mixup_per_modality: each modality's labels are mixed by its own weight, which needs "
        "model.head.loss=per-modality and model.pool=cls or mean"
    )
    for model in ({"pool": "mean-joint"}, {"head": {"loss": "fused"}}):
        assert refused(model=model, train={"mixup_per_modality": True}) == expected


def test_weights_of_modalities_need_losses_of_modalities():
    expected = (
        "model.head.modality_weights: they weigh each modality's own loss, which needs "
        "model.head.loss=per-modality and model.pool=cls or mean"
    )
    weights = {"modality_weights": {"alpha": 2}}
    assert refused(model={"head": {**weights, "loss": "fused"}}) == expected
    assert refused(model={"head": weights, "pool": "mean-joint"}) == expected
    assert experiment(model={"head": weights}).model.head.modality_weights == {"alpha": 2}


def test_sets():
    tree = {"model": {"backbone": {"depth": 2}, "pretrained": None}, "train": None}
    sets = ["model.backbone.dim=64", "train.lr=1e-3", "train.betas=[0.8, 0.9]", "data.path=a=b.csv", "data.group=null",
            "model.pretrained.alpha=x"]  # fmt: skip
    found = apply_sets(tree, sets)
    assert found["model"] == {"backbone": {"depth": 2, "dim": 64}, "pretrained": {"alpha": "x"}}
    assert found["data"] == {"path": "a=b.csv", "group": None}
    assert tree == {"model": {"backbone": {"depth": 2}, "pretrained": None}, "train": None}
    assert validate(TrainConfig, found["train"]).lr == 0.001
    assert validate(TrainConfig, found["train"]).betas == (0.8, 0.9)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.layer", "--set 'model.layer': expected KEY.PATH=VALUE, e.g. model.fusion.layer=4"),
        ("=3", "--set '=3': expected KEY.PATH=VALUE, e.g. model.fusion.layer=4"),
        ("model..layer=3", "--set 'model..layer=3': expected KEY.PATH=VALUE, e.g. model.fusion.layer=4"),
        ("model.x=[1", "--set 'model.x=[1': '[1' is not a YAML value"),
        (
            "model.backbone.registers=4",
            "model.backbone is 'vit_base_patch16_224': it has no key 'registers'; set a mapping in its place: "
            "model.backbone={registers: VALUE, ...}",
        ),
    ],
)
def test_wrong_sets(assignment, message):
    with pytest.raises(mbt.ConfigError) as error:
        apply_sets({"model": {"backbone": "vit_base_patch16_224"}}, [assignment])
    assert str(error.value) == message


def test_merge():
    base = {"a": {"b": 1, "c": {"d": 2}}, "e": [1]}
    assert merge(base, {"a": {"c": {"d": 3}}, "e": [2], "f": None}) == {
        "a": {"b": 1, "c": {"d": 3}},
        "e": [2],
        "f": None,
    }
    assert merge(base, {"a": "x"}) == {"a": "x", "e": [1]}
    assert base == {"a": {"b": 1, "c": {"d": 2}}, "e": [1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"- a\n", "expected KEY: VALUE at the top, got list"),
        (b"a: [1\nb: 2", "not valid YAML: while parsing a flow sequence"),
        (b"a: \xff\xfe", "cannot be read: 'utf-8' codec"),
        (b"a: !!python/object/apply:os.getcwd []", "not valid YAML: could not determine a constructor"),
    ],
)
def test_wrong_yaml_files(content, message, tmp_path):
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(mbt.ConfigError) as error:
        read_yaml(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_empty_yaml_is_an_empty_mapping(tmp_path):
    (tmp_path / "x.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "x.yaml") == {}
    assert yaml.safe_load(to_yaml(experiment()))["train"]["precision"] == "32"
