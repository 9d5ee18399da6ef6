"""The network and its loss. It imports torch, transformers and scipy, and nothing else of this package.

In come normalised images, in training also masks and labels.
Out come class and mask logits of a fixed number of queries, in training also losses.
Importing it registers the model with transformers' Auto classes.

Read in this order:

    configuration         all that the network's graph depends on
    modeling              the model: backbone, neck, head, criterion
    labels                masks and classes of a batch in the form that the criterion reads
    backbone              a DINOv3 ViT, DINOv3 ConvNeXt or Swin, and four feature maps from it
    necks                 four maps at strides 4 to 32 from a ViT
    padding               the real part of padded images
    position_embedding    sines and cosines of positions
    pixel_decoder         deformable encoder, and mask features
    query_seeds           queries that start at the peaks of a score
    mask_prior            an ellipse added to a query's mask
    transformer_decoder   queries with masked attention, their classes and masks
    criterion             matching and losses
    kernels               fast versions of single operations
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForInstanceSegmentation,
    AutoModelForUniversalSegmentation,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES

from .configuration import Mask2FormerDinov3Config
from .criterion.loss import loss_normalizers
from .modeling import Mask2FormerDinov3ForInstanceSegmentation, Mask2FormerDinov3Output

AutoConfig.register(Mask2FormerDinov3Config.model_type, Mask2FormerDinov3Config, exist_ok=True)
for auto_class in (
    AutoModel,
    AutoModelForImageSegmentation,  # for the stock pipeline
    AutoModelForInstanceSegmentation,
    AutoModelForUniversalSegmentation,
):
    auto_class.register(Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation, exist_ok=True)
# Without this entry the pipeline "image-segmentation" warns that it does not support the model.
MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES[Mask2FormerDinov3Config.model_type] = (
    Mask2FormerDinov3ForInstanceSegmentation.__name__
)

__all__ = [
    "Mask2FormerDinov3Config",
    "Mask2FormerDinov3ForInstanceSegmentation",
    "Mask2FormerDinov3Output",
    "loss_normalizers",
]
