"""Load weights that other programs wrote, and write ours in their formats; LoRA adapters are merged here.

In comes a source: a local folder, a file of weights or a hub id, or a model of Hugging Face's classes.
Out goes a network of `model`, a state dict, or a UserError that names the source and says what to do.

Read in this order:

    files           read files of weights as data, without running code
    known_keys      config.json reduced to the fields of its network
    loading         transformers' `from_pretrained`, with sizes checked first and failures explained
    access          whether weights of the hub can be had here
    name_patterns   patterns that rename tensors in both directions
    formats         DINOv3's backbones in the formats of Meta and timm
    backbones       a pretrained backbone from any source, and a new model on it
    mask2former     trained models: Hugging Face's Mask2Former and the original project's, converted and adapted
    input_channels  networks for RGB widened for images of more channels
    lora            LoRA adapters in a state dict
"""

from .backbones import from_backbone
from .mask2former import from_mask2former

__all__ = ["from_backbone", "from_mask2former"]
