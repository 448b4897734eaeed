"""Pictures on a detector's canvas, and its boxes back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from open_cloc.labelling.detectors import grounding_dino, owl
from open_cloc.labelling.detectors.canvas import Canvas, Preprocess, read_preprocess
from tests.labelling.detectors.made import (
    TYPES,
    detector,
    plant,
)


@pytest.mark.parametrize("size_hw", [(200, 200), (160, 320), (320, 160), (80, 400), (420, 60)])
@pytest.mark.parametrize("model_type", TYPES)
def test_planted_boxes_come_back_within_half_a_pixel(
    folders: dict[str, Path], model_type: str, size_hw: tuple[int, int]
) -> None:
    own = detector(folders[model_type])
    own.preprocess = replace(
        own.preprocess, size=(300, 500) if own.preprocess.mode == "edges" else (256, 256)
    )
    plant(own)
    height, width = size_hw
    x1, y1, x2, y2 = width // 5, height // 3, width - width // 4, height - height // 5
    image = np.zeros((*size_hw, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    (found,) = own([image], [["dog"]])
    assert found.boxes.shape == (1, 4)
    np.testing.assert_allclose(found.boxes[0] * [width, height, width, height], [x1, y1, x2, y2], atol=0.5)


@pytest.mark.parametrize("pad_value", [0.0, 0.5])
def test_the_padding_has_the_value_that_is_stated(pad_value: float) -> None:
    own = Preprocess("pad", (64, 64), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), pad_value, "bilinear")
    image = np.full((40, 80, 3), 51, np.uint8)
    canvas = own.canvas((40, 80))
    assert canvas == Canvas((32, 64), (64, 64))
    pixels = own.draw([image], [canvas], torch.device("cpu"))[0]
    mean, std = torch.tensor(own.mean), torch.tensor(own.std)
    np.testing.assert_allclose(
        pixels[:, 32:].permute(1, 2, 0) * std + mean, np.full((32, 64, 3), pad_value), atol=1e-6
    )
    np.testing.assert_allclose(
        pixels[:, :32].permute(1, 2, 0) * std + mean, np.full((32, 64, 3), 0.2), atol=1e-6
    )


def test_what_the_checkpoint_says_of_its_pictures_is_followed(tmp_path: Path) -> None:
    defaults = {name: replace(own, size=(64, 64)) for name, own in owl.PREPROCESS.items()}
    defaults["grounding-dino"] = grounding_dino.PREPROCESS

    def read(model_type: str, given: dict | None, name: str = "preprocessor_config.json") -> Preprocess:
        if given is not None:
            (tmp_path / name).write_text(json.dumps(given))
        default = defaults[model_type]
        return read_preprocess(
            tmp_path, default if model_type not in TYPES[:2] else replace(default, size=(64, 64))
        )

    default = read("owlv2", None)
    assert (default.mode, default.size, default.pad_value) == ("pad", (64, 64), 0.0)
    assert default.interpolation == "bilinear"
    assert (read("owlvit", None).mode, read("owlvit", None).interpolation) == ("squash", "bicubic")
    dino = read("grounding-dino", None)
    assert (dino.mode, dino.size, dino.mean[0], dino.pad_value) == ("edges", (800, 1333), 0.485, None)
    nested = read(
        "owlv2", {"image_processor": {"size": {"height": 48, "width": 48}}}, "processor_config.json"
    )
    assert nested.size == (48, 48)
    assert read("owlvit", {"size": [96, 80], "resample": 2}).size == (96, 80)
    given = read("owlvit", {"size": 96, "crop_size": 96, "do_center_crop": True, "image_mean": [0.5] * 3})
    assert (given.size, given.mean) == ((96, 96), (0.5, 0.5, 0.5))
    assert read("owlv2", {"do_normalize": False}).std == (1, 1, 1)
    assert read("grounding-dino", {"size": {"shortest_edge": 5, "longest_edge": 9}}).size == (5, 9)
    for wrong, message in (
        ({"do_resize": False}, "without resize"),
        ({"do_center_crop": True, "crop_size": 7, "size": 9}, "centre crop"),
        ({"rescale_factor": 1}, "rescale_factor"),
        ({"size": {"width": 9}}, "height and width"),
        ({"resample": 9}, "resample"),
    ):
        with pytest.raises(ValueError, match=message):
            read("owlv2", wrong)


@pytest.mark.parametrize(("mode", "size"), [("pad", (64, 64)), ("squash", (64, 100)), ("edges", (64, 100))])
def test_a_scaled_picture_lies_where_the_picture_lies(mode: Any, size: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    preprocess = Preprocess(mode, size, (0.5,) * 3, (0.5,) * 3, 0.0, "bilinear")
    scaled = 0
    for height, width in draw.integers(8, 400, (60, 2)):
        image = draw.integers(0, 255, (height, width, 3), np.uint8)
        small = preprocess.scale(image)
        canvas = preprocess.canvas(image.shape[:2])
        assert preprocess.canvas(small.shape[:2]) == canvas
        scaled += small is not image
        one, other = (preprocess.draw([x], [canvas], torch.device("cpu")) for x in (image, small))
        assert torch.equal(one, other)
    assert scaled > 50
