"""The verb `tune`: its options, and how it runs."""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path

from .messages import complain, say
from .parser import VerbParser, positive, real_number
from .train_options import options_of_train

NOTE = """
All options of `train` may be given too, as in `train`: they are those of every trial. The options to try stand in
FILE.json, each with a list of choices or a range:
  {"freeze_backbone": [true, false], "learning_rate": {"min": 1e-5, "max": 1e-3, "log": true}}
A range of whole numbers has "integer": true. `seed` also decides which values are drawn.
"""


def add_tune(parser: VerbParser) -> None:
    """Add the options of `tune`; those of the recipe are the fields of TrainConfig, as for `train`."""
    parser.add_argument("--config", metavar="FILE.json", help="recipe of all trials (default: the recipe auto)")
    parser.add_argument(
        "--search", type=Path, metavar="FILE.json", required=True, help="options to try, with their choices or ranges"
    )
    parser.add_argument("--budget", type=positive, metavar="N", required=True, help="number of trials")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the search (default: output_dir of the recipe)"
    )
    parser.add_argument(
        "--max-concurrent",
        type=positive,
        metavar="N",
        help="maximum number of trials at the same time (default: as many as fit)",
    )
    parser.add_argument(
        "--gpus-per-trial",
        type=real_number,
        metavar="F",
        help="GPUs reserved per trial, 0 to 1; 0.5: two share a GPU (default: 1 if the cluster has GPUs, otherwise 0)",
    )
    parser.add_argument(
        "--cpus-per-trial",
        type=real_number,
        metavar="N",
        help="CPUs reserved per trial (default: an equal share of a node for the trials on it)",
    )
    parser.add_argument(
        "--grace",
        type=positive,
        metavar="N",
        default=1,
        help="number of evaluations of a trial before it may be stopped (default: %(default)s)",
    )
    parser.add_argument("--retry-failed", action="store_true", help="also run the trials that failed in earlier runs")
    parser.add_argument(
        "--ray-address",
        metavar="A",
        help="address of a Ray cluster, or auto for the one of this machine (default: start one for this run)",
    )
    parser.appendix = lambda: NOTE


def run_tune(arguments: argparse.Namespace) -> int:
    """Run `tune`; 1 if no trial was evaluated."""
    from ..tuning.tune import TuneSettings, tune

    settings = TuneSettings(
        at_once=arguments.max_concurrent,
        cpus=arguments.cpus_per_trial,
        gpus=arguments.gpus_per_trial,
        grace=arguments.grace,
        ray_address=arguments.ray_address,
        retry_failed=arguments.retry_failed,
    )
    source, words = options_of_train(arguments.config, arguments.options)
    with redirect_stdout(sys.stderr):  # Ray reports workers and nodes that died on stdout
        records = tune(
            source, words, arguments.search, budget=arguments.budget, output=arguments.output, settings=settings
        )
    say("\n".join(records.lines()))
    best = records.best()
    if best is None:
        complain("error: no trial was evaluated; the lines above say why")
        return 1
    say(f"\nbest: {best.trial}: {records.search.metric} {best.value:.4f} at step {best.best_step}")
    say(f"model: {records.output / best.trial / 'best'}\nall trials: {records.output / 'trials.csv'}")
    say(f"next: mask2former-dinov3 train --config {records.output / 'best_config.json'}")
    return 0
