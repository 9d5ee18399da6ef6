"""The options of the verb `serve`."""

from __future__ import annotations

from .arguments import DEVICE, add_compile
from .data_options import add_read_options
from .parser import VerbParser, not_negative, positive, real_number


def add_serve(parser: VerbParser) -> None:
    parser.add_argument(
        "--model",
        metavar="M",
        required=True,
        help="folder saved by training, hub id, or .onnx or .pt2 file written by export",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)"
    )
    parser.add_argument(
        "--port", type=not_negative, metavar="N", default=8000, help="0 for any free port (default: %(default)s)"
    )
    parser.add_argument("--device", help=DEVICE)
    add_compile(parser)
    add_read_options(parser)
    for name, kind, default, text in (
        ("batch-size", positive, 8, "maximum number of images per forward pass"),
        ("max-queue", positive, 64, "maximum number of requests in the server; others get 503 with Retry-After"),
        ("max-bytes", positive, 20_000_000, "maximum size of a request in bytes"),
        ("max-pixels", positive, 50_000_000, "maximum number of pixels of an image"),
        ("timeout", real_number, 60.0, "seconds until an unanswered request fails"),
        ("max-connections", positive, 256, "maximum number of open connections"),
        ("max-wait", real_number, 10.0, "milliseconds that an image waits for others, to be predicted in one batch"),
    ):
        parser.add_argument(f"--{name}", type=kind, metavar="N", default=default, help=f"{text} (default: %(default)s)")
    parser.add_argument(
        "--allowed-host",
        action="append",
        metavar="NAME",
        help="further name in Host and Origin of requests, such as that of a proxy, or * for any; may be repeated",
    )
    parser.add_argument("--no-metrics", action="store_true", help="do not serve /metrics")
    parser.add_argument("--no-docs", action="store_true", help="do not serve /docs and /openapi.json")
    parser.memory_advice += ("lower --batch-size", "lower --max-pixels")
