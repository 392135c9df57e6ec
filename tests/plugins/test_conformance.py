"""Every registered kind keeps to the contract."""

import pytest

from mbt_core import registry
from mbt_core.conformance import check_kind
from mbt_core.plugins import missing

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


@pytest.mark.parametrize(("kind", "settings"), [*((kind, {}) for kind in KINDS), *OTHER_SETTINGS])
def test_conformance(kind, settings):
    skip_if_not_installed(kind)
    assert [(r.check, r.message) for r in check_kind(kind, settings) if r.status != "ok"] == []
