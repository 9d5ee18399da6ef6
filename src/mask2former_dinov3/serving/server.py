"""The verb `serve`: a model behind a web page and an HTTP API, until a signal stops it."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import numpy as np

from ..browser.viewer_page import display_name
from ..errors import ConfigError, OptionError, mismatch
from ..extras import require
from ..inference.onnx_model import OnnxModel
from ..inference.predictor import Predictor, load_model, refuse_extra_images
from ..inference.settings import DEFAULTS, describe_threshold
from ..model import Mask2FormerDinov3Config
from ..model_folder.licence import is_bound
from ..read_options import AS_SAVED, ReadChanges
from .limits import Limits
from .queue import ModelQueue

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

PACKAGES = ("fastapi", "fastapi_offline", "gradio", "prometheus_client", "python_multipart", "uvicorn")  # of the extra
GRACE = 5.0  # seconds beyond the timeout that a closing server waits for requests in it


def serve(
    model: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str | None = None,
    reading: ReadChanges = AS_SAVED,
    compile_model: bool = False,
    limits: Limits,
    allowed_hosts: Sequence[str] = (),
    metrics: bool = True,
    docs: bool = True,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests that are in the server. A second signal exits at once.

    port: 0 for any free one; the log says which. reading: how images are read, where that is not as saved with the
    model. compile_model: see `compiled_predict`; done before the port is opened. allowed_hosts: further names in
    `Host`, see `Doors`. metrics, docs: whether to serve /metrics and /docs. Raises MissingExtraError without the extra
    `serve`, ConfigError for an address that cannot be used, CheckpointError for a model that cannot be loaded.
    """
    require("serve", "serve", *PACKAGES)
    if not 0 <= port < 65536:
        raise OptionError("port", "a number from 0 to 65535", port)
    from .doors import Doors

    doors = Doors.at(host, allowed_hosts, metrics=metrics, docs=docs)
    name = display_name(model)
    logger.info("loading model %s", name)
    predictor = Predictor(*load_model(model, device, reading, compile_model=compile_model))
    refuse_extra_images(predictor.processor, "serve")
    if compile_model:
        # No request waits for the compiler, and no batch is filled up to more than twice its size.
        sizes = [2**power for power in range(limits.batch_size.bit_length()) if 2**power < limits.batch_size]
        predict_blank(predictor, [*sizes, limits.batch_size])
    listening = _listen(host, port)
    from .app import build_app
    from .middleware import ServerMetrics

    counts = ServerMetrics()
    queue = ModelQueue(predictor, limits, counts)
    app = build_app(queue, counts, name, licence_line(predictor, model), doors)
    logger.info("model loaded on %s", predictor.model.device)
    logger.info("%s", describe_threshold(DEFAULTS, predictor.model.config))
    logger.info("listening on http://%s:%d", *_address_of(listening))
    logger.info("answers to the names %s; others are refused (--allowed-host)", doors.describe())
    _run(app, queue, listening)


def _run(app: FastAPI, queue: ModelQueue, listening: socket.socket) -> None:
    """Serve until a signal; does not return where a thread still works on an image whose time is up."""
    import uvicorn

    from .connections import most_connections, uvicorn_options

    class Server(uvicorn.Server):
        """uvicorn's server; after a signal the process ends with exit code 0 once all requests are answered."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if self.should_exit:
                os._exit(128 + sig)  # nothing else interrupts the thread of the model
            queue.closing = self.should_exit = True  # before the line: whoever reads it may send the second at once
            logger.info(
                "%s: finishing the requests in the server; a second signal exits at once", signal.Signals(sig).name
            )

    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=int(queue.limits.timeout + GRACE),
        **uvicorn_options(most_connections(queue.limits.max_connections)),
    )
    server = Server(config)
    server.run([listening])
    if not server.started:
        raise RuntimeError("the server did not start; the lines above say why")
    if queue.working:  # Python would wait for these threads without end
        logger.warning("stopped; %d threads still worked on images whose time was up", queue.working)
        logging.shutdown()
        os._exit(0)
    logger.info("stopped")


def predict_blank(predictor: Predictor, batch_sizes: Sequence[int]) -> None:
    """Predict on blank images of the canvas, in one batch of each size."""
    processor = predictor.processor
    sides = (processor.size["height"], processor.size["width"], processor.num_channels)
    prepared = processor.on_canvas(np.zeros(sides, np.uint8), sides[:2])
    for number in batch_sizes:
        predictor.predict_prepared([prepared] * number, DEFAULTS)


def licence_line(predictor: Predictor, model: str | Path) -> str:
    """The licence that binds users of the model, for the last line of the page; empty if none is known."""
    if isinstance(predictor.model, OnnxModel):
        return f"Licence of the weights: {predictor.model.metadata.licence['weights']}."
    config = predictor.model.config
    if isinstance(config, Mask2FormerDinov3Config) and is_bound(config, Path(model)):
        return "The weights derive from Meta's DINOv3 and fall under the DINOv3 License."
    return ""


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        got = f"one that cannot be used ({error.strerror})"
        reason = mismatch("a free address of this machine", got, "choose another host or port")
        raise ConfigError(f"host {host}, port {port}: {reason}") from error


def _address_of(listening: socket.socket) -> tuple[str, int]:
    """Host and port as in a URL."""
    host, port = listening.getsockname()[:2]
    return (f"[{host}]" if ":" in host else host), port
