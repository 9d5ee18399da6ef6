"""The options of a training run, and what `train --help` shows.

In: a JSON file and the words of a command line. Out: a `TrainConfig` with every option checked, notes for the user, or
one ConfigError with all faults. Needs neither torch nor NumPy, so that help and refusals are immediate.

Read in this order:

    presets         names of backbones, of the model type, and of the options for splits
    option_types    types of options: ranges and words
    augmentation_options  options of random changes of training images
    recipe_files    the recipes that come with the package
    class_option    the option `classes`
    train_config    every option with its default, check and help sentence; `load_config`
    parsing         options read from a file and from flags, and faults in the user's words
    legacy_options  options of older training scripts
    cross_checks    options that do not fit together; notes on what is probably not meant
    option_help     the options by topic, as `train --help` and docs/configuration.md show them
"""
