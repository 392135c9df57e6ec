"""Every registered kind keeps to the contract."""

import pytest

from mbt_core import Clip, DataError, registry
from mbt_core.config import parse_modalities
from mbt_core.plugins import missing
from mbt_core.testing.conformance import check_kind

KINDS = sorted(registry().modalities)
OTHER_SETTINGS = [
    ("signal", {"view": "spectrogram"}),
    ("signal", {"jitter": 0.05, "scaling": 0.1, "time_masks": 2}),
    ("audio", {"seconds": "auto", "time_masks": 2, "freq_masks": 2}),
    ("flow", {"source": "npy", "size": 48}),
    ("flow", {"source": "jpeg", "size": 48, "short_side": 48, "seconds": "auto"}),
    ("text", {"token_dropout": 0.3}),
]


def skip_if_not_installed(kind: str) -> None:
    spec = registry().modality(kind)
    if missing(spec):
        pytest.skip(f"{', '.join(missing(spec))} not installed")


STEMS = [(kind, {"stem": "conv"}) for kind in KINDS if "stem" in registry().config_class(kind).model_fields]


@pytest.mark.parametrize(("kind", "settings"), [*((kind, {}) for kind in KINDS), *OTHER_SETTINGS, *STEMS])
def test_conformance(kind, settings):
    skip_if_not_installed(kind)
    assert [(r.check, r.message) for r in check_kind(kind, settings) if r.status != "ok"] == []


@pytest.mark.parametrize(("kind", "field"), [("audio", "seconds"), ("flow", "std"), ("rgb", "frames"),
                                             ("signal", "rate"), ("text", "max_length")])  # fmt: skip
def test_fit_says_why_no_clip_is_readable(kind, field, tmp_path):
    skip_if_not_installed(kind)
    config = parse_modalities({kind: {field: "auto"}})[kind]
    clips = [(Clip(tmp_path / name), None) for name in ("gone.npy", "other.npy")]
    with pytest.raises(DataError, match=rf"{kind}: no readable .*; the first: .*gone\.npy: "):
        registry().modality_class(kind).fit(config, clips)
