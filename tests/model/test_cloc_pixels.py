"""What a model takes as pictures: bytes, or floats in [0, 1] where that is said; anything else is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import tiny_model
from torch import Tensor

from open_cloc.errors import UserError
from open_cloc.model.cloc import CLOC


@pytest.fixture(scope="module")
def model() -> CLOC:
    return tiny_model()


@pytest.fixture(scope="module")
def images() -> Tensor:
    """(2, 3, 64, 64) uint8 of noise."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_floats_are_taken_where_that_is_said_and_mean_what_bytes_mean(
    model: CLOC, images: Tensor, dtype: torch.dtype
) -> None:
    expected = model.encode_image(images).image_features
    found = model.encode_image((images / 255).to(dtype), unit_range=True).image_features
    cosines = torch.cosine_similarity(found, expected)
    assert cosines.min() > (0.999 if dtype == torch.bfloat16 else 1 - 1e-5)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.int64, torch.int32, torch.int8, torch.bool, torch.int16]
)
def test_other_numbers_are_refused_whatever_they_hold(
    model: CLOC, images: Tensor, dtype: torch.dtype
) -> None:
    for call in (model.encode_image, model.normalize_pixels):
        with pytest.raises(UserError, match=rf"uint8.*got {str(dtype).removeprefix('torch.')}.*unit_range"):
            call(images.to(dtype))  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_whole_numbers_are_no_floats(model: CLOC, images: Tensor, dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match=r"unit_range.*floats"):
        model.encode_image(images.to(dtype), unit_range=True)


@pytest.mark.parametrize(
    ("factor", "shift", "got"),
    [(255, 0, "255"), (2, -1, "-0.99"), (float("nan"), 0, "nan"), (float("inf"), 1, "inf")],
    ids=["bytes as floats", "from -1 to 1", "nan", "inf"],
)
def test_floats_of_another_range_are_refused(
    model: CLOC, images: Tensor, factor: float, shift: float, got: str
) -> None:
    with pytest.raises(UserError, match=rf"\[0, 1\].*{got}"):
        model.encode_image(images.clamp(min=1) / 255 * factor + shift, unit_range=True)


@pytest.mark.parametrize("shape", [(64, 64, 3), (2, 64, 64, 3), (2, 1, 64, 64), (2, 4, 64, 64), (3, 64, 64)])
def test_pictures_of_another_shape_are_refused(model: CLOC, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"\(B, 3, H, W\); got \("):
        model.encode_image(torch.zeros(shape, dtype=torch.uint8))


def test_pictures_that_are_given_stay_as_they_are(model: CLOC, images: Tensor) -> None:
    floats = images / 255
    before = floats.clone()
    model.normalize_pixels(floats, unit_range=True)
    assert torch.equal(floats, before)
