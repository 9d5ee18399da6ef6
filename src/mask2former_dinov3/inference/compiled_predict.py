"""Compile a network with `torch.compile`, once for all numbers of instances, and for all smaller batches.

Pixels to predictions are one graph (ARCHITECTURE.md); labels, matching and losses stay outside of it. The compiled code
takes the place of the network's method `predict` on this object alone, so weights, their names, copies and saved
folders are as without it.

Sizes of a graph are fixed, since the attention on a CPU has a loop over images. A batch with fewer images than a
compiled one is filled up with its last image, whose results are cut off: those of an image do not depend on others.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..model import Mask2FormerDinov3ForInstanceSegmentation
from ..model.modeling import Mask2FormerDinov3Output
from ..model.transformer_decoder import QueryPredictions

logger = logging.getLogger(__name__)
BACKEND = "inductor"

PredictedPair = tuple[QueryPredictions, Mask2FormerDinov3Output]


class CompiledPredict:
    """The method `predict` of a network, compiled at its first calls; eager for good where that fails.

    graphs: how many graphs its calls have compiled.
    """

    def __init__(self, network: Mask2FormerDinov3ForInstanceSegmentation) -> None:
        self.network = network
        self.graphs = 0
        self.is_paused = False
        self._function: Callable[..., PredictedPair] | None = None
        self._has_failed = False
        self._uncompiled: set[tuple[object, ...]] = set()
        self._batches: dict[tuple[object, ...], set[int]] = {}  # kind of call -> numbers of images with a graph

    def __reduce__(self) -> tuple[object, ...]:
        """A copy, or what is read from a pickle, compiles for its own network."""
        return CompiledPredict, (self.network,)

    def __call__(self, pixel_values: Tensor, pixel_mask: Tensor | None = None, *options: object) -> PredictedPair:
        """As `Mask2FormerDinov3ForInstanceSegmentation.predict`."""
        mode = (pixel_mask is None, self.network.training, torch.is_grad_enabled(), str(options))
        kind = (*pixel_values.shape[1:], *mode)
        if self._has_failed or self.is_paused or kind in self._uncompiled:
            return self._eager(pixel_values, pixel_mask, *options)
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        try:
            return self._filled_up(kind, pixel_values, pixel_mask, *options)
        except FailOnRecompileLimitHit:
            if not self._uncompiled:
                logger.warning(
                    "torch_compile: %d graphs are compiled, torch's limit; batches of %s and others that need a "
                    "further graph are computed without compiling",
                    self.graphs,
                    _shape_text(pixel_values),
                )
            self._uncompiled.add(kind)
        except TorchDynamoException as error:
            self._has_failed = True
            logger.warning("torch_compile: compiling failed (%s); going on without it", _reason_of(error))
        return self._eager(pixel_values, pixel_mask, *options)

    def _eager(self, *arguments: object) -> PredictedPair:
        return type(self.network).predict(self.network, *arguments)  # type: ignore[arg-type]

    def _filled_up(
        self, kind: tuple[object, ...], pixel_values: Tensor, pixel_mask: Tensor | None, *options: object
    ) -> PredictedPair:
        """Call the compiled function with as many images as the smallest graph has that holds them all."""
        known, images = self._batches.setdefault(kind, set()), len(pixel_values)
        batch = min((one for one in known if one >= images), default=images)
        mask = None if pixel_mask is None else _fill_up(pixel_mask, batch)
        found = self._counted(_fill_up(pixel_values, batch), mask, *options)
        known.add(batch)
        return found if batch == images else _first_images(found, images)

    def _counted(self, pixel_values: Tensor, pixel_mask: Tensor | None, *options: object) -> PredictedPair:
        """Call the compiled function; a line of the log says how long it compiled."""
        from torch._dynamo.utils import counters

        if self._function is None:
            logger.info("torch_compile: compiling, which takes a minute or more (cached in %s)", cache_folder())
            # Gradients are exchanged after the backward pass, so that the graph stays one, also with recomputed blocks.
            torch._dynamo.config.optimize_ddp = False
            # Random numbers are those of the eager network: DINOv3 jitters its positions in training.
            own: dict[str, str | int | bool | Callable[..., object]] | None = None
            if BACKEND == "inductor":
                own = {"fallback_random": True}
            self._function = torch.compile(self._eager, fullgraph=True, dynamic=False, backend=BACKEND, options=own)
        before, start = counters["stats"]["unique_graphs"], time.perf_counter()
        found = self._function(pixel_values, pixel_mask, *options)
        if added := counters["stats"]["unique_graphs"] - before:
            self.graphs += added
            what = "training" if self.network.training else "prediction"
            shape, seconds = _shape_text(pixel_values), time.perf_counter() - start
            logger.info("torch_compile: compiled %s for batches of %s in %.0f s", what, shape, seconds)
        return found


def compile_network(network: Mask2FormerDinov3ForInstanceSegmentation) -> CompiledPredict:
    """Compile a network from its next call on; returns what replaces its `predict`."""
    compiled = CompiledPredict(network)
    network.__dict__["predict"] = compiled
    return compiled


@contextmanager
def without_compiling(network: Mask2FormerDinov3ForInstanceSegmentation) -> Iterator[None]:
    """Let a network, compiled or not, run eagerly: for batches of sizes that do not come again."""
    compiled = vars(network).get("predict")
    if not isinstance(compiled, CompiledPredict):
        yield
        return
    compiled.is_paused, before = True, compiled.is_paused
    try:
        yield
    finally:
        compiled.is_paused = before


def cache_folder() -> str:
    """Where torch keeps compiled code for later runs: TORCHINDUCTOR_CACHE_DIR, or a folder for temporary files."""
    from torch._inductor import config
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return cache_dir() if config.fx_graph_cache else "no folder: TORCHINDUCTOR_FX_GRAPH_CACHE is 0"


def _fill_up(tensor: Tensor, batch: int) -> Tensor:
    """A tensor (B, ...) with its last image repeated until there are `batch` of them."""
    missing = batch - len(tensor)
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing else tensor


def _first_images(found: PredictedPair, images: int) -> PredictedPair:
    """What was found in the first images of a batch."""

    def first(value: object) -> object:
        return value[:images] if isinstance(value, Tensor) else value

    predictions, output = found
    some = {name: first(value) for name, value in predictions._asdict().items()}
    for name in ("class_logits", "mask_embeddings", "prior_embeddings"):  # (T, B, ...)
        if (value := getattr(predictions, name)) is not None:
            some[name] = value[:, :images]
    some["prior_features"] = predictions.prior_features  # of all images
    cut: dict[str, Any] = tree_map(first, dict(output))
    return QueryPredictions(**cast(dict[str, Any], some)), Mask2FormerDinov3Output(**cut)


def _shape_text(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def _reason_of(error: BaseException) -> str:
    """The first line of what went wrong inside torch's compiler, or in the backend that it called."""
    lines = (line.strip() for line in str(getattr(error, "inner_exception", error)).splitlines())
    return next((line for line in lines if line), "no reason given").rstrip(".:")
