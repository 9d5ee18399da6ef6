"""The verbs `compare` and `rank-images`: their options, and how they run."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_device, add_formats, add_read_rules
from .data_options import find_truth
from .messages import say
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
        help="number of draws of the bootstrap (default: 1000, fewer for very many results)",
    )
    parser.add_argument(
        "--seed", type=not_negative, metavar="N", default=0, help="seed of the draws (default: %(default)s)"
    )
    parser.add_argument(
        "--test",
        action="store_true",
        help="exit with 1 if the AP of any is worse than that of A beyond noise; undecided with very few images",
    )
    parser.set_defaults(dataset=None)


def run_compare(arguments: argparse.Namespace) -> int:
    """Run `compare`; 1 with --test if one of the inputs is worse than the first beyond noise."""
    if arguments.annotations is None and arguments.images is not None:
        arguments.parser.error("--images: expected --annotations beside it")
    from ..atomic_files import check_writable
    from ..evaluation.comparison import TOO_FEW, ComparisonSettings, compare_results, summary_lines
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
    say("\n".join(summary_lines(comparison)))
    say(f"\n{page}\n{page.with_suffix('.json')}")
    if not arguments.test:
        return 0
    verdicts = {pair.after.source.name: pair.verdict for pair in comparison.pairs}
    if TOO_FEW in verdicts.values():
        say("test undecided: too few images to tell; it counts as passed")
        return 0
    worse = [name for name, verdict in verdicts.items() if verdict == "worse"]
    if worse:
        say(f"test failed: {', '.join(worse)} worse than {comparison.base.source.name} beyond noise")
        return 1
    say(f"test passed: none is worse than {comparison.base.source.name} beyond noise")
    return 0


def add_rank_images(parser: VerbParser) -> None:
    """Add the options of `rank-images`."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="unlabelled image, folder, or pattern in quotes")
    parser.add_argument("--model", metavar="M", required=True, help="folder saved by training, or hub id")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", required=True, help="folder for ranking.csv and ranking.json"
    )
    parser.add_argument(
        "--labelled",
        type=Path,
        nargs="+",
        metavar="INPUT",
        help="images that have labels already; what is like them is not rare (default: none)",
    )
    parser.add_argument(
        "--number", type=positive, metavar="N", default=100, help="number of images to choose (default: %(default)s)"
    )
    parser.add_argument(
        "--rarity-weight",
        type=real_number,
        metavar="F",
        default=0.5,
        help="0: only disagreement under flips counts, 1: only rarity (default: %(default)s)",
    )
    parser.add_argument(
        "--threshold",
        type=real_number,
        metavar="T",
        default=0.3,
        help="minimum score of the instances that are compared (default: %(default)s)",
    )
    add_device(parser)


def run_rank_images(arguments: argparse.Namespace) -> int:
    """Run `rank-images`; 1 if an input failed, after all others are done."""
    from ..evaluation.label_next import RANKING_CSV, RANKING_JSON, RankingSettings, rank_images

    settings = RankingSettings(
        number=arguments.number,
        rarity_weight=arguments.rarity_weight,
        threshold=arguments.threshold,
        batch_size=arguments.batch_size,
    )
    ranking = rank_images(
        arguments.model,
        arguments.inputs,
        arguments.output,
        labelled=arguments.labelled or [],
        settings=settings,
        device=arguments.device,
        progress=True,
    )
    say(ranking.text())
    say(f"\n{arguments.output / RANKING_CSV}\n{arguments.output / RANKING_JSON}")
    return 1 if ranking.failed else 0
