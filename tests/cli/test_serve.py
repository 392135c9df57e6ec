"""The service, over real connections on loopback: what it answers, what it refuses, and that it outlives bad files."""

import asyncio
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from pathlib import Path

import pytest
import torch

from faulty_rgb import FaultyRgb
from mbt_core.data.collate import blank_batch
from mbt_core.deploy.serve.app import Limits, Service
from mbt_core.deploy.serve.reading import Reader, Readers, pack, unpack
from mbt_core.model.loss import by_task
from mbt_core.run import load
from serving import BOUNDARY, END, ask, part, post, running, wait_for
from small import clips_of, mbt

MAX_BYTES = 300_000
MAX_SECONDS = 6.0


@pytest.fixture(scope="module")
def service(run):
    """A started service in this process, with its address."""
    opened = load(run.path)
    opened.model.modalities["rgb"] = FaultyRgb("rgb", opened.model.modalities["rgb"].config)
    with Service(opened, Limits(MAX_BYTES, MAX_SECONDS, timeout=5.0), "cpu") as started:
        listener = socket.create_server(("127.0.0.1", 0))
        with running(started, listener):
            yield started


def test_it_answers_as_predict_does(service, clip):
    status, found = post(service.address, part(clip.read_bytes(), "my clip.mp4"))
    expected = load(service.run.path).predict(clip, device="cpu")[0].as_json()
    assert status == 200
    assert found["file"] == "my clip.mp4"
    assert found["modalities"] == expected["modalities"] == ["rgb", "audio"]
    assert found["top"].keys() == expected["top"].keys() == {"kind", "sum"}
    for task, best in expected["top"].items():
        assert [b["label"] for b in found["top"][task]] == [b["label"] for b in best]
        assert [b["score"] for b in found["top"][task]] == pytest.approx([b["score"] for b in best], abs=1e-6)


def test_what_a_reading_process_sends_keeps_the_order(service):
    batch = blank_batch(service.model.modalities, 2)
    for names in (["rgb", "audio"], ["audio", "rgb"]):
        found = unpack(pack(batch), names)
        assert list(found.present) == list(found.samples) == names
        assert found.complete
        for name, sample in batch.samples.items():
            assert found.samples[name].keys() == sample.keys()
            assert all(torch.equal(found.samples[name][key], leaf) for key, leaf in sample.items())


def test_a_file_with_one_modality(service, tmp_path):
    path = sound(tmp_path / "a.wav", 1.0)
    status, found = post(service.address, part(path.read_bytes(), "a.wav"))
    assert (status, found["modalities"]) == (200, ["audio"])


def test_top(service, clip):
    status, found = post(service.address, part(clip.read_bytes()), path="/predict?top=1")
    assert (status, len(found["top"]["kind"])) == (200, 1)
    for wrong in ("0", "x"):
        status, found = post(service.address, part(clip.read_bytes()), path=f"/predict?top={wrong}")
        assert status == 400
        assert found["error"].startswith("top: Input should be")


def test_information(service):
    status, found = ask(service.address, "GET", "/")
    assert status == 200
    assert found["tasks"]["sum"] == {"kind": "single", "classes": ["0", "1", "2"]}
    assert list(found["modalities"]) == ["rgb", "audio"]
    assert found["limits"] == {"bytes": MAX_BYTES, "seconds": MAX_SECONDS}
    assert ask(service.address, "GET", "/health") == (200, {"status": "ok"})
    assert ask(service.address, "GET", "/docs") == (404, {"error": "Not Found"})
    assert ask(service.address, "GET", "/predict") == (405, {"error": "Method Not Allowed"})


def sound(path, seconds):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8000)
        file.writeframes(os.urandom(int(8000 * seconds)))
    return path


def test_requests_that_are_none(service, clip):
    content, address = clip.read_bytes(), service.address
    octets = {"Content-Type": "application/octet-stream"}
    status, found = ask(address, "POST", "/predict", content, octets)
    assert (status, found["error"]) == (
        415,
        "expected multipart/form-data with a part 'file' (curl -F file=@clip.mp4)",
    )
    assert ask(address, "POST", "/predict", b"", {"Content-Type": "multipart/form-data"})[0] == 415
    long = {"Content-Type": f"multipart/form-data; boundary={'x' * 1000}"}
    status, found = ask(address, "POST", "/predict", content, long)
    assert status == 400
    assert found["error"].startswith("the request is no valid multipart/form-data: ")
    field = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"\r\n\r\ntext\r\n'.encode()
    for parts, message in [
        ([part(content, field="clip")], "the request has a part that is not 'file' with a file"),
        ([field], "the request has a part that is not 'file' with a file"),
        ([part(content), part(content)], "the request has several parts; expected one, 'file'"),
        ([], "no valid multipart/form-data|no complete part 'file' with a file"),
        ([b"nothing of the kind"], "the request is no valid multipart/form-data"),
    ]:
        status, found = post(address, *parts)
        assert status == 400, found
        assert re.search(message, found["error"])
    status, found = post(address, part(content)[:-500], end=b"")
    assert (status, found["error"]) == (400, "the request has no complete part 'file' with a file")
    status, found = post(address, b"--" + BOUNDARY.encode() + b"\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n")
    assert status == 400


def test_files_that_are_none(service, clip, tmp_path):
    whole = clip.read_bytes()
    for content, name, message in [
        (b"", "a.mp4", "the file is empty"),
        (whole[: len(whole) // 2], "a.mp4", "truncated"),
        (os.urandom(5000), "a.mp4", "cannot open it: Invalid data"),
        (os.urandom(5000), "a", "cannot open it: Invalid data"),
        (b"just words", "a.txt", "holds nothing that the model reads"),
        (sound(tmp_path / "a.wav", MAX_SECONDS + 1).read_bytes(), "a.wav", r"lasts 7\.0 s, allowed are 6 s"),
    ]:
        status, found = post(service.address, part(content, name))
        assert status == 422, found
        assert re.search(message, found["error"])
        assert "/" not in found["error"]  # nothing of the server's folders


def test_files_that_are_too_large(service):
    message = {"error": f"the file is larger than {MAX_BYTES} bytes"}
    assert post(service.address, part(bytes(MAX_BYTES + 1))) == (413, message)
    assert post(service.address, part(bytes(MAX_BYTES + 100_000))) == (413, message)
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", "Transfer-Encoding": "chunked"}
    chunks = iter([part(bytes(MAX_BYTES))[:-2], bytes(10_000)])
    assert ask(service.address, "POST", "/predict", chunks, kind, chunked=True) == (413, message)


def test_a_name_is_never_a_path(service, clip, tmp_path):
    for name in (
        f"{tmp_path}/a.mp4",
        "../../../a.mp4",
        "..",
        "a.mp4/../b.mp4",
        "a\x01.mp4",
        "é" * 400,
        "%2e%2e%2fa.mp4",
    ):
        status, found = post(service.address, part(clip.read_bytes(), name))
        assert status == 200, (name, found)
    assert not list(tmp_path.iterdir())
    assert not list(Path(service.folder.name).iterdir())


def test_nothing_but_the_file_is_opened(service, clip):
    """Playlists and scripts that name other files or hosts are refused, and nobody is called."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        host, port = listener.getsockname()
        url = f"http://{host}:{port}/clip.mp4"
        for target in (url, str(clip), f"concat:{clip}", f"file:{clip}"):
            for content in (
                f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{target}\n#EXT-X-ENDLIST\n",
                f"ffconcat version 1.0\nfile '{target}'\n",
                f"v=0\no=- 0 0 IN IP4 {host}\ns=x\nc=IN IP4 {host}\nt=0 0\na=control:{target}\n"
                f"m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
                f"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' mediaPresentationDuration='PT5S'>"
                f"<Period><AdaptationSet mimeType='video/mp4'><BaseURL>{target}</BaseURL>"
                "<Representation id='1' bandwidth='1'/></AdaptationSet></Period></MPD>",
                f"<ASX version='3.0'><Entry><Ref href='{target}'/></Entry></ASX>",
                f"[playlist]\nFile1={target}\nNumberOfEntries=1\n",
            ):
                for suffix in ("m3u8", "ffconcat", "sdp", "mpd", "mp4", "%03d"):
                    status, found = post(service.address, part(content.encode(), f"a.{suffix}"))
                    assert status == 422, (content, suffix, found)
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.slow
def test_it_outlives_files_that_hang_or_kill(service, clip):
    answers = []

    def upload(name):
        answers.append((name, *post(service.address, part(clip.read_bytes(), name))))

    hanging = threading.Thread(target=upload, args=("a.hang",))
    hanging.start()
    for name in ("a.dies", "a.mp4", "a.bug", "b.mp4", "b.dies", "a.huge", "c.mp4"):
        upload(name)
    hanging.join()
    found = {name: (status, document.get("error")) for name, status, document in answers}
    assert found["a.hang"] == (422, "the file took longer than 5 s to read")
    assert found["a.dies"] == found["b.dies"] == (422, "the file cannot be read: the process that read it died of it")
    if Path("/proc/self/status").exists():
        assert found["a.huge"] == (422, "it cannot be read (MemoryError)")
    assert found["a.bug"] == (422, "it cannot be read (RuntimeError)")
    assert {found[name] for name in ("a.mp4", "b.mp4", "c.mp4")} == {(200, None)}
    assert post(service.address, part(clip.read_bytes()))[0] == 200
    assert not list(Path(service.folder.name).iterdir())


def test_a_reading_process_that_died_while_idle(service, clip):
    """It is no fault of the file that comes next."""
    for reader in service.readers.all:
        reader.worker.process.kill()
        reader.worker.process.join()
    for _ in service.readers.all:
        status, found = post(service.address, part(clip.read_bytes()))
        assert status == 200, found


def test_scores_that_are_not_finite(service, clip, monkeypatch):
    def overflow(logits):
        return {task: values / 0 for task, values in by_task(logits).items()}

    monkeypatch.setattr("mbt_core.evaluate.predict.by_task", overflow)
    status, found = post(service.address, part(clip.read_bytes()))
    assert status == 422
    assert found["error"].startswith("the model gives no finite scores")


def test_the_service_itself_fails(service, clip, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("the reason")

    monkeypatch.setattr(service, "classify", fail)
    status, found = post(service.address, part(clip.read_bytes()))
    assert (status, found) == (500, {"error": "the service failed; its log says why"})
    assert service.active == 0


def test_a_disk_without_room(service, clip, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mbt_core.deploy.serve.upload._Parts._on_data", full)
    status, found = post(service.address, part(clip.read_bytes()))
    assert (status, found["error"]) == (507, "the file cannot be stored here: No space left on device; try again later")
    assert not list(Path(service.folder.name).iterdir())


def test_readers_do_not_wait_for_each_other(service, monkeypatch):
    """However few threads the loop has of its own: all processes read at the same time."""
    together = threading.Barrier(12)
    monkeypatch.setattr(Reader, "start", lambda self: None)
    monkeypatch.setattr(Reader, "stop", lambda self: None)
    monkeypatch.setattr(Reader, "read", lambda self, path: together.wait(20))

    async def read():
        async def wanted():
            pass

        readers = Readers(service.readers.all[0].reading, 12)
        found = await asyncio.gather(*(readers.read(Path("x"), wanted) for _ in range(12)))
        readers.stop()
        return found

    assert sorted(asyncio.run(read())) == list(range(12))


def test_clients_that_hang_up_make_room(service, clip, monkeypatch):
    """What they sent is not read any more when a process is free for it."""
    read, release = [], threading.Event()
    real = Reader.read

    def slow(self, path):
        read.append(path)
        release.wait(20)
        return real(self, path)

    monkeypatch.setattr(Reader, "read", slow)
    body = part(clip.read_bytes()) + END
    head = (
        f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    count = len(service.readers.all) + 3
    connections = []
    for number in range(count):
        connections.append(socket.create_connection(service.address))
        connections[-1].sendall(head.encode() + body)
        until(lambda number=number: service.active == number + 1)
    until(lambda: len(read) == len(service.readers.all))
    for connection in connections:
        connection.close()
    time.sleep(0.5)
    release.set()
    until(lambda: service.active == 0)
    assert len(read) == len(service.readers.all)
    assert post(service.address, part(clip.read_bytes()))[0] == 200


def until(happened, seconds=20.0):
    last = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < last
        time.sleep(0.02)


def test_too_many_at_a_time(service, clip, monkeypatch):
    monkeypatch.setattr(service, "active", service.limits.waiting)
    status, found = post(service.address, part(clip.read_bytes()))
    assert (status, found["error"]) == (503, "too many requests at a time; try again later")


def test_a_client_that_leaves(service, clip):
    with socket.create_connection(service.address) as connection:
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        connection.sendall(f"POST /predict HTTP/1.1\r\nContent-Type: {kind}\r\nContent-Length: 90000\r\n\r\n".encode())
        connection.sendall(part(clip.read_bytes()[:1000]))
    assert post(service.address, part(clip.read_bytes()))[0] == 200
    assert service.active == 0
    assert not list(Path(service.folder.name).iterdir())


def test_usage(run, monkeypatch):
    assert mbt("serve", "nowhere").code == 2
    assert mbt("serve", run.path, "--port", "70000").code == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = mbt("serve", run.path, "--port", taken.getsockname()[1])
    assert done.code == 2
    assert re.fullmatch(r"Error: cannot listen on 127\.0\.0\.1:\d+: .*; choose another --port or --host\n", done.err)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "mbt_core.deploy.serve.app")
    done = mbt("serve", run.path)
    assert (done.code, done.err) == (2, "Error: serving needs fastapi: pip install 'mbt-fusion[serve]'\n")


def family(pid):
    """A process and all below it."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [pid, *(descendant for child in children for descendant in family(child))]


def runs(pid):
    """Whether a process exists and is more than an entry that nobody has collected."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def resident(pid):
    """MB of a process and all below it, what they share counted once."""
    maps = [Path(f"/proc/{member}/smaps_rollup").read_text() for member in family(pid)]
    return sum(int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1]) for text in maps) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_500_requests_without_growing(run, demo, tmp_path):
    """Good and bad files in turn, by four clients; then SIGTERM ends it, and nothing is left."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    command = [sys.executable, "-m", "mbt_cli", "serve", run.path, "--port", address[1], "--device", "cpu"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    clips = [path.read_bytes() for path in clips_of(demo)]
    with subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE) as process:
        reader = threading.Thread(target=process.stderr.read)
        reader.start()
        wait_for(address, process)
        statuses = []

        def client(first, count):
            for number in range(first, first + count):
                content = clips[number % len(clips)]
                statuses.append(post(address, part(content[: 2000 if number % 5 == 0 else None]))[0])

        def clients(count):
            threads = [threading.Thread(target=client, args=(n * count, count)) for n in range(4)]
            started = time.monotonic()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return time.monotonic() - started

        clients(25)
        before = resident(process.pid), len(os.listdir(f"/proc/{process.pid}/fd"))
        seconds = clients(125)
        after = resident(process.pid), len(os.listdir(f"/proc/{process.pid}/fd"))
        members = family(process.pid)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        reader.join()
    print(f"500 requests: {500 / seconds:.1f} a second; {before[0]:.0f} MB before, {after[0]:.0f} MB after")
    assert statuses.count(200) == 480
    assert statuses.count(422) == 120
    assert after[0] - before[0] < 30
    assert after[1] <= before[1] + 2
    assert process.returncode == 0
    assert not list(tmp_path.glob("mbt-serve-*"))
    for _ in range(100):  # the fork server notices by itself that it is alone
        left = [pid for pid in members if runs(pid)]
        time.sleep(0.1 * bool(left))
    assert not left
