"""What limits training and what it costs on many devices, by hand."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbt_core import DataError
from mbt_core.analysis.measure import limits
from mbt_core.analysis.measure.limits import Limit, Reading, reading
from mbt_core.analysis.measure.scale import Scale
from mbt_core.training.flops import Step

rates = st.floats(0.1, 1e5)


def of(clips_per_second, packed=False):
    return Reading(clips_per_second, 1e6, 10, 0, packed)


@given(rates, rates, st.integers(1, 128), st.booleans())
def test_training_is_no_faster_than_either_side(read, step, cores, shared):
    limit = Limit(of(read), step, cores, shared)
    assert limit.together <= min(limit.input, limit.step) * (1 + 1e-9)
    assert limit.reading.clips_per_second * limit.cores_needed >= step * (1 - 1e-9)
    if shared:  # the time of a clip is that of reading it and that of computing it
        assert 1 / limit.together == pytest.approx(1 / (read * cores) + 1 / step)
    else:
        assert limit.together == min(limit.input, limit.step)


@pytest.mark.parametrize(
    ("limit", "limiting", "told", "not_told"),
    [
        (Limit(of(10), 400, 16, False), "input", ["the device waits 60%", "mbt data pack", "40 cores"], []),
        (Limit(of(10, packed=True), 400, 16, False), "input", ["waits 60%", "40 cores"], ["mbt data pack"]),
        (Limit(of(100), 400, 16, False), "step", ["the step limits training", "4 of 16 cores"], ["mbt data pack"]),
        (Limit(of(100), 390, 4, False), "both", ["as fast"], []),
        (Limit(of(100), 200, 2, True), "both", ["reading takes 50%", "mbt data pack"], []),
        (Limit(of(1000), 20, 2, True), "step", ["the step limits", "reading takes 1%"], ["mbt data pack"]),
    ],
)
def test_advice_names_what_limits(limit, limiting, told, not_told):
    advice = limit.advice()
    assert limit.limiting == limiting
    assert "\n" not in advice
    assert all(part in advice for part in told), advice
    assert not any(part in advice for part in not_told), advice


class Files:
    """Reads one real file for a row; each takes a second of a clock that only this moves."""

    def __init__(self, path, clock, bad=()):
        self.path, self.clock, self.bad, self.read = path, clock, bad, []
        self.manifest = SimpleNamespace(row=lambda index: SimpleNamespace(files=lambda: {str(path): ["a"]}))

    def __getitem__(self, draw):
        self.clock[0] += 1.0
        self.path.read_bytes()
        self.read.append(draw.index)
        return [SimpleNamespace(error="broken" if draw.index in self.bad else None)]


@pytest.fixture
def files(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(limits.time, "perf_counter", lambda: clock[0])
    path = tmp_path / "clip"
    path.write_bytes(bytes(3_000_000))
    return lambda bad=(): Files(path, clock, bad)


def test_reading_counts_rows_bytes_and_failures(files):
    dataset = files(bad=(7,))
    found = reading(dataset, [5, 6, 7, 8, 9, 10], seconds=4.0)
    assert dataset.read == [5, 6, 7, 8, 9]  # the first does not count, the last is not reached
    assert (found.clips, found.failed, found.packed) == (4, 1, False)
    assert found.clips_per_second == pytest.approx(1.0)
    assert found.bytes_per_clip == pytest.approx(3_000_000, rel=0.01)


def test_bytes_of_other_machines_are_not_known(files, monkeypatch):
    """The system does not count what comes over connections, and nothing is not what was read."""
    monkeypatch.setattr(limits, "packed", lambda path: ("here.tar", "0", "path"))
    monkeypatch.setattr(limits, "url_of", lambda path: None)
    assert reading(files(), [1, 2, 3], 9.0).bytes_per_clip == pytest.approx(3_000_000, rel=0.01)
    monkeypatch.setattr(limits, "url_of", lambda path: f"s3://bucket/{path}")
    found = reading(files(), [1, 2, 3], 9.0)
    assert (found.bytes_per_clip, found.packed) == (None, True)


@pytest.mark.parametrize(("rows", "message"), [([], "no row"), ([7, 7, 7], "none of 2 rows"), ([1], "one row")])
def test_nothing_to_read(files, rows, message):
    with pytest.raises(DataError, match=message):
        reading(files(bad=(7,)), rows, seconds=9.0)


def test_a_run_on_many_devices_by_hand():
    scale = Scale(4, 64, 1000, 50, Step(6_000_000_000, 25_000_000, 120), device=16.0, reading=of(8.0))
    assert scale.tokens == 64 * 120
    assert scale.step_gflops == pytest.approx(3 * 64 * 2.0)
    assert scale.exchanged == pytest.approx(2 * 3 / 4 * 100e6)
    assert scale.speed == 64.0
    assert scale.seconds == pytest.approx(50.0)
    assert scale.bytes_per_second == pytest.approx(64e6)
    assert scale.cores == 8
    told = dict(scale.table())
    assert told["epochs"] == "3.2"
    assert told["device hours"] == f"{200 / 3600:.3g}"


def test_what_is_not_known_is_not_told():
    scale = Scale(1, 8, 10, 5, Step(10**9, 10**6, 1), None, None)
    assert scale.exchanged == 0
    assert (scale.seconds, scale.cores, scale.bytes_per_second) == (None, None, None)
    assert not {"hours in all", "reading cores", "read from files"} & {name for name, _ in scale.table()}
