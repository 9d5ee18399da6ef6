"""What files of this package name: its version and its model type, importable without anything else."""

__version__ = "0.1.0"
MODEL_TYPE = "mask2former_dinov3"  # in the config.json of a model folder; also `Mask2FormerDinov3Config.model_type`
