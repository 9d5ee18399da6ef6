"""What programs written for any model of transformers ask of this one: labels, outputs, configurations, loading."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForInstanceSegmentation,
    AutoModelForUniversalSegmentation,
    DINOv3ViTConfig,
)

from mask2former_dinov3.inference.image_processing import Mask2FormerDinov3ImageProcessor
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.model import Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation
from mask2former_dinov3.model.labels import PADDING_CLASS, convert_labels
from support.models import labels, padded_mask, small_model

PIXELS = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def loss_of(model: Mask2FormerDinov3ForInstanceSegmentation, **batch: Any) -> float:
    torch.manual_seed(0)  # of the points where masks are compared
    with torch.no_grad():
        return float(model(PIXELS, **batch).loss)


def test_labels__of_every_type_give_the_same_loss() -> None:
    model = small_model().eval()
    batch = labels([3, 2])
    masks, classes = batch["mask_labels"], batch["class_labels"]
    expected = loss_of(model, **batch)
    for dtype in (torch.bool, torch.int8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert loss_of(model, mask_labels=[one.to(dtype) for one in masks], class_labels=classes) == expected, dtype
    bytes_of_255 = [one * 255 for one in masks]
    assert loss_of(model, mask_labels=bytes_of_255, class_labels=classes) == expected
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.float32):
        assert loss_of(model, mask_labels=masks, class_labels=[one.to(dtype) for one in classes]) == expected, dtype
    arrays = {"mask_labels": [one.numpy() for one in masks], "class_labels": [one.tolist() for one in classes]}
    assert loss_of(model, **arrays) == expected


def test_labels__stacked_and_padded_give_the_loss_of_lists() -> None:
    model = small_model().eval()
    batch = labels([3, 1])
    masks, classes = torch.ones(2, 3, 64, 96), torch.full((2, 3), PADDING_CLASS)
    for image, count in enumerate((3, 1)):
        masks[image, :count], classes[image, :count] = batch["mask_labels"][image], batch["class_labels"][image]
    assert loss_of(model, mask_labels=masks, class_labels=classes) == loss_of(model, **batch)


@pytest.mark.parametrize(
    ("masks", "classes", "said"),
    [
        (torch.ones(1, 2, 64, 96), [[0, 3]], r"class_labels\[0\]: expected labels from 0 to 2, .*, got 3"),
        (torch.ones(1, 2, 64, 96), [[0, -1]], r"class_labels\[0\]: expected labels from 0 to 2, .*, got -1"),
        (torch.ones(1, 2, 64, 96), [[0, 0.5]], r"class_labels\[0\]: expected whole numbers, .*, got 0\.5"),
        (torch.ones(1, 2, 64, 96), [[0, float("nan")]], r"class_labels\[0\]: expected whole numbers, .*, got nan"),
        (torch.ones(1, 2, 64, 96) / 0 * 0, [[0, 1]], r"mask_labels\[0\]: expected numbers, .*, got NaN"),
        (torch.ones(1, 1, 64, 96), [[0, 1]], r"mask_labels\[0\]: expected shape \(2, 64, 96\)"),
        (torch.ones(2, 2, 64, 96), [[0, 1]], "mask_labels: expected those of 1 images, as pixel_values have, got 2"),
        (torch.ones(1, 2, 64, 96), [[[0, 1]]], r"class_labels\[0\]: expected shape \(N,\), got \(1, 2\)"),
    ],
)
def test_labels__are_refused_by_name(masks: Tensor, classes: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        convert_labels(masks, [torch.tensor(one) for one in classes], 3, PIXELS[:1])


@torch.no_grad()
def test_forward__a_tuple_holds_what_the_dict_does() -> None:
    model = small_model("seeds").eval()  # compares masks at all pixels, so that its loss is the same twice
    batch = {"pixel_values": PIXELS, **labels([3, 2]), "output_hidden_states": True, "output_attentions": True}
    expected = model(**batch).to_tuple()
    found = model(**batch, return_dict=False)
    model.config.return_dict = False
    from_config = model(**batch)
    for one in (found, from_config):
        assert type(one) is tuple
        assert len(one) == len(expected)
        torch.testing.assert_close(one, expected, rtol=0, atol=0)
    assert isinstance(model(PIXELS, return_dict=True), dict)


@torch.no_grad()
def test_forward__gives_hidden_states_and_attentions() -> None:
    model = small_model().eval()
    assert "hidden_states" not in model(PIXELS)
    output = model(PIXELS, output_hidden_states=True, output_attentions=True, output_auxiliary_logits=True)
    assert [tuple(one.shape) for one in output.hidden_states] == [(2, 7, 32)] * 4  # before and after three layers
    assert [one.shape[2:] for one in output.encoder_hidden_states] == [(64 // s, 96 // s) for s in (4, 8, 16, 32)]
    assert [one.shape[2:] for one in output.pixel_decoder_hidden_states] == [(2, 3), (4, 6), (8, 12)]
    assert [tuple(one.shape) for one in output.attentions] == [(2, 4, 7, 7)] * 3
    assert [one.shape[-1] for one in output.cross_attentions] == [6, 24, 96]
    for weights in (*output.attentions, *output.cross_attentions):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    decoder = model.head.transformer_decoder
    logits = [decoder.class_predictor(decoder.layernorm(one)) for one in output.hidden_states]
    assert torch.equal(logits[-1], output.class_queries_logits)
    assert torch.equal(logits[0], output.auxiliary_logits[0]["class_queries_logits"])
    some = model(PIXELS, output_hidden_states=[0, -1]).hidden_states
    assert [one is None for one in some] == [False, True, True, False]
    model.config.output_hidden_states = True
    assert len(model(PIXELS).hidden_states) == 4


@torch.no_grad()
def test_attention__eager_equals_sdpa_and_reaches_the_backbone() -> None:
    model = small_model().eval()
    expected = model(PIXELS, pixel_mask=padded_mask(2, 64, 96, (48, 96)))
    assert {model.config._attn_implementation, model.backbone.config._attn_implementation} == {"sdpa"}
    model.set_attn_implementation("eager")
    assert {model.config._attn_implementation, model.backbone.config._attn_implementation} == {"eager"}
    output = model(PIXELS, pixel_mask=padded_mask(2, 64, 96, (48, 96)))
    torch.testing.assert_close(output.masks_queries_logits, expected.masks_queries_logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="flex_attention"):  # transformers says it
        model.set_attn_implementation("flex_attention")


def test_config__a_default_never_goes_stale(tmp_path: Path) -> None:
    config = Mask2FormerDinov3Config(num_labels=2)
    config.num_labels, config.feature_size, config.neck = 4, 128, "plain"
    config.backbone_config = DINOv3ViTConfig(hidden_size=128, num_attention_heads=2, num_hidden_layers=8)
    config.save_pretrained(tmp_path)
    for one in (config, Mask2FormerDinov3Config.from_pretrained(tmp_path)):
        assert one.category_ids == [1, 2, 3, 4]
        assert one.neck_channels == [128] * 4
        assert one.mask_stride == 16
        assert one.backbone_taps == [2, 4, 6, 8]


def test_from_pretrained__with_new_classes_makes_a_folder_that_loads(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = Mask2FormerDinov3Config.from_pretrained(model_folder)
    stored.score_threshold, stored.class_map = {"disc": 0.3, "bar": 0.4}, {"disk": "disc"}
    names = {0: "a", 1: "b", 2: "c"}
    with caplog.at_level(logging.WARNING):
        for given in ({"id2label": names}, {"num_labels": 3}):
            model = AutoModelForUniversalSegmentation.from_pretrained(
                model_folder, ignore_mismatched_sizes=True, **given
            )
            assert model.config.category_ids == [1, 2, 3]
            assert model.head.transformer_decoder.class_predictor.out_features == 4
    assert "category_ids: left out, because the classes are now a, b, c" in caplog.text
    model.config.id2label = names
    assert model.config.label2id == {"a": 0, "b": 1, "c": 2}
    model.save_pretrained(tmp_path)
    Mask2FormerDinov3ImageProcessor.from_pretrained(model_folder).save_pretrained(tmp_path)
    assert Predictor.from_pretrained(tmp_path, "cpu").categories == ((1, "a"), (2, "b"), (3, "c"))

    stored.id2label = {0: "disc", 1: "beam"}  # as many classes: the data set's ids stay
    assert stored.category_ids == [3, 7]
    assert stored.score_threshold is None
    assert stored.class_map == {"disk": "disc"}
    stored.score_calibration = [1.5, -2.0]
    with caplog.at_level(logging.WARNING):
        stored.id2label = names
    assert stored.score_calibration is None
    assert "score_calibration: left out, because the classes are now a, b, c" in caplog.text
    with pytest.raises(ValueError, match="category_ids: expected 3"):
        Mask2FormerDinov3Config(num_labels=3, category_ids=[1, 2])


def test_auto_classes__all_give_the_model(model_folder: Path) -> None:
    for auto in (AutoModel, AutoModelForImageSegmentation, AutoModelForInstanceSegmentation):
        assert type(auto.from_pretrained(model_folder)) is Mask2FormerDinov3ForInstanceSegmentation


def test_shards__are_read_as_one_file_is(model_folder: Path, tmp_path: Path) -> None:
    whole = Predictor.from_pretrained(model_folder, "cpu")
    assert isinstance(whole.model, Mask2FormerDinov3ForInstanceSegmentation)
    whole.model.save_pretrained(tmp_path, max_shard_size="2MB")
    whole.processor.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    found = Predictor.from_pretrained(tmp_path, "cpu").model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in whole.model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision__predicts_from_what_the_processor_gives(dtype: torch.dtype, model_folder: Path) -> None:
    model = AutoModelForUniversalSegmentation.from_pretrained(model_folder, dtype=dtype).eval()
    processor = Mask2FormerDinov3ImageProcessor.from_pretrained(model_folder)
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    with torch.no_grad():
        output = model(**processor([image]))
    full = Predictor.from_pretrained(model_folder, "cpu")
    expected = full.model(**processor([image])).class_queries_logits
    torch.testing.assert_close(output.class_queries_logits.float(), expected, atol=0.1, rtol=0.1)
    (found,) = Predictor(model, processor)([image], threshold=0.0, max_detections=5)
    assert len(found) == 5


def test_half_precision__has_a_finite_loss_and_gradient() -> None:
    model = small_model().bfloat16().train()
    loss = model(PIXELS, **labels([3, 2])).loss
    loss.backward()
    gradient = model.head.transformer_decoder.class_predictor.weight.grad
    assert torch.isfinite(loss)
    assert gradient is not None
    assert gradient.dtype == torch.bfloat16
    assert torch.isfinite(gradient).all()


@torch.no_grad()
@pytest.mark.parametrize("neck", ["pyramid", "seeds", "none"])
def test_offload__computes_the_same(neck: str) -> None:
    model = small_model(neck).eval()
    expected = model(PIXELS).masks_queries_logits
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert next(model.parameters()).device.type == "meta"
    assert model.device.type == "cpu"
    assert torch.equal(model(PIXELS).masks_queries_logits, expected)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch: it recommends torchao
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("neck", ["pyramid", "seeds"])
def test_quantize_dynamic__stays_close(neck: str) -> None:
    model = small_model(neck).eval()
    expected = model(PIXELS).class_queries_logits
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    found = quantised(PIXELS).class_queries_logits
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=0.2, rtol=0.2)


@torch.no_grad()
@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_export__torch_export_takes_the_model() -> None:
    model = small_model(encoder_layers=0, decoder_layers=1).eval()
    program = torch.export.export(model, (PIXELS[:1],))
    found = program.module()(PIXELS[1:])
    torch.testing.assert_close(found.class_queries_logits, model(PIXELS[1:]).class_queries_logits, atol=1e-2, rtol=1e-2)


def test_embeddings__are_those_of_the_backbone() -> None:
    for neck in ("pyramid", "none"):
        model = small_model(neck)
        assert model.get_input_embeddings() is model.backbone.get_input_embeddings()
    model.enable_input_require_grads()  # as PEFT asks with gradient checkpointing
