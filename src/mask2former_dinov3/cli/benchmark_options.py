"""The verb `benchmark`: its options, and how it runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..benchmark.runtime_names import RUNTIME_PRECISIONS, RUNTIMES
from .arguments import add_device
from .data_options import add_extra_images
from .messages import complain, say
from .parser import VerbParser, positive


def add_benchmark(parser: VerbParser) -> None:
    """Add the options of `benchmark`."""
    parser.add_argument("--model", metavar="M", required=True, help="folder saved by training, or hub id")
    parser.add_argument(
        "--size",
        type=positive,
        nargs="+",
        metavar="H W",
        help="height and width of one canvas, or of several: 512 512 1024 1024 (default: the training canvas)",
    )
    parser.add_argument(
        "--runtime",
        nargs="+",
        choices=RUNTIMES,
        metavar="NAME",
        help=f"some of {', '.join(RUNTIMES)} (default: all); torch in fp32 is always measured",
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=RUNTIME_PRECISIONS,
        metavar="NAME",
        help=f"some of {', '.join(RUNTIME_PRECISIONS)} (default: all)",
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of images to measure on (default: the bundled sample)"
    )
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="COCO JSON file of --images; the table then has AP"
    )
    parser.add_argument(
        "--calibration-images",
        type=Path,
        metavar="DIR",
        help="for int8: folder with some dozens of images like those that will be predicted (default: --images)",
    )
    parser.add_argument(
        "--repeat",
        type=positive,
        metavar="N",
        default=20,
        help="number of timed rounds per row (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write machine, settings and rows to this file")
    add_device(parser)
    add_extra_images(parser)


def run_benchmark(arguments: argparse.Namespace) -> int:
    """Run `benchmark`; after Ctrl-C, too, the table has the rows that are done."""
    sizes: list[int] = arguments.size or []
    if len(sizes) % 2:
        arguments.parser.error("--size: expected a height and a width for each canvas, got an odd number of values")
    from ..benchmark.measure_variants import benchmark_facts, measure_variants
    from ..benchmark.row_table import Row, benchmark_table
    from ..benchmark.variants import BenchmarkSettings

    settings = BenchmarkSettings(
        canvases=tuple(zip(sizes[::2], sizes[1::2], strict=True)),
        runtimes=tuple(arguments.runtime or RUNTIMES),
        precisions=tuple(arguments.precision or RUNTIME_PRECISIONS),
        device=arguments.device,
        batch_size=arguments.batch_size,
        repeat=arguments.repeat,
        images=arguments.images,
        annotations=arguments.annotations,
        calibration_images=arguments.calibration_images,
        extra_images=arguments.extra_images,
    )
    rows: list[Row] = []
    facts = benchmark_facts(arguments.model, settings)
    try:
        for row in measure_variants(arguments.model, settings, complain):
            rows.append(row)
            if arguments.json is not None:
                from ..atomic_files import write_text

                content = json.dumps(facts | {"rows": rows}, indent=2, ensure_ascii=False)
                write_text(arguments.json, f"{content}\n")
    finally:
        if rows:
            say(benchmark_table(rows))
    return 0
