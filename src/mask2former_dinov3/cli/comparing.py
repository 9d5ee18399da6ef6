"""The verb `compare`: its options, and how it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_formats, add_read_rules
from .data_options import find_truth
from .parser import VerbParser, not_negative, positive, real_number


def add_compare(parser: VerbParser) -> None:
    """Add the options of `compare`."""
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help="run folders, evaluation folders or COCO results files; the others are compared with the first",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", required=True, help="folder for compare.html and compare.json"
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="ground truth, needed for results files (default: as the evaluation folders say)",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder with the images of --annotations")
    add_formats(parser)
    add_read_rules(parser)
    parser.add_argument(
        "--threshold",
        type=real_number,
        metavar="T",
        default=0.5,
        help="minimum score of the results whose changes are shown (default: %(default)s); AP counts all results",
    )
    parser.add_argument(
        "--max-detections",
        type=positive,
        metavar="N",
        help="maximum number of results per image and class that count (default: as in the evaluations, or 100)",
    )
    parser.add_argument(
        "--samples",
        type=positive,
        metavar="N",
        default=2000,
        help="number of draws of the bootstrap (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=not_negative, metavar="N", default=0, help="seed of the draws (default: %(default)s)"
    )
    parser.add_argument(
        "--test", action="store_true", help="exit with 1 if the AP of any is worse than that of A beyond noise"
    )
    parser.set_defaults(dataset=None)


def run_compare(arguments: argparse.Namespace) -> int:
    """Run `compare`; 1 with --test if one of the inputs is worse than the first beyond noise."""
    if arguments.annotations is None and arguments.images is not None:
        arguments.parser.error("--images: expected --annotations beside it")
    from ..atomic_files import check_writable
    from ..evaluation.comparison import ComparisonSettings, compare_results, summary_lines
    from ..reports.compare_page import write_comparison

    settings = ComparisonSettings(
        samples=arguments.samples,
        seed=arguments.seed,
        threshold=arguments.threshold,
        max_detections=arguments.max_detections,
    )
    check_writable(arguments.output)
    annotations = None if arguments.annotations is None else find_truth(arguments)
    comparison = compare_results(arguments.inputs, settings, annotations)
    page = write_comparison(comparison, arguments.output)
    print("\n".join(summary_lines(comparison)))
    print(f"\n{page}\n{page.with_suffix('.json')}")
    worse = [pair.after.source.name for pair in comparison.pairs if pair.differences.overall["AP"].worse]
    if arguments.test and worse:
        print(f"test failed: {', '.join(worse)} worse than {comparison.base.source.name} beyond noise")
        return 1
    return 0
