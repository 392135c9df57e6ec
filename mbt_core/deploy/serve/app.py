"""The application: routes, limits, the model.

Shapes: C classes of a task.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mbt_core.data.collate import Batch, Preprocess
from mbt_core.deploy.serve.reading import Readers, Reading
from mbt_core.deploy.serve.upload import Received, Refused, receive
from mbt_core.distributed.processes import Hardware
from mbt_core.evaluate.memory import rows_at_once
from mbt_core.evaluate.predict import FilePrediction, classify
from mbt_core.run import Run
from mbt_core.version import __version__

GONE, ENDING = "the client went away", "the service is ending; send it again"


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Args:
        max_bytes: of a file.
        max_seconds: length of a file.
        timeout: seconds of wall time to read a file.
        upload_timeout: seconds for a request to arrive.
        waiting: requests at a time, in work or waiting; more are turned away.
        readers: processes that decode.
    """

    max_bytes: int = 256 << 20
    max_seconds: float = 3600.0
    timeout: float = 30.0
    upload_timeout: float = 300.0
    waiting: int = 64
    readers: int = 2


class Service:
    """The model behind the routes: one file at a time, read by processes of their own.

    A context manager, which starts these processes and keeps a private folder for uploads.

    Args:
        run: whose model; it is moved to the device.
        limits: see there.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
    """

    readers: Readers

    def __init__(self, run: Run, limits: Limits, device: str = "auto") -> None:
        run.check_one_file()
        self.run, self.limits = run, limits
        self.fabric = Hardware(device).fabric(run.experiment.train.precision)
        self.model = run.model.to(self.fabric.device).eval()
        rows_at_once(self.model, 1, run.experiment.evaluate.views)  # or no file could be classified
        self.preprocess = Preprocess(self.model.modalities).to(self.fabric.device)
        self.turn = asyncio.Lock()
        self.active = 0
        self.ending = False
        self.arriving: set[asyncio.Timeout] = set()

    def end(self) -> None:
        """Refuses what has not arrived, and what waits for its turn; what is in work is finished."""
        self.ending = True
        for upload in self.arriving:
            upload.reschedule(asyncio.get_running_loop().time())

    def __enter__(self) -> Self:
        experiment, limits = self.run.experiment, self.limits
        reading = Reading(
            self.model.modalities, experiment.data, experiment.evaluate.views, limits.max_seconds, limits.timeout
        )
        self.readers = Readers(reading, limits.readers)
        self.folder = tempfile.TemporaryDirectory(prefix="mbt-serve-")
        return self

    def __exit__(self, *_: object) -> None:
        self.readers.stop()
        self.folder.cleanup()

    async def predict(self, request: Request, top: int) -> dict[str, Any]:
        """Classifies the file of a request. Raises `Refused`."""
        if self.active >= self.limits.waiting:
            raise Refused(503, "too many requests at a time; try again later")
        self.active += 1
        try:
            with tempfile.TemporaryDirectory(dir=self.folder.name) as folder:
                received = await self._receive(request, Path(folder) / "upload")
                batch = await self.readers.read(received.path, partial(self._check_wanted, request))
            async with self.turn:
                await _still_there(request)
                found = await asyncio.to_thread(self.classify, batch, top)
        finally:
            self.active -= 1
        if found.error is not None:
            raise Refused(422, found.error)
        return replace(found, file=received.name).as_json()

    async def _receive(self, request: Request, path: Path) -> Received:
        headers, limits = request.headers, self.limits
        kind, length = headers.get("content-type", ""), headers.get("content-length")
        upload = asyncio.timeout(0 if self.ending else limits.upload_timeout)
        self.arriving.add(upload)
        try:
            async with upload:
                return await receive(kind, length, request.stream(), path, limits.max_bytes)
        except TimeoutError:
            if self.ending:
                raise Refused(503, ENDING) from None
            raise Refused(408, f"the request took longer than {limits.upload_timeout:g} s to arrive") from None
        except ClientDisconnect:
            raise Refused(400, GONE) from None
        finally:
            self.arriving.discard(upload)

    async def _check_wanted(self, request: Request) -> None:
        """Raises `Refused` if reading the file is of no use any more."""
        if self.ending:
            raise Refused(503, ENDING)
        await _still_there(request)

    @torch.inference_mode()
    def classify(self, batch: Batch, top: int) -> FilePrediction:
        """The views of one file -> its `top` labels a task."""
        [found] = classify(batch, self.model, self.preprocess, self.fabric, top, self.run.experiment.evaluate.average)
        return found

    def describe(self) -> dict[str, Any]:
        """What the service is, for its first page."""
        head = self.model.config.head
        limits = self.limits
        return {
            "service": f"mbt-fusion {__version__}",
            "run": self.run.path.resolve().name,
            "modalities": {name: m.card.title for name, m in self.model.modalities.items()},
            "tasks": {
                task: {"kind": head.kind_of(task), "classes": self.model.classes.get(task) or size}
                for task, size in head.outputs.items()
            },
            "limits": {"bytes": limits.max_bytes, "seconds": limits.max_seconds},
            "use": "POST /predict?top=5 with multipart/form-data, part 'file'",
        }


async def _still_there(request: Request) -> None:
    """Raises `Refused` if the client has hung up: what waits for an answer makes room then."""
    if await request.is_disconnected():
        raise Refused(400, GONE)


def make_app(service: Service) -> FastAPI:
    """The application of a started service; errors are ``{"error": MESSAGE}``."""
    # the pages of documentation would fetch scripts from other hosts
    app = FastAPI(title="mbt-fusion", version=__version__, docs_url=None, redoc_url=None)

    @app.get("/")
    async def info() -> dict[str, Any]:
        return service.describe()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/predict")
    async def predict(request: Request, top: int = Query(5, ge=1)) -> dict[str, Any]:
        return await service.predict(request, top)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"error": error.message}, error.status)

    @app.exception_handler(HTTPException)
    async def no_such_route(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def wrong_option(_: Request, error: RequestValidationError) -> JSONResponse:
        said = "; ".join(f"{e['loc'][-1]}: {e['msg']}, got {e['input']!r}" for e in error.errors())
        return JSONResponse({"error": said}, 400)

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> JSONResponse:
        return JSONResponse({"error": "the service failed; its log says why"}, 500)

    return app
