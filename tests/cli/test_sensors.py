"""Sensor tables on the command line: what is read of them, and what is not, is said once."""

import numpy as np

from small import mbt, tiny_sets


def write_tables(folder):
    rng = np.random.default_rng(0)
    rows = ["id,accel,other,label,split"]
    for i in range(12):
        samples = 50 * np.sin(np.arange(64) * (0.2 + i % 2)) + rng.normal(size=64)
        (folder / f"e{i}.csv").write_text("1574084410.00\n32.00\n" + "".join(f"{x:.3f}\n" for x in samples))
        (folder / f"o{i}.csv").write_text("time;who;ax\n" + "".join(f"{j};me;{x:.3f}\n" for j, x in enumerate(samples)))
        rows.append(f"r{i},e{i}.csv,o{i}.csv,{'ab'[i % 2]},{'test' if i > 8 else 'train'}")
    (folder / "m.csv").write_text("\n".join(rows) + "\n")
    return folder / "m.csv"


def test_what_is_read_of_tables_is_said(tmp_path):
    data = write_tables(tmp_path)
    expected = [
        "accel: channels 0; left out: 'lines 1 and 2' (start and rate)",
        "other: channels ax; left out: 'time' (a time or an index), 'who' (words)",
    ]
    checked = mbt("data", "check", data, "-m", "accel=signal,other=signal")
    assert checked.code == 0
    assert [line for line in checked.err.splitlines() if "channels" in line] == expected
    sets = [s for s in tiny_sets("rgb", "train.steps=2") if not s.startswith("modalities.")]
    trained = mbt("train", "--data", data, "-m", "accel=signal,other=signal", "--out", "run",
                  *(x for s in sets for x in ("--set", s)))  # fmt: skip
    assert trained.code == 0, trained.err
    assert [line for line in trained.err.splitlines() if "channels" in line] == expected
    assert "rate: 32.0" in (tmp_path / "run" / "config.yaml").read_text()
