"""Connections to the service: how many there may be, how long one may stay without a request, and what its end does."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from mbt_core.deploy.serve.app import Limits, Service
from mbt_core.deploy.serve.connections import BACKLOG, LINGERING, SPARE, Room
from mbt_core.errors import ConfigError
from mbt_core.run import load
from serving import BOUNDARY, answered, ask, connected, part, post, running, wait_for

HALF = b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: "
UPLOAD = (
    f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n"
    f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
).encode()
WHOLE = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def few(run):
    """A service of its own, with room for four connections, each of which has 2 s to ask something."""
    listener = socket.create_server(("127.0.0.1", 0))
    with (
        Service(load(run.path), Limits(readers=1), "cpu") as started,
        running(started, listener, most=4, head=2.0) as started.server,
    ):
        yield started


def test_a_connection_that_does_not_ask_is_closed(few):
    """From its start on, whatever comes of it; after an answer, too, also if it goes on with a body nobody wants."""
    began = time.monotonic()
    slow, silent = connected(few.address, HALF), connected(few.address)
    again = connected(few.address, b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
    for _ in range(15):
        slow.sendall(b"x")
        again.sendall(b"x")
        time.sleep(0.1)
    late = [answered(slow), answered(silent)]
    assert all(said.startswith(b"HTTP/1.1 408 ") for said in late), late
    assert b"took longer than 2 s to arrive" in late[0]
    assert answered(again).startswith(b"HTTP/1.1 200 ")
    assert 2 <= time.monotonic() - began < 8


def test_beyond_its_room_connections_are_refused_and_those_that_ask_are_not(few):
    held = [connected(few.address, HALF) for _ in range(4)]
    refused = answered(connected(few.address, WHOLE))
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"too many connections" in refused
    few.server.config.http.patience = 0.1
    time.sleep(0.2)  # those that have asked nothing for some time make room, the oldest first
    assert ask(few.address, "GET", "/health") == (200, {"status": "ok"})
    assert answered(held[0]).startswith(b"HTTP/1.1 408 ")
    held[3].sendall(b"y\r\n\r\n")
    assert held[3].recv(100).startswith(b"HTTP/1.1 200 ")
    for connection in held:
        connection.close()


def test_a_service_that_ends_refuses_what_has_not_arrived(few, clip, caplog, capfd):
    upload = connected(few.address, UPLOAD + part(bytes(1000))[:-20])
    for _ in range(100):
        time.sleep(0.05)
        if few.arriving:
            break
    began = time.monotonic()
    few.server.should_exit = True
    said = answered(upload)
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b"the service is ending; send it again" in said
    assert time.monotonic() - began < 5
    assert "Traceback" not in caplog.text + capfd.readouterr().err
    assert os.listdir(few.folder.name) == []


def test_room_for_connections_is_below_the_limit_of_files():
    for files in (144, 200, 256, 1024, 10_000):
        room = Room.within(files, 64)
        assert room.connections + room.requests + 2 * BACKLOG + LINGERING + SPARE <= files
        assert room.connections >= 16
        assert 1 <= room.requests <= 64
    assert Room.within(None, 64) == Room(512, 64)
    with pytest.raises(ConfigError, match="only 100 more files may be opened, expected at least 144: raise the limit"):
        Room.within(100, 64)


@pytest.mark.slow
def test_300_half_sent_heads_under_a_limit_of_256_files(run, clip, tmp_path):
    """The page of health answers, little is logged, and nothing is held for long; SIGTERM then ends it in order."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    command = f"ulimit -n 256; exec {sys.executable} -m mbt_cli serve {run.path} --port {address[1]} --device cpu"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    log = tmp_path / "log"
    with log.open("wb") as file, subprocess.Popen(["bash", "-c", command], env=environment, stderr=file) as process:
        wait_for(address, process)
        held = [connected(address, HALF) for _ in range(300)]
        began = time.monotonic()
        while time.monotonic() - began < 5:
            assert ask(address, "GET", "/health")[0] in (200, 503)
            time.sleep(0.2)
        assert ask(address, "GET", "/health") == (200, {"status": "ok"})
        assert post(address, part(clip.read_bytes()))[0] == 200
        said = [answered(connection) for connection in held]
        assert time.monotonic() - began < 30
        assert any(b" 408 " in one for one in said)
        upload = connected(address, UPLOAD + part(bytes(1000))[:-20])
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert answered(upload).startswith(b"HTTP/1.1 503 ")
        process.wait(60)
    assert process.returncode == 0
    assert "Traceback" not in log.read_text()
    assert len(log.read_bytes()) < 20_000
    assert not list(tmp_path.glob("mbt-serve-*"))
