"""``mbt serve``."""

from __future__ import annotations

import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mbt_cli.options import DeviceOption
from mbt_cli.output import fail, note

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = LOOPBACK[0],
    port: Annotated[int, typer.Option(help="Port; 0: any free one.", min=0, max=65535)] = 8000,
    max_bytes: Annotated[int, typer.Option(help="Largest file.", min=1)] = 256 << 20,
    max_seconds: Annotated[float, typer.Option(help="Longest file.", min=0.1)] = 3600.0,
    timeout: Annotated[float, typer.Option(help="Seconds that reading one file may take.", min=0.1)] = 30.0,
    readers: Annotated[int, typer.Option(help="Processes that read files.", min=1)] = 2,
    device: DeviceOption = "auto",
) -> None:
    """Classify uploaded files over HTTP: POST /predict with a part `file`; GET / and /health."""
    try:
        from mbt_core.deploy.serve.app import Limits, Service
        from mbt_core.deploy.serve.connections import Room, Server, free_files
    except ImportError as error:
        if error.name not in ("uvicorn", "fastapi", "python_multipart"):
            raise
        fail(f"serving needs {error.name}: pip install 'mbt-fusion[serve]'", 2)
    from mbt_core.run import load

    if host not in LOOPBACK:
        note(f"Warning: {host} may be reached by others, and the service asks nobody who they are")
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        fail(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port or --host", 2)
    limits = Limits(max_bytes, max_seconds, timeout, readers=readers)
    with listener, Service(load(run), limits, device) as service:
        room = Room.within(free_files(), limits.waiting)
        service.limits = replace(limits, waiting=room.requests)
        server = Server(service, room.connections, grace=round(timeout) + 5)
        for number in (signal.SIGINT, signal.SIGTERM):  # the server ends at them, and raises them again at its end
            signal.signal(number, lambda *_: None)
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, server.handle_exit)
        note(f"{run} at http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}; Ctrl-C ends it")
        server.run(sockets=[listener])
