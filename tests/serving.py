"""What tests of the service share: one that runs in this process, requests, connections."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager

from mbt_core.deploy.serve.connections import Server

BOUNDARY = "----frontier"
END = f"--{BOUNDARY}--\r\n".encode()


@contextmanager
def running(service, listener, most=64, head=10.0):
    """Serves in a thread."""
    server = Server(service, most, grace=10, log_level="error")
    server.config.http.head, server.config.http.patience = head, 60.0
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    service.address = listener.getsockname()
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join()


def ask(address, method, path, body=None, headers=(), chunked=False):
    """(status, document)."""
    connection = http.client.HTTPConnection(*address[:2], timeout=60)
    try:
        connection.request(method, path, body, dict(headers), encode_chunked=chunked)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def part(content, name="clip.mp4", field="file"):
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n"


def post(address, *parts, path="/predict", end=END):
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return ask(address, "POST", path, b"".join(parts) + end, kind)


def connected(address, sent=b""):
    made = socket.create_connection(address[:2], timeout=30)
    made.sendall(sent)
    return made


def answered(connection):
    """All that is still said on a connection until it is closed."""
    with connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


def wait_for(address, process):
    for _ in range(240):
        assert process.poll() is None, "the service ended"
        try:
            return ask(address, "GET", "/health")
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the service does not answer")
