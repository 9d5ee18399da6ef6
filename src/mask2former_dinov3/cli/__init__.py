"""The command `mask2former-dinov3`.

In: the words of a command line. Out: an exit code, results on stdout, notes and errors on stderr. The only room that
prints; every other room returns values, logs, or raises.

Read in this order:

    verbs              `main`, and one function per verb
    arguments          the options of every verb and their help
    serving_options    those of `serve`
    threshold_options  the score threshold and what to choose it for; the verb `set-threshold`
    train_options      where `train` reads its options from
    train_end          what `train` prints at its end
    tuning_options     the verb `tune`
    benchmark_options  the verb `benchmark`
    parser             both spellings of an option; wrong usage in the wording of this package
    doctor             what `check-data` writes: a page, a recipe, corrected files
    data_options       the format, the classes and the split that options name
    exporting          the verbs `export` and `check-export`
    comparing          the verbs `compare` and `rank-images`
    metrics_text       metrics as lines
    messages           results and errors as the user sees them
    launchers          errors under `accelerate launch` and torchrun
    demo               the verb `demo`: the whole path on the bundled sample
"""

from .verbs import main

__all__ = ["main"]
