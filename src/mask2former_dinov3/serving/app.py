"""The server's HTTP interface: /predict, /healthz, /metrics, /openapi.json, /docs, and the page for all the rest.

It is imported where the extra `serve` is known to be installed.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import PurePath
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..errors import DatasetError
from ..instances import Instances
from ..version import __version__
from .limits import Busy, ModelFailed, TooLarge, Wanted
from .middleware import GONE, Metrics, Refused, Watch, error_response, too_many_bytes
from .page import PageOrApi, build_page
from .queue import ModelQueue
from .schema import BODY, FORM, RAW, Health, Options, Prediction, failures

Result = TypeVar("Result")


def build_app(queue: ModelQueue, metrics: Metrics, name: str, licence: str) -> FastAPI:
    """The whole server. name: of the model; licence: the page's last line. Not to be called inside an event loop."""
    metrics.queue.set_function(lambda: queue.inside)
    page, page_lifespan = build_page(queue.predictor, name, licence, queue.limits.max_bytes)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with page_lifespan(), queue.running():
            yield

    app: FastAPI = FastAPIOffline(
        title=f"Instance segmentation with {name}", version=__version__, redoc_url=None, lifespan=lifespan
    )
    app.include_router(_routes(queue, metrics, name))
    for error in (Refused, Busy, TooLarge, DatasetError, ModelFailed, RequestValidationError, HTTPException):
        app.add_exception_handler(error, partial(_explain, metrics))
    app.add_middleware(PageOrApi, page=page)
    app.add_middleware(Watch, metrics=metrics, max_bytes=queue.limits.max_bytes)
    return app


def _routes(queue: ModelQueue, metrics: Metrics, name: str) -> APIRouter:
    router = APIRouter()
    limits = queue.limits
    known = [name for _, name in queue.predictor.categories]

    @router.post(
        "/predict",
        response_model=Prediction,
        response_model_exclude_unset=True,
        responses=failures(400, 408, 413, 415, 422, 500, 503, 504),
        openapi_extra={"requestBody": BODY},
    )
    async def predict(request: Request, options: Annotated[Options, Query()]) -> Response:
        """Instances in one image: the file in the field `image` of a form, or as the whole body."""
        if unknown := sorted(set(options.classes or ()) - set(known)):
            raise Refused(422, f"classes: expected some of {', '.join(known)}, got {', '.join(unknown)}")
        wanted = Wanted(
            options.threshold,
            options.max_detections,
            options.tile,
            options.overlap,
            frozenset(options.classes) if options.classes else None,
            options.overlay,
        )
        end = asyncio.get_running_loop().time() + limits.timeout
        with queue.place():
            try:
                async with asyncio.timeout_at(end):
                    data, file_name = await _file_in(request, limits.max_bytes)
            except TimeoutError:
                raise Refused(408, f"the image did not arrive within {limits.timeout:g} seconds", "slow") from None
            found, picture = await _while_there(request, queue, queue.predict(data, file_name, wanted), end)
        request.state.noted["instances"] = len(found)
        return JSONResponse(coco_of(found, file_name, queue.predictor.categories, picture))

    @router.get("/healthz", response_model=Health, responses={503: {"model": Health, "description": "Shutting down."}})
    async def healthz() -> Response:
        """Whether images are taken."""
        status = "closing" if queue.closing else "ready"
        health = Health(status=status, model=name, device=str(queue.predictor.model.device), version=__version__)
        return JSONResponse(health.model_dump(), 503 if queue.closing else 200)

    @router.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        """Counts and times for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


def coco_of(
    found: Instances, file_name: str, categories: Sequence[tuple[int, str]], picture: bytes | None
) -> dict[str, Any]:
    """A `Prediction`: the instances of one image as a COCO file."""
    annotations = [
        {
            "id": number,
            **result,
            "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
            "area": int(area),
            "iscrowd": 0,
        }
        for number, (result, (x0, y0, x1, y1), area) in enumerate(
            zip(found.to_coco(1), found.boxes, found.areas, strict=True), start=1
        )
    ]
    return {
        "images": [{"id": 1, "file_name": file_name, "height": found.height, "width": found.width}],
        "categories": [{"id": id_, "name": name} for id_, name in categories],
        "annotations": annotations,
        **({} if picture is None else {"overlay": base64.b64encode(picture).decode("ascii")}),
    }


async def _file_in(request: Request, max_bytes: int) -> tuple[bytes, str]:
    """The image file in a request, and what it is called. Raises Refused for what is neither form nor image."""
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise too_many_bytes(max_bytes)
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    try:
        if kind in RAW:
            return await request.body(), "image"
        if kind != FORM:
            raise Refused(415, f"expected a form ({FORM}) or one of {', '.join(RAW)}, got {kind or 'no content type'}")
        async with request.form(max_files=1) as form:
            file = form.get("image")
            if not isinstance(file, UploadFile) or len(form.multi_items()) != 1:
                got = ", ".join(form) or "nothing"
                raise Refused(422, f"expected one file in the field image (options go into the query), got {got}")
            return await file.read(), PurePath((file.filename or "image").replace("\\", "/")).name[-100:] or "image"
    except ClientDisconnect:
        raise _gone(request) from None


async def _while_there(request: Request, queue: ModelQueue, work: Coroutine[Any, Any, Result], end: float) -> Result:
    """The result of `work`, which is dropped when the client hangs up or the time is over (`end`, of the loop)."""
    loop = asyncio.get_running_loop()
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, timeout=max(0.0, end - loop.time()), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise _gone(request)
        message = "no answer in time; try again later, or with a smaller image"
        raise Refused(504, message, "timeout", {"Retry-After": str(queue.seconds_to_wait())})
    finally:
        task.cancel()
        gone.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _gone(request: Request) -> Refused:
    request.state.noted["status"] = GONE
    return Refused(400, "the client hung up", "gone")


async def _explain(metrics: Metrics, request: Request, error: Exception) -> JSONResponse:
    """Every error as JSON, counted by reason."""
    status, message, reason = 500, str(error), None
    headers: Mapping[str, str] | None = None
    match error:
        case Refused():
            status, reason, headers = error.status, error.reason, error.headers
        case Busy():
            status, reason, headers = 503, "busy", {"Retry-After": str(error.retry_after)}
        case TooLarge():
            status, reason = 413, "pixels"
        case DatasetError():
            status, reason = 422, "image"
        case ModelFailed():
            reason = "model"
        case RequestValidationError():
            faults = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()]
            status, message = 422, "; ".join(faults)
        case HTTPException():
            status, message, headers = error.status_code, error.detail, error.headers
    if reason is not None:
        metrics.rejected.labels(reason).inc()
    request.state.noted["error"] = message[:300]
    return error_response(status, message, request.state.request_id, headers)
