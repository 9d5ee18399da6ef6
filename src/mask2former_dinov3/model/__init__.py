"""The network. Needs torch, transformers and scipy only, and imports nothing else of this package.

Importing it registers the model with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModelForUniversalSegmentation

from .configuration import Mask2FormerDinov3Config
from .loss import loss_normalizers
from .modeling import Mask2FormerDinov3ForInstanceSegmentation, Mask2FormerDinov3Output

AutoConfig.register(Mask2FormerDinov3Config.model_type, Mask2FormerDinov3Config, exist_ok=True)
AutoModelForUniversalSegmentation.register(
    Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation, exist_ok=True
)

__all__ = [
    "Mask2FormerDinov3Config",
    "Mask2FormerDinov3ForInstanceSegmentation",
    "Mask2FormerDinov3Output",
    "loss_normalizers",
]
