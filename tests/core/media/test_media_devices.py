# ruff: noqa: E501 - lines of files as they are
"""Tables as devices, apps and spreadsheets write them: what of them are samples, and what is said of the rest."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mbt_core.media import Clip, MediaError

# name -> text, columns, samples of each, what is left out
DEVICES = {
    "empatica e4, acceleration": (
        "1574084410.000000, 1574084410.000000, 1574084410.000000\n32.000000, 32.000000, 32.000000\n-50,3,38\n-51,3,37\n",
        {"0": [-50, -51], "1": [3, 3], "2": [38, 37]},
        ["lines 1 and 2"],
    ),
    "empatica e4, skin conductance": (
        "1574084410.00\n4.000000\n0.000000\n0.205034\n0.210160\n",
        {"0": [0, 0.205034, 0.210160]},
        ["lines 1 and 2"],
    ),
    "empatica embraceplus": (
        "timestamp_unix,timestamp_iso,participant_full_id,eda_scl_usiemens,missing_value_reason\n"
        "1671619800000,2022-12-21T10:50:00Z,1-1-X,0.12,\n1671619860000,2022-12-21T10:51:00Z,1-1-X,,device_not_recording\n",
        {"eda_scl_usiemens": [0.12, np.nan]},
        ["timestamp_unix", "timestamp_iso", "participant_full_id", "missing_value_reason"],
    ),
    "wisdm": (
        "33,Jogging,49105962326000,-0.69,12.68,0.50;\n33,Jogging,49106062271000,5.01,11.26,0.95;\n",
        {"3": [-0.69, 5.01], "4": [12.68, 11.26], "5": [0.5, 0.95]},
        ["0", "1", "2"],
    ),
    "shimmer": (
        "sep=\t\nShimmer_AE03_Timestamp_Unix_CAL\tShimmer_AE03_Accel_LN_X_CAL\tShimmer_AE03_GSR_CAL\t\nms\tm/(s^2)\tkOhms\t\n"
        "1505291011321.6\t-2.5\t831.2\t\n1505291011341.1\t-2.25\t830.0\t\n",
        {"Shimmer_AE03_Accel_LN_X_CAL": [-2.5, -2.25], "Shimmer_AE03_GSR_CAL": [831.2, 830]},
        ["line 3", "Shimmer_AE03_Timestamp_Unix_CAL"],
    ),
    "shimmer, calibrated": (
        "Timestamp\tAccel X\tAccel Y\nCAL\tCAL\tCAL\nms\tm/(s^2)\tm/(s^2)\n0.0\t1.5\t2\n19.5\t2.5\t3\n39\t3.5\t5\n",
        {"Accel X": [1.5, 2.5, 3.5], "Accel Y": [2, 3, 5]},
        ["line 2", "line 3", "Timestamp"],
    ),
    "actigraph": (
        "------------ Data File Created By ActiGraph GT3X+ ActiLife v6.11.9 Firmware v2.5.0 date format M/d/yyyy at 30 Hz "
        "Filter Normal -----------\nSerial Number: NEO1C15110135\nStart Time 13:52:00\nStart Date 10/8/2015\n"
        "Epoch Period (hh:mm:ss) 00:00:00\nDownload Time 14:05:51\nDownload Date 10/8/2015\nCurrent Memory Address: 0\n"
        "Current Battery Voltage: 4.21     Mode = 12\n--------------------------------------------------\n"
        "Timestamp,Accelerometer X,Accelerometer Y,Accelerometer Z\n"
        "10/8/2015 13:52:00.000,-0.1,0.2,0.9\n10/8/2015 13:52:00.033,-0.2,0.3,0.8\n",
        {"Accelerometer X": [-0.1, -0.2], "Accelerometer Y": [0.2, 0.3], "Accelerometer Z": [0.9, 0.8]},
        ["lines 1 to 10", "Timestamp"],
    ),
    "actigraph, without times and names": (
        "------------ Data File Created By ActiGraph\nSerial Number: NEO1C15110135\nBattery Voltage: 4,21 Mode = 12\n"
        "-----------\n0.1,0.2,-0.9\n0.3,0.2,-0.8\n",
        {"0": [0.1, 0.3], "1": [0.2, 0.2], "2": [-0.9, -0.8]},
        ["lines 1 to 4"],
    ),
    "openbci": (
        "%OpenBCI Raw EXG Data\n%Number of channels = 2\n%Sample Rate = 250 Hz\n"
        "Sample Index, EXG Channel 0, EXG Channel 1, Other, Other, Timestamp, Timestamp (Formatted)\n"
        "254.0, -187.5, 3.0, 0.0, 1.0, 1617.5, 2021-03-30 12:00:01.123\n255.0, -188.5, 4.0, 0.0, 2.0, 1617.6, 2021-03-30 "
        "12:00:01.127\n" + "".join(f"{i}.0, {i % 3}, 5.0, 0.0, 2.0, 1617.{7 + i // 10}, 2021-03-30 12:00:01.131\n" for i in range(20)),
        {
            "EXG Channel 0": [-187.5, -188.5, *(i % 3 for i in range(20))],
            "EXG Channel 1": [3, 4, *[5] * 20],
            "Other": [0] * 22,
            "Other (2)": [1, *[2] * 21],
        },
        ["Sample Index", "Timestamp", "Timestamp (Formatted)"],
    ),
    "polar sensor logger": (
        "Phone timestamp;sensor timestamp [ns];time since start [ms];X [mg];Y [mg];Z [mg]\n"
        "2022-03-01T10:00:00.123;599616012345678;0.0;11;-5;998\n2022-03-01T10:00:00.143;599616032345678;20.0;12;-4;999\n",
        {"X [mg]": [11, 12], "Y [mg]": [-5, -4], "Z [mg]": [998, 999]},
        ["Phone timestamp", "sensor timestamp [ns]", "time since start [ms]"],
    ),
    "polar flow": (
        "Name,Sport,Date,Start time,Duration\nA B,RUNNING,01-02-2022,10:00:00,00:10:00\n"
        "Sample rate,Time,HR (bpm),Speed (km/h)\n1,00:00:00,76,\n1,00:00:01,77,5.5\n",
        {"Sample rate": [1, 1], "HR (bpm)": [76, 77], "Speed (km/h)": [np.nan, 5.5]},
        ["lines 1 to 2", "Time"],
    ),
    "movesense": (
        "timestamp,x,y,z\n1234,0.5,9.5,1\n1253,0.25,9.75,2\n",
        {"x": [0.5, 0.25], "y": [9.5, 9.75], "z": [1, 2]},
        ["timestamp"],
    ),
    "apple watch, sensorlog": (
        "loggingTime(txt),loggingSample(N),accelerometerTimestamp_sinceReboot(s),accelerometerAccelerationX(G),deviceID(txt)\n"
        "2020-01-01 10:00:00.000 +0100,1,17234.5,0.5,watch\n2020-01-01 10:00:00.020 +0100,2,17234.52,0.25,watch\n",
        {"accelerometerAccelerationX(G)": [0.5, 0.25]},
        ["loggingTime(txt)", "loggingSample(N)", "accelerometerTimestamp_sinceReboot(s)", "deviceID(txt)"],
    ),
    "apple watch, ecg": (
        "Name,A B\nDate of Birth,1980\nClassification,Sinus Rhythm\nSymptoms,\nSample Rate,512 hertz\n\n\nLead,Lead I\n"
        "Unit,µV\n\n12.5\n-3\n",
        {"0": [12.5, -3]},
        ["lines 1 to 10"],
    ),
    "sensor logger": (
        "time,seconds_elapsed,z,y,x\n1655983920000000000,0.01,9.5,1,2\n1655983920010000000,0.02,9.25,1,2\n",
        {"z": [9.5, 9.25], "y": [1, 1], "x": [2, 2]},
        ["time", "seconds_elapsed"],
    ),
    "pamap2, with names": (
        "timestamp activityID heart_rate temp\n8.38 1 104 30.5\n8.39 1 NaN 30.25\n",
        {"heart_rate": [104, np.nan], "temp": [30.5, 30.25]},
        ["timestamp", "activityID"],
    ),
    "uci har": ("  2.5e-001 -2.0e-002\n -1.0e+000  4.0e-001\n", {"0": [0.25, -1], "1": [-0.02, 0.4]}, []),
    "hobo": (
        'Plot Title: lake\n"#","Date Time, GMT-05:00","Temp, °C (LGR S/N: 1)"\n1,01/02/20 01:00:00 PM,4.5\n'
        "2,01/02/20 02:00:00 PM,4.25\n",
        {"Temp, °C (LGR S/N: 1)": [4.5, 4.25]},
        ["line 1", "#", "Date Time, GMT-05:00"],
    ),
    "brainflow": (
        "0\t-1.5\t2\t1617000000.5\t0\n1\t-1.25\t3\t1617000000.6\t0\n",
        {"0": [0, 1], "1": [-1.5, -1.25], "2": [2, 3], "4": [0, 0]},
        ["3"],
    ),
    "numpy": ("# t,ax,ay\n0.0,1,2\n0.1,3,2\n", {"ax": [1, 3], "ay": [2, 2]}, ["t"]),
    "numpy, another comment": ("# of a walk\n0.0,1,2\n0.1,3,2\n", {"0": [0, 0.1], "1": [1, 3], "2": [2, 2]}, []),
    "pandas": (",x,y\n0,1.5,2\n1,1.25,2\n", {"x": [1.5, 1.25], "y": [2, 2]}, [""]),
    "pandas, read and written again": ("Unnamed: 0,x\n0,1.5\n1,1.25\n", {"x": [1.5, 1.25]}, ["Unnamed: 0"]),
    "R": ('"x","y"\n"1",1.5,2\n"2",1.25,2\n', {"x": [1.5, 1.25], "y": [2, 2]}, [""]),
    "excel, continental": (
        "Zeit;ax;ay;\n01.02.2020 10:00:00;0,5;-1,25;\n01.02.2020 10:00:01;1;1e-1;\n",
        {"ax": [0.5, 1], "ay": [-1.25, 0.1]},
        ["Zeit"],
    ),
    "excel, sep": ("sep=;\nax;ay\n0,5;1\n,5;2\n", {"ax": [0.5, 0.5], "ay": [1, 2]}, []),
    "tabs and decimal commas": ("a\tb\n0,5\t1,5\n0,6\t\n", {"a": [0.5, 0.6], "b": [1.5, np.nan]}, []),
    "thousands": ("x;y\n1.234,5;2\n1.235,5;3\n", {"y": [2, 3]}, ["x"]),
    "separators too many": ("x,y,,\n1,2,,\n3,4,,\n", {"x": [1, 3], "y": [2, 4]}, []),
    "a separator too many in the samples": ("x,y\n1,2,\n3,4,\n", {"x": [1, 3], "y": [2, 4]}, []),
    "a separator too many in the names": ("x,y,\n1,2\n3,4\n", {"x": [1, 3], "y": [2, 4]}, []),
    "units": ("time [s],ax,ay\ns,m/s2,m/s2\n0,1,2\n1,2,3\n", {"ax": [1, 2], "ay": [2, 3]}, ["line 2", "time [s]"]),
    "parts of a date": ("Year,Month,Day,Hour,hr\n2020,1,1,23,60\n2020,1,1,23,61\n", {"hr": [60, 61]}, ["Year", "Month", "Day", "Hour"]),
    "xsens dot": (
        "PacketCounter,SampleTimeFine,Acc_X,Acc_Y\n0,2147483,0.5,9.5\n1,2164150,0.25,9.75\n2,2180817,0.5,9.5\n",
        {"Acc_X": [0.5, 0.25, 0.5], "Acc_Y": [9.5, 9.75, 9.5]},
        ["PacketCounter", "SampleTimeFine"],
    ),
    "in german": (
        "Zeit [s];Kraft [N]\n0,0;1,5\n0,1;2,5\n0,2;1,5\n",
        {"Kraft [N]": [1.5, 2.5, 1.5]},
        ["Zeit [s]"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEVICES)
def test_samples_of_devices(name):
    text, expected, left_out = DEVICES[name]
    for content in (text.encode(), text.replace("\n", "\r\n").encode(), b"\xef\xbb\xbf" + text.rstrip("\n").encode()):
        clip = Clip(content, "a.csv")
        assert list(clip.columns) == list(expected)
        np.testing.assert_allclose(clip.array(), np.array(list(expected.values()), np.float32), rtol=1e-6)
        assert list(clip.left_out) == left_out


def test_empatica_says_its_rate():
    clip = Clip(b"1574084410.0,1574084410.0\n64.0,64.0\n" + b"1,2\n" * 128, "ACC.csv")
    assert clip.duration_of("array") == 2
    assert clip.array().shape == (2, 128)
    assert Clip(b"x,y\n" + b"1,2\n" * 128, "a.csv").duration_of("array") is None
    # a second line that is no rate is a sample, and so is a first one that is no time
    for first, second in (("1574084410.0,1574084410.0", "64.0,32.0"), ("12.0,12.0", "64.0,64.0")):
        assert Clip(f"{first}\n{second}\n1,2\n3,4\n".encode(), "a.csv").array().shape[1] == 4


@pytest.mark.parametrize(
    "text",
    [
        "reaction time,x\n0.31,1\n0.28,2\n0.35,1\n0.30,2\n",  # falls as often as it rises
        "T,x\n25.0,1\n25.0,2\n25.1,1\n",  # a temperature
        "time,x\n3,1\n2,1\n1,1\n",
        "tempo,x\n120,1\n118,2\n121,3\n119,1\n",  # beats a minute
        "uv index,x\n0,1\n0,2\n1,3\n1,1\n",
        "step,x\n1,1\n2,2\n3,3\n4,1\n",
    ],
)
def test_columns_that_only_sound_like_times(text):
    assert len(Clip(text.encode(), "a.csv").array()) == 2


def test_whole_numbers_are_ids_only_before_text_and_samples():
    for text in ("512,498,walking\n513,499,walking\n", "512,0.5,walking,7\n513,0.25,walking,8\n", "5,6\n7,8\n"):
        assert Clip(text.encode(), "a.csv").left_out.keys() <= {"2"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1,2\n3,4,5\n6,7,8\n9,1,2\n", "line 1, '1,2', has 2 cells, the table has 3: remove or mend it"),
        (b"250\n1,2,3\n4,5,6\n7,8,9\n", "line 1, '250', has 1 cells"),
        (b"a;b\n1,5;2.5\n2,5;3.5\n", r"decimal commas \(1,5\) and decimal points \(2.5\): write all alike"),
        (b"temp\n20,5\n21,5\n", "one name, 'temp', and two cells: write decimal points, not commas, or name both"),
        (b'"x\n(m)",y\n1,2\n', "line 1: a quote is opened and not closed in it"),
        ("a,b\n1,2\n".encode("utf-16"), "UTF-16 text: save it as UTF-8"),
        (b"x,y\n1,2\n# battery low\n3,4\n", "Expected 2 columns, got 1: # battery low"),
        (b"timestamp,who\n1,a\n2,b\n", r"no column is a signal: 'timestamp' \(a time or an index\), 'who' \(words\)"),
        (b"temp;ax\n20,5;1\nERR;2\n21,5;3\n", "column 'temp' holds numbers, but 'ERR' at sample 1"),
        (b"a;b\n1;1\n" * 1 + b"1;1\n" * 300 + b"0,5;1\n", "column 'a' holds numbers, but '0,5' at sample 301"),
    ],
)
def test_tables_that_cannot_be_told(content, message):
    with pytest.raises(MediaError, match=message):
        Clip(content, "a.csv").array()


def test_a_header_in_another_encoding():
    clip = Clip("Höhe,Temp (°C)\n1,20.5\n2,21\n".encode("cp1252"), "a.csv")
    assert clip.columns == ("Höhe", "Temp (°C)")


def test_names_of_parquet_columns_count_as_in_csv_files(tmp_path):
    columns = {
        "Timestamp": [1, 2, 3],
        "subject_id": [7, 7, 7],
        "who": list("abc"),
        "ax": [0.5, 0.25, 1],
        "ay": [1, 2, 1],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    clip = Clip(tmp_path / "a.parquet")
    assert clip.columns == ("ax", "ay")
    assert clip.array().tolist() == [[0.5, 0.25, 1], [1, 2, 1]]
    assert dict(clip.left_out) == {"who": "words", "Timestamp": "a time or an index", "subject_id": "an id"}
