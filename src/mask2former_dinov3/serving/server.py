"""The verb `serve`: a model behind a web page and an HTTP API, until a signal ends it."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
from pathlib import Path
from types import FrameType

from ..errors import ConfigError
from ..inference.predictor import Predictor
from ..model_folder.licence import is_bound
from .limits import Limits
from .queue import ModelQueue

LOG = logging.getLogger(__name__)
PACKAGES = ("fastapi", "fastapi_offline", "gradio", "prometheus_client", "python_multipart", "uvicorn")  # of the extra
GRACE = 5.0  # seconds on top of the timeout that a closing server gives to what it has taken


def serve(
    model: str | Path, *, host: str = "127.0.0.1", port: int = 8000, device: str | None = None, limits: Limits
) -> None:
    """Serve until SIGTERM or SIGINT; what was taken by then is finished. A second signal stops at once.

    port: 0 for any free one; the log says which. Raises ConfigError when the extra `serve` is missing or the address
    cannot be had, CheckpointError for a model that cannot be loaded.
    """
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(f"serve needs {package}: pip install 'mask2former-dinov3[serve]'") from error
    import uvicorn

    from .app import build_app
    from .middleware import Metrics

    predictor = Predictor.from_pretrained(model, device)
    listening = _listen(host, port)
    metrics = Metrics()
    queue = ModelQueue(predictor, limits, metrics)
    app = build_app(queue, metrics, shown_name(model), licence_line(predictor, model))

    class Server(uvicorn.Server):
        """uvicorn's, but ended by a signal as any other way: with exit code 0 when all is done."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if self.should_exit:
                os._exit(128 + sig)  # the model's thread cannot be interrupted in any other way
            LOG.info("%s: finishing what was taken; once more stops at once", signal.Signals(sig).name)
            queue.closing = self.should_exit = True

    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=int(limits.timeout + GRACE),
    )
    LOG.info("serving %s on http://%s:%d", shown_name(model), *_shown_address(listening))
    server = Server(config)
    server.run([listening])
    if not server.started:
        raise RuntimeError("the server did not start; the lines above say why")
    LOG.info("stopped")


def licence_line(predictor: Predictor, model: str | Path) -> str:
    """What binds those who use the model, for the page's last line; empty where nothing is known to."""
    stored = getattr(predictor.model, "metadata", None)  # of an ONNX file
    if stored is not None:
        return f"Licence of the weights: {stored.licence['weights']}."
    if is_bound(predictor.model.config, Path(model)):
        return "The weights derive from Meta's DINOv3 and fall under the DINOv3 License."
    return ""


def shown_name(model: str | Path) -> str:
    """A model's name without the folders that it lies in: of runs/first/best "first/best"."""
    path = Path(model)
    if not path.exists():
        return str(model)
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if path.name in ("best", "last", "model") else path.name


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 65536:
        raise ConfigError(f"port: expected a number from 0 to 65535, got {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        advice = f"cannot listen there ({error.strerror}); give another --host or --port"
        raise ConfigError(f"{host}, port {port}: {advice}") from error


def _shown_address(listening: socket.socket) -> tuple[str, int]:
    host, port = listening.getsockname()[:2]
    return (f"[{host}]" if ":" in host else host), port
