"""Models to and from a hub, over its real protocol, on loopback."""

from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import constants

import mbt_core as mbt
from fake_hub import SHA, TOKEN, running
from mbt_core.errors import DataError, MBTError
from toy.models import build_tiny


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with running() as started:
        monkeypatch.setattr(constants, "ENDPOINT", started.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        template = f"{started.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        yield started


@pytest.fixture
def logged_in(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def front_matter(readme):
    _, head, text = readme.split("---\n", 2)
    return yaml.safe_load(head), text


@pytest.mark.usefixtures("logged_in")
def test_a_run_there_and_back(run, hub, tmp_path):
    address = run.push_to_hub("org/tiny", license="cc-by-4.0")
    assert address == f"{hub.address}/org/tiny/commit/{SHA}"
    assert hub.repos["org/tiny"].keys() == {"config.json", "config.yaml", "model.safetensors", "README.md"}
    loaded = mbt.MBT.from_pretrained("org/tiny")
    assert loaded.classes == run.classes
    torch.testing.assert_close(loaded.state_dict(), run.model.state_dict(), rtol=0, atol=0)
    hub.requests.clear()
    again = mbt.MBT.from_pretrained("org/tiny", local_files_only=True)
    assert hub.requests == []
    assert again.config == loaded.config
    folder = huggingface_hub.snapshot_download("org/tiny", local_dir=tmp_path / "copy")
    assert mbt.load(folder).experiment == run.experiment


def test_the_card_says_what_the_run_knows(run, tmp_path):
    run.save_pretrained(tmp_path / "tiny", license="apache-2.0")
    head, text = front_matter((tmp_path / "tiny/README.md").read_text())
    assert head["library_name"] == "mbt-fusion"
    assert head["license"] == "apache-2.0"
    assert {"multimodal", "rgb", "audio"} <= set(head["tags"])
    assert head["metrics"] == ["balanced_accuracy", "macro_f1", "top1", "top5"]
    found = {m["name"]: m["value"] for r in head["model-index"][0]["results"] for m in r["metrics"]}
    assert found == pytest.approx(run.results, abs=1e-6)
    assert {"kind/top1", "kind/top1[rgb]", "loss"} <= found.keys()
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == "small.csv"
    for said in (
        "| rgb | rgb | Frames of a video, or a still |",
        "- sum (single), 3: 0, 1, 2",
        f"| `kind/top1` | {run.results['kind/top1']:.5g} |",
        "fusion `bottleneck` from layer 1, 4 bottlenecks",
        "mbt-fusion 0",  # the versions
        'mbt.MBT.from_pretrained("tiny")',
    ):
        assert said in text, said
    assert (tmp_path / "tiny/config.yaml").read_text() == (run.path / "config.yaml").read_text()


def test_a_card_without_results_and_licence(run, tmp_path):
    mbt.Run(run.path, run.experiment).save_pretrained(tmp_path / "tiny")
    head, text = front_matter((tmp_path / "tiny/README.md").read_text())
    assert not head.keys() & {"license", "metrics", "model-index"}
    assert "No results on a test split are known." in text
    assert "None was given: ask the author" in text


@pytest.mark.usefixtures("logged_in")
def test_a_model_alone(run, hub):
    run.model.push_to_hub("org/bare", private=True)
    assert hub.repos["org/bare"].keys() == {"config.json", "model.safetensors"}
    assert hub.private == {"org/bare"}
    assert mbt.MBT.from_pretrained("org/bare", revision=SHA).config == run.model.config


@pytest.mark.usefixtures("logged_in", "toys")
def test_files_that_belong_to_a_model_go_along(hub, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("one two")
    build_tiny(count=1, modalities={"gamma": {"words": str(words)}}).float().push_to_hub("org/words")
    words.unlink()
    (copy,) = hub.repos["org/words"].keys() - {"config.json", "model.safetensors"}
    assert hub.repos["org/words"][copy] == b"one two"
    loaded = mbt.MBT.from_pretrained("org/words")
    assert Path(loaded.config.modalities["gamma"].words).read_text() == "one two"
    hub.repos["org/other"] = hub.repos["org/words"] | {copy: b"one three"}
    with pytest.raises(DataError, match=r"words-\w+\.txt: has changed"):
        mbt.MBT.from_pretrained("org/other")


def test_a_local_folder_wins(run, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run.model.save_pretrained("org/tiny")
    assert mbt.MBT.from_pretrained("org/tiny").config == run.model.config
    assert hub.requests == []


def test_what_cannot_be_loaded(hub, tmp_path, monkeypatch):
    hub.repos["org/pickled"] = {"config.json": b"{}", "pytorch_model.bin": b"\x80"}
    hub.repos["org/secret"] = {"config.json": b"{}"}
    hub.private.add("org/secret")
    load = mbt.MBT.from_pretrained
    with pytest.raises(DataError, match=r"org/pickled: the repository has no model\.safetensors; weights in other"):
        load("org/pickled")
    assert not [path for _, path in hub.requests if path.endswith(".bin")]
    for name in ("org/none", "org/secret"):
        with pytest.raises(
            DataError, match=f"{name}: there is no such folder here, and the hub has no such repository"
        ):
            load(name)
    with pytest.raises(DataError, match="org/pickled: .* has no such revision"):
        load("org/pickled", revision="v2")
    with pytest.raises(DataError, match=r"nowhere/config\.json: cannot be read: No such file"):
        load("nowhere")
    with pytest.raises(DataError, match=r"org/none/config\.json: cannot be read"):
        load(tmp_path / "org/none")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MBTError, match="org/new: .* the hub cannot be reached"):
        load("org/new")


def test_what_cannot_be_uploaded(run, hub, monkeypatch):
    with pytest.raises(MBTError, match="org/tiny: no token to write with; run `hf auth login`, or set HF_TOKEN"):
        run.push_to_hub("org/tiny")
    assert hub.requests == []
    with pytest.raises(MBTError, match=r"org/tiny: the hub refuses \(HTTP 401\); the token may not write here"):
        run.push_to_hub("org/tiny", token="hf_other")
    with pytest.raises(MBTError, match="'tiny' is no repository of the hub; expected ORG/NAME"):
        run.push_to_hub("tiny")
    assert hub.repos == {}
