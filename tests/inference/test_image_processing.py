"""The image processor: the same pixels as in training, every kind of image, Hugging Face's result format."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.dataset import CocoInstanceDataset
from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.errors import DatasetError, OptionError
from mask2former_dinov3.inference.image_processing import Mask2FormerDinov3ImageProcessor
from mask2former_dinov3.model import (
    Mask2FormerDinov3Config,
    Mask2FormerDinov3ForInstanceSegmentation,
    Mask2FormerDinov3Output,
)
from mask2former_dinov3.read_options import ReadOptions


@pytest.fixture
def processor() -> Mask2FormerDinov3ImageProcessor:
    return Mask2FormerDinov3ImageProcessor({"height": 112, "width": 96})


def test_processor__gives_bit_for_bit_what_training_sees(toy_dataset: Path) -> None:
    data = read_coco(Split("valid", toy_dataset / "valid" / "_annotations.coco.json", toy_dataset / "valid"))
    for height, width in ((112, 96), (48, 64), (80, 240)):  # up, down, and a side that is no multiple of 32
        processor = Mask2FormerDinov3ImageProcessor(
            {"height": height, "width": width}, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
        )
        dataset = CocoInstanceDataset(
            data,
            image_height=height,
            image_width=width,
            image_mean=processor.image_mean,
            image_std=processor.image_std,
            augmentation=None,
            seed=0,
        )
        batch = processor([record.path for record in data.images])
        for index, record in enumerate(data.images):
            sample = dataset[0, index]
            assert torch.equal(batch["pixel_values"][index], sample["pixel_values"])
            assert torch.equal(batch["pixel_mask"][index], sample["pixel_mask"])
            assert batch["original_sizes"][index] == (record.height, record.width)


def test_processor__fits_and_pads(processor: Mask2FormerDinov3ImageProcessor) -> None:
    batch = processor(np.full((20, 48, 3), 255, np.uint8))
    assert batch["pixel_values"].shape == (1, 3, 128, 96)  # the canvas, padded to multiples of 32
    assert batch["pixel_values"].dtype == torch.float32
    real = batch["pixel_mask"][0]
    assert real[:40].all()
    assert not real[40:].any()
    white = (1 - torch.tensor(processor.image_mean)) / torch.tensor(processor.image_std)
    torch.testing.assert_close(batch["pixel_values"][0, :, :40], white[:, None, None].expand(3, 40, 96))
    assert not batch["pixel_values"][0, :, 40:].any()


def test_processor__an_image_gives_the_same_in_every_batch(processor: Mask2FormerDinov3ImageProcessor) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((20, 48, 3), (300, 200, 3), (112, 96, 3))]
    together = processor(images)
    for index, image in enumerate(images):
        assert torch.equal(together["pixel_values"][index], processor(image)["pixel_values"][0])


def test_processor__takes_paths_pil_images_arrays_and_lists(
    processor: Mask2FormerDinov3ImageProcessor, tmp_path: Path
) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    expected = processor(rgb)["pixel_values"]
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(rgb), [rgb], (rgb,), rgb[None]):
        assert torch.equal(processor(given)["pixel_values"], expected)
    transparent = Image.fromarray(np.dstack([rgb, np.zeros((30, 40), np.uint8)]))
    assert torch.equal(processor(transparent)["pixel_values"], expected)
    deep = Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
    assert torch.equal(processor(deep)["pixel_values"], processor(rgb[..., [0, 0, 0]])["pixel_values"])
    arrays = processor(rgb, return_tensors="np")
    assert isinstance(arrays["pixel_values"], np.ndarray)
    np.testing.assert_array_equal(arrays["pixel_values"], expected.numpy())


def test_processor__round_trips_through_its_folder(tmp_path: Path) -> None:
    processor = Mask2FormerDinov3ImageProcessor({"height": 160, "width": 512}, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file()
    Mask2FormerDinov3Config.preset("tiny").save_pretrained(tmp_path)
    for read in (Mask2FormerDinov3ImageProcessor, AutoImageProcessor):
        again = read.from_pretrained(tmp_path)
        assert type(again) is Mask2FormerDinov3ImageProcessor
        assert again.to_dict() == processor.to_dict()
        assert again.size == {"height": 160, "width": 512}
        assert again.image_std == [0.4, 0.5, 0.6]


def test_processor__never_imports_torchvision() -> None:
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from mask2former_dinov3 import Mask2FormerDinov3ImageProcessor as P; import numpy as np\n"
        "P({'height': 32, 'width': 32})(np.zeros((8, 8, 3), np.uint8))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_processor__says_what_it_cannot_take(processor: Mask2FormerDinov3ImageProcessor, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DatasetError, match=r"text\.png"):
        processor(tmp_path / "text.png")
    with pytest.raises(DatasetError, match=r"none\.png: expected an image file, got no such file"):
        processor(tmp_path / "none.png")
    wrong: list[tuple[Any, str]] = [
        (np.full((4, 4, 3), 9.0), "image: expected floating point values in 0..1, got float64 from 9 to 9"),
        (np.zeros((4, 4, 3), np.int64), "image: expected values of uint8, uint16 or floating point, got int64"),
        (torch.zeros(5, 5, 5), r"image: expected grey .*, got an array of shape \(5, 5, 5\)"),
        (np.zeros((0, 4, 3), np.uint8), r"image: expected at least one pixel, got an array of shape \(0, 4, 3\)"),
        (None, "image: expected a path, an address, bytes, a PIL image, an array or a tensor, got NoneType"),
    ]
    for image, said in wrong:
        with pytest.raises(OptionError, match=said):
            processor([image])
    with pytest.raises(OptionError, match="images: expected at least one, got none"):
        processor([])
    with pytest.raises(OptionError, match='return_tensors: expected "pt", "np" or None, got \'tf\''):
        processor(np.zeros((4, 4, 3), np.uint8), return_tensors="tf")
    with pytest.raises(OptionError, match="size: expected a multiple of 16, got 1000; 992 and 1008 are the nearest"):
        Mask2FormerDinov3ImageProcessor({"height": 1000, "width": 1024})
    with pytest.raises(OptionError, match=r"size: expected .*, got .'shortest_edge': 800."):
        Mask2FormerDinov3ImageProcessor({"shortest_edge": 800})
    with pytest.raises(OptionError, match=r"image_std: expected 3 numbers above 0, .*, got \(0\.0, 1\.0, 1\.0\)"):
        Mask2FormerDinov3ImageProcessor(image_std=(0.0, 1.0, 1.0))
    with pytest.raises(OptionError, match="image_std: expected 2 numbers above 0"):
        Mask2FormerDinov3ImageProcessor(image_mean=(0.0, 1.0))
    with pytest.raises(OptionError, match="image_mean: expected a number for each channel"):
        Mask2FormerDinov3ImageProcessor(image_mean=(), image_std=())
    with pytest.raises(OptionError, match="extra_channels: expected a number from 0 to below 3, got 3"):
        Mask2FormerDinov3ImageProcessor(extra_channels=3)
    with pytest.raises(OptionError, match="threshold: expected a score from 0 to 1, got 5"):
        processor.post_process(two_overlapping(), [(9, 7)], threshold=5)
    with pytest.raises(OptionError, match="max_detections: expected a whole number above 0, got 0"):
        processor.post_process(two_overlapping(), [(9, 7)], max_detections=0)
    with pytest.raises(ValueError, match="outputs: expected logits of classes and masks"):
        processor.post_process(Mask2FormerDinov3Output(class_queries_logits=torch.zeros(1, 2, 3)), [(9, 7)])


def test_processor__takes_what_programs_for_other_processors_give(processor: Mask2FormerDinov3ImageProcessor) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    text = base64.b64encode(file.getvalue()).decode()
    expected = processor(pixels)
    first = torch.from_numpy(pixels).permute(2, 0, 1)
    given: list[Any] = [first, first.numpy(), pixels / 255, np.dstack([pixels, pixels[:, :, 0]]), file.getvalue()]
    for image in [*given, text, f"data:image/png;base64,{text}"]:
        assert torch.equal(processor(image)["pixel_values"], expected["pixel_values"])
    grey = processor(pixels[:, :, 0])["pixel_values"]
    assert torch.equal(grey, processor(np.repeat(pixels[:, :, :1], 3, axis=2))["pixel_values"])
    for options in (
        {"do_resize": True, "do_pad": True, "do_convert_rgb": True, "rescale_factor": 1 / 255},
        {"size": None},
    ):
        assert torch.equal(processor(pixels, **options)["pixel_values"], expected["pixel_values"])
    assert torch.equal(processor(pixels / 255, do_rescale=False)["pixel_values"], expected["pixel_values"])
    said = processor(first, input_data_format="channels_first")
    assert torch.equal(said["pixel_values"], expected["pixel_values"])

    assert processor(pixels, size=64)["pixel_values"].shape == (1, 3, 64, 64)
    assert processor(pixels, size={"longest_edge": 128})["pixel_values"].shape == (1, 3, 128, 128)
    kept = processor(pixels, do_resize=False, do_normalize=False)
    assert kept["pixel_mask"].sum() == 40 * 60
    np.testing.assert_allclose(kept["pixel_values"][0, :, :40, :60].permute(1, 2, 0), pixels / 255, atol=1e-6)
    four = processor(np.dstack([pixels, pixels[:, :, 0]]), image_mean=[0.0] * 4, image_std=[1.0] * 4)
    assert four["pixel_values"].shape == (1, 4, 128, 96)
    assert processor.size == {"height": 112, "width": 96}  # a call changes nothing for the next


def test_processor__refuses_options_that_it_does_not_have(processor: Mask2FormerDinov3ImageProcessor) -> None:
    pixels = np.zeros((120, 8, 3), np.uint8)
    for options, said in (
        ({"do_resize": False}, "do_resize: expected True for an image larger than the canvas of 112x96, got 120x8"),
        ({"do_rescale": False}, r"do_rescale: expected True, or arrays .*, got False with uint8 \(120, 8, 3\)"),
        ({"do_pad": False}, "do_pad: expected True, got False"),
        ({"do_normalize": 3}, "do_normalize: expected True or False, got 3"),
        ({"size": {"shortest_edge": 9}}, "size: expected .*, got {'shortest_edge': 9}"),
        ({"input_data_format": "last"}, "input_data_format: expected .*, got 'last'"),
    ):
        with pytest.raises(OptionError, match=said):
            processor(pixels, **options)
    with pytest.raises(TypeError, match=r"image processor: expected .*do_resize.*, got colour"):
        processor(pixels, colour=True)


def test_processor__shows_only_the_beginning_of_a_text_that_is_no_image(
    processor: Mask2FormerDinov3ImageProcessor,
) -> None:
    for text in ("data:image/png;base64,!" + "A" * 9000, "data:text/html," + "A" * 9000, "A" * 9000):
        with pytest.raises(DatasetError) as refused:
            processor(text)
        assert len(str(refused.value)) < 300


def two_overlapping() -> Mask2FormerDinov3Output:
    """Query 0 (class 1) is surer and covers the left three quarters, query 1 (class 0) the right half."""
    masks = torch.full((1, 2, 8, 8), -9.0)
    masks[0, 0, :, :6] = 9
    masks[0, 1, :, 4:] = 9
    classes = torch.tensor([[[-9.0, 9.0, 0.0], [5.0, -9.0, 0.0]]])
    return Mask2FormerDinov3Output(class_queries_logits=classes, masks_queries_logits=masks)


def test_post_process_instance_segmentation__has_the_shapes_of_hugging_face(
    processor: Mask2FormerDinov3ImageProcessor,
) -> None:
    outputs = two_overlapping()
    (flat,) = processor.post_process_instance_segmentation(outputs, target_sizes=[(32, 32)])
    assert [info["label_id"] for info in flat["segments_info"]] == [1, 0]
    assert [info["id"] for info in flat["segments_info"]] == [0, 1]
    assert set(flat["segments_info"][0]) == {"id", "label_id", "was_fused", "score"}
    assert flat["segmentation"].shape == (32, 32)
    assert (flat["segmentation"] == 0).sum() == 32 * 24  # the better one is on top
    assert (flat["segmentation"] == 1).sum() == 32 * 8
    (whole,) = processor.post_process_instance_segmentation(outputs, target_sizes=[(32, 32)], return_binary_maps=True)
    assert whole["segmentation"].dtype == torch.bool
    assert whole["segmentation"].sum((1, 2)).tolist() == [32 * 24, 32 * 16]
    (coco,) = processor.post_process_instance_segmentation(
        outputs, target_sizes=[(32, 32)], return_coco_annotation=True
    )
    assert [rle["size"] for rle in coco["segmentation"]] == [[32, 32], [32, 32]]
    (visible,) = processor.post_process_instance_segmentation(
        outputs, target_sizes=[(32, 32)], overlap_mask_area_threshold=0.8
    )
    assert len(visible["segments_info"]) == 1
    with pytest.raises(OptionError, match="expected False together with return_binary_maps"):
        processor.post_process_instance_segmentation(outputs, return_binary_maps=True, return_coco_annotation=True)


def test_post_process_instance_segmentation__without_sizes_gives_the_canvas(
    processor: Mask2FormerDinov3ImageProcessor,
) -> None:
    (found,) = processor.post_process_instance_segmentation(two_overlapping())
    assert found["segmentation"].shape == (112, 96)
    pixel_mask = torch.zeros(1, 128, 96)
    pixel_mask[:, :40, :80] = 1
    (found,) = processor.post_process_instance_segmentation(two_overlapping(), pixel_mask=pixel_mask)
    assert found["segmentation"].shape == (40, 80)


def test_post_process__takes_the_pixel_mask_that_the_output_carries(
    processor: Mask2FormerDinov3ImageProcessor, model_folder: Path
) -> None:
    model = Mask2FormerDinov3ForInstanceSegmentation.from_pretrained(model_folder)
    batch = processor(np.random.default_rng(0).integers(0, 256, (20, 48, 3), dtype=np.uint8))
    with torch.no_grad():
        outputs = model(**batch)
    names = ("class_queries_logits", "masks_queries_logits")
    logits = Mask2FormerDinov3Output(**{name: outputs[name] for name in names})
    sizes = batch["original_sizes"]
    (carried,), (given,), (padded,) = (
        processor.post_process(outputs, sizes),
        processor.post_process(logits, sizes, batch["pixel_mask"]),
        processor.post_process(logits, sizes),
    )
    assert len(carried) > 0
    assert carried.rles == given.rles
    assert carried.rles != padded.rles  # the padding taken for image
    (flat,) = processor.post_process_instance_segmentation(outputs, threshold=0.0)
    assert flat["segmentation"].shape == (40, 96)  # the canvas without its padding


def test_post_process_instance_segmentation__finds_nothing_without_breaking(
    processor: Mask2FormerDinov3ImageProcessor,
) -> None:
    outputs, sizes = two_overlapping(), [(9, 7)]
    (flat,) = processor.post_process_instance_segmentation(outputs, 1.0, target_sizes=sizes)
    assert (flat["segmentation"] == -1).all()
    assert flat["segments_info"] == []
    (whole,) = processor.post_process_instance_segmentation(outputs, 1.0, target_sizes=sizes, return_binary_maps=True)
    assert whole["segmentation"].shape == (0, 9, 7)
    (coco,) = processor.post_process_instance_segmentation(
        outputs, 1.0, target_sizes=sizes, return_coco_annotation=True
    )
    assert coco["segmentation"] == []


def test_processor__keeps_how_files_are_read(tmp_path: Path) -> None:
    options = ReadOptions("0,4095", 2, (3, 1, 1))
    processor = Mask2FormerDinov3ImageProcessor(value_range="0,4095", page=2, channels=[3, 1, 1])
    processor.save_pretrained(tmp_path)
    assert processor.read_options == options
    assert Mask2FormerDinov3ImageProcessor.from_pretrained(tmp_path).read_options == options
    assert Mask2FormerDinov3ImageProcessor().read_options == ReadOptions()
    with pytest.raises(OptionError, match='value_range: expected "full"'):
        Mask2FormerDinov3ImageProcessor(value_range="9,1")
