"""The server's HTTP interface: /predict, /healthz, /metrics, /openapi.json, /docs, and the page at all other paths.

Import this module only after `extras.require("serve", …)`.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import PurePath
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..errors import DatasetError, OptionError, mismatch
from ..inference.limit_notes import limit_lines
from ..inference.settings import InferenceSettings
from ..instances import Instances
from ..version import __version__
from .doors import Doorkeeper, Doors
from .limits import Busy, ModelFailed, TooLarge, Wanted
from .middleware import CLIENT_GONE, Refused, ServerMetrics, Watch, error_response, too_many_bytes
from .page import PageOrApi, build_page
from .queue import ModelQueue
from .schema import BODY, FORM, RAW, Health, Options, Prediction, describe_failures, describe_faults

_T = TypeVar("_T")


def build_app(queue: ModelQueue, metrics: ServerMetrics, name: str, licence: str, doors: Doors) -> FastAPI:
    """The whole server. name: of the model. licence: last line of the page. Do not call it inside an event loop."""
    metrics.queue.set_function(lambda: queue.inside)
    page, page_lifespan = build_page(queue.predictor, name, licence, queue.limits.max_bytes, doors.docs)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with page_lifespan(), queue.running():
            yield

    about: dict[str, Any] = {"title": f"Instance segmentation with {name}", "version": __version__}
    app: FastAPI = (
        FastAPIOffline(**about, redoc_url=None, lifespan=lifespan)
        if doors.docs
        else FastAPI(**about, openapi_url=None, lifespan=lifespan)
    )
    known = [category for _, category in queue.predictor.categories]
    app.include_router(_build_routes(queue, metrics, name, known, doors.metrics))
    for error in (Refused, Busy, TooLarge, DatasetError, ModelFailed, RequestValidationError, HTTPException):
        app.add_exception_handler(error, partial(_answer_error, metrics, known))
    app.add_middleware(PageOrApi, page=page)
    app.add_middleware(Doorkeeper, doors=doors)
    app.add_middleware(Watch, metrics=metrics, max_bytes=queue.limits.max_bytes)
    return app


def _build_routes(
    queue: ModelQueue, metrics: ServerMetrics, name: str, known: Sequence[str], with_metrics: bool
) -> APIRouter:
    router = APIRouter()
    limits = queue.limits

    @router.post(
        "/predict",
        response_model=Prediction,
        response_model_exclude_unset=True,
        responses=describe_failures(400, 408, 413, 415, 422, 500, 503, 504),
        openapi_extra={"requestBody": BODY},
    )
    async def predict(request: Request, options: Annotated[Options, Query()]) -> Response:
        """Instances in one image: the file in the field `image` of a form, or as the whole body."""
        if faults := _query_faults(request, known):
            raise Refused(422, "; ".join(faults))
        settings = queue.predictor.fill(options.settings())
        wanted = Wanted(settings, frozenset(options.classes) if options.classes else None, options.overlay)
        try:
            tiles = queue.passes(wanted).may_cut
        except OptionError as error:
            raise Refused(422, str(error)) from None
        end = asyncio.get_running_loop().time() + limits.timeout
        with queue.place():
            try:
                async with asyncio.timeout_at(end):
                    data, file_name = await _read_file(request, limits.max_bytes)
            except TimeoutError:
                raise Refused(408, f"the image did not arrive within {limits.timeout:g} seconds", "slow") from None
            work = queue.predict(data, file_name, wanted)
            found, picture = await _await_unless_gone(request, queue, work, end)
            preview = None
            if options.preview:
                preview = await _await_unless_gone(request, queue, queue.preview(data, file_name, wanted), end)
        request.state.noted["instances"] = len(found)
        pictures = {"overlay": picture, "preview": preview}
        notes = limit_lines(found.left_out, settings.max_detections or 0, tiles=tiles)
        return JSONResponse(to_coco_file(found, file_name, queue.predictor.categories, settings, pictures, notes))

    @router.get(
        "/healthz", response_model=Health, responses={503: {"model": Health, "description": "Shutting down, or stuck."}}
    )
    async def healthz() -> Response:
        """Whether the server accepts images."""
        status = "closing" if queue.closing else "stuck" if queue.stuck else "ready"
        health = Health(status=status, model=name, device=str(queue.predictor.model.device), version=__version__)
        return JSONResponse(health.model_dump(), 200 if status == "ready" else 503)

    if not with_metrics:
        return router

    @router.head("/metrics", include_in_schema=False)
    @router.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        """Counts and times for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


def to_coco_file(
    found: Instances,
    file_name: str,
    categories: Sequence[tuple[int, str]],
    settings: InferenceSettings,
    pictures: Mapping[str, bytes | None],
    notes: Sequence[str] = (),
) -> dict[str, object]:
    """The instances of one image as a COCO file, see `Prediction`.

    settings: in use. pictures: PNGs by their names, None for none. notes: what is not among the instances.
    """
    used = settings.threshold
    return {
        "images": [{"id": 1, "file_name": file_name, "height": found.height, "width": found.width}],
        "categories": [{"id": id_, "name": name} for id_, name in categories],
        "annotations": found.to_coco_annotations(1),
        "thresholds": list(used) if isinstance(used, Sequence) else [used] * len(categories),
        "left_out": asdict(found.left_out),
        "notes": list(notes),
        **{key: base64.b64encode(png).decode("ascii") for key, png in pictures.items() if png is not None},
    }


async def _read_file(request: Request, max_bytes: int) -> tuple[bytes, str]:
    """The image file in a request and its name. Raises Refused for a body that is neither a form nor an image."""
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdecimal()):
        raise Refused(400, f"content length: {mismatch('a whole number of bytes', length or 'none')}")
    if len(length) > 18 or int(length) > max_bytes:
        raise too_many_bytes(max_bytes)
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if (packed := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        advice = "send the bytes of the file as they are"
        raise Refused(415, f"content encoding: {mismatch('none', packed[:100] or 'an empty one', advice)}")
    try:
        if kind in RAW or kind.startswith("image/"):
            return await request.body(), "image"
        if kind != FORM:
            expected = f"a form ({FORM}), {' or '.join(RAW)}"
            raise Refused(415, f"content type: {mismatch(expected, kind or 'none')}")
        async with _open_form(request) as form:
            file = form.get("image")
            if not isinstance(file, UploadFile) or len(form.multi_items()) != 1:
                got = ", ".join(form) or "nothing"
                message = mismatch("one file in the field image", got, "put options into the query")
                raise Refused(422, f"form: {message}")
            return await file.read(), PurePath((file.filename or "image").replace("\\", "/")).name[-100:] or "image"
    except ClientDisconnect:
        raise _client_gone(request) from None


@asynccontextmanager
async def _open_form(request: Request) -> AsyncIterator[FormData]:
    """The fields of a form with at most one file. Raises Refused, in our words, for a body that is not such a form."""
    try:
        form = await request.form(max_files=1)
    except HTTPException as error:  # what starlette's parser says
        if error.detail.startswith("Too many files"):
            message = mismatch("one file in the field image", "several files", "send one image a request")
            raise Refused(422, f"form: {message}") from error
        got = "none of its boundary" if error.detail.startswith("Missing boundary") else "one that cannot be read"
        raise Refused(400, f"form: {mismatch(f'a complete form ({FORM})', got)}") from error
    try:
        yield form
    finally:
        await form.close()


def _query_faults(request: Request, known: Sequence[str]) -> list[str]:
    """What is wrong with the query beyond the value of one option: options given twice, classes the model lacks."""
    query = request.query_params
    faults = []
    for option in Options.model_fields:
        values = query.getlist(option)
        if option != "classes" and len(values) > 1:
            faults.append(f"{option}: {mismatch('one value', ', '.join(values), 'give it once')}")
    if unknown := sorted(set(query.getlist("classes")) - set(known)):
        faults.append(f"classes: {mismatch('some of ' + ', '.join(known), ', '.join(unknown) or 'an empty name')}")
    return faults


async def _await_unless_gone(request: Request, queue: ModelQueue, work: Awaitable[_T], end: float) -> _T:
    """The result of `work`. It is cancelled when the client closes the connection, and at `end` (time of the loop)."""
    loop = asyncio.get_running_loop()
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_wait_until_gone(request))
    try:
        await asyncio.wait({task, gone}, timeout=max(0.0, end - loop.time()), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise _client_gone(request)
        message = "no answer in time; try again later, or with a smaller image"
        raise Refused(504, message, "timeout", {"Retry-After": str(queue.seconds_to_wait())})
    finally:
        task.cancel()
        gone.cancel()


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _client_gone(request: Request) -> Refused:
    request.state.noted["status"] = CLIENT_GONE
    return Refused(400, "the client closed the connection", "gone")


async def _answer_error(
    metrics: ServerMetrics, known: Sequence[str], request: Request, error: Exception
) -> JSONResponse:
    """Any error as JSON; errors about images are counted by reason."""
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
            status, message = 422, "; ".join([describe_faults(error.errors()), *_query_faults(request, known)])
        case HTTPException():
            status, message, headers = error.status_code, error.detail, error.headers
    if reason is not None:
        metrics.rejected.labels(reason).inc()
    request.state.noted["error"] = message[:300]
    return error_response(status, message, request.state.request_id, headers)
