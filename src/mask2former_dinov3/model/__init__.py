"""The network. Needs torch, transformers and scipy only, and imports nothing else of this package.

Importing it registers the model with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModelForImageSegmentation, AutoModelForUniversalSegmentation
from transformers.models.auto.modeling_auto import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES

from .configuration import Mask2FormerDinov3Config
from .criterion.loss import loss_normalizers
from .modeling import Mask2FormerDinov3ForInstanceSegmentation, Mask2FormerDinov3Output

AutoConfig.register(Mask2FormerDinov3Config.model_type, Mask2FormerDinov3Config, exist_ok=True)
for auto_class in (AutoModelForUniversalSegmentation, AutoModelForImageSegmentation):  # the second is the pipeline's
    auto_class.register(Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation, exist_ok=True)
# The pipeline "image-segmentation" takes any model, but says that it does not support those without an entry here.
MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES[Mask2FormerDinov3Config.model_type] = (
    Mask2FormerDinov3ForInstanceSegmentation.__name__
)

__all__ = [
    "Mask2FormerDinov3Config",
    "Mask2FormerDinov3ForInstanceSegmentation",
    "Mask2FormerDinov3Output",
    "loss_normalizers",
]
