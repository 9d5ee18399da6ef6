"""Save a trained model as a self-contained folder, and upload such folders to the Hugging Face hub.

In comes a model with its image processor, metrics, and a description of the training run.
Out goes a folder with config, weights, model card and licence, with `write_code` also the model's code.

Read in this order:

    contents        what a folder must hold to be a model folder
    folder          write a model folder
    licence         whether the DINOv3 License binds a model
    thresholds      change the score threshold that a folder stores
    card            the model card
    card_picture    the picture in the model card
    bundled_code    add code, for use where this package is not installed
    transformers_version  refuse a transformers that is too old for this code
    hub             create a repository, upload a folder
"""

from .bundled_code import write_code

__all__ = ["write_code"]
