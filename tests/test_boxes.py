"""Box conversions, checks, and the overlap of boxes and grid cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from open_cloc import boxes as B


@pytest.mark.parametrize("source", B.BOX_FORMATS)
@pytest.mark.parametrize("target", B.BOX_FORMATS)
def test_conversion_equals_torchvision(source: str, target: str) -> None:
    xyxy = torch.tensor([[[10.0, 20.0, 30.5, 60.0], [0.0, 0.0, 1.0, 2.0]]])
    given = torchvision.ops.box_convert(xyxy, "xyxy", source)
    expected = torchvision.ops.box_convert(xyxy, "xyxy", target)
    torch.testing.assert_close(B.convert_boxes(given, source, target), expected)
    as_array = B.convert_boxes(given.numpy(), source, target)
    assert isinstance(as_array, np.ndarray)
    np.testing.assert_allclose(as_array, expected.numpy(), rtol=1e-6)


def test_conversion_refuses_unknown_formats_and_shapes() -> None:
    with pytest.raises(ValueError, match=r"unknown box format 'yxyx'.*xyxy, xywh, cxcywh"):
        B.convert_boxes(torch.zeros(1, 4), "yxyx")
    with pytest.raises(ValueError, match=r"4 numbers each; got shape \(2, 5\)"):
        B.convert_boxes(torch.zeros(2, 5), "xyxy")


def test_normalizing_uses_width_for_x_and_height_for_y() -> None:
    px = torch.tensor([[10.0, 20.0, 40.0, 50.0]])
    normalized = B.normalize_boxes(px, (100, 200))
    torch.testing.assert_close(normalized, torch.tensor([[0.05, 0.2, 0.2, 0.5]]))
    torch.testing.assert_close(B.denormalize_boxes(normalized, (100, 200)), px)
    assert B.normalize_boxes(torch.zeros(0, 4), (100, 200)).shape == (0, 4)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([0.0, 0.0, float("nan"), 5.0], "finite.*row 1"),
        ([30.0, 10.0, 10.0, 20.0], "x1 < x2.*row 1.*xywh"),
        ([10.0, 10.0, 10.0, 20.0], "x1 < x2.*row 1"),
        ([10.0, 10.0, 30.0, 60.0], "inside the picture of 100 x 50.*row 1"),
        ([-5.0, 10.0, 30.0, 20.0], "inside the picture.*row 1"),
    ],
)
def test_wrong_boxes_are_named(box: list[float], message: str) -> None:
    boxes = np.array([[0.0, 0.0, 10.0, 10.0], box], dtype=np.float32)
    with pytest.raises(ValueError, match=message) as error:
        B.validate_boxes_px(boxes, (50, 100), where="a.json")
    assert "(a.json)" in str(error.value)


def test_right_boxes_pass() -> None:
    B.validate_boxes_px(np.array([[0.0, 0.0, 100.0, 50.0], [1, 1, 2, 2]]), (50, 100))
    B.validate_boxes_px(np.zeros((0, 4)), (50, 100))
    B.validate_boxes_px(np.array([[0.0, 0.0, 100.05, 50.0]]), (50, 100))  # rounding of annotations
    with pytest.raises(ValueError, match=r"\(R, 4\); got shape \(4,\)"):
        B.validate_boxes_px(np.zeros(4), (50, 100))


def test_grid_cells_go_row_by_row() -> None:
    cells = B.grid_cells((2, 4))
    assert cells.shape == (8, 4)
    torch.testing.assert_close(cells[0], torch.tensor([0.0, 0.0, 0.25, 0.5]))
    torch.testing.assert_close(cells[1], torch.tensor([0.25, 0.0, 0.5, 0.5]))
    torch.testing.assert_close(cells[6], torch.tensor([0.5, 0.5, 0.75, 1.0]))


def test_overlap_fraction_equals_a_loop() -> None:
    low, size = torch.rand(2, 3, 2), torch.rand(2, 3, 2)
    boxes = torch.cat([low, low + size], dim=-1)  # (B, R, 4); some leave the picture
    boxes[0, 0] = torch.tensor([0.3, 0.3, 0.3, 0.3])  # empty
    boxes[0, 1] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    cells = B.grid_cells((3, 5))
    got = B.overlap_fraction(boxes, cells)
    assert got.shape == (2, 3, 15)
    for i in range(2):
        for r in range(3):
            for n, cell in enumerate(cells.tolist()):
                box = boxes[i, r].tolist()
                width = min(box[2], cell[2]) - max(box[0], cell[0])
                height = min(box[3], cell[3]) - max(box[1], cell[1])
                area = max(width, 0) * max(height, 0)
                assert got[i, r, n] == pytest.approx(area * 15, abs=1e-5)
    torch.testing.assert_close(got[0, 1], torch.ones(15))
    assert got[0, 0].eq(0).all()


def test_iou_is_torchvisions_pair_by_pair() -> None:
    low, size = torch.rand(2, 5, 3, 2), torch.rand(2, 5, 3, 2)
    boxes, others = torch.cat([low, low + size], -1)  # (5, 3, 4) each
    others[0, 0] = boxes[0, 0]
    boxes[0, 1] = others[0, 1] = torch.tensor([0.3, 0.3, 0.3, 0.3])  # without area
    found = B.iou(boxes, others)
    expected = torchvision.ops.box_iou(boxes.reshape(-1, 4), others.reshape(-1, 4)).diagonal().reshape(5, 3)
    torch.testing.assert_close(found, expected.nan_to_num())
    assert found[0, 0] == 1
    torch.testing.assert_close(B.iou(boxes, others[:, :1])[:, 0], found[:, 0])


def test_areas_of_arrays_and_tensors_are_alike() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.25], [0.5, 0.0, 0.0, 0.5]])
    torch.testing.assert_close(B.box_areas(boxes), torch.tensor([0.125, -0.25]))
    np.testing.assert_allclose(B.box_areas(boxes.numpy()), [0.125, -0.25])


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 5000), st.integers(1, 5000), st.floats(-3, 3), st.floats(-3, 3))
def test_readers_and_the_predictor_judge_a_border_alike(height: int, width: int, x: float, y: float) -> None:
    """A pixel or 0.1 % of the side, whichever is more, is rounding; the rest is wrong."""
    box = np.array([[0.0, 0.0, width + x, height + y]])
    allowed = x <= max(1, 1e-3 * width) and y <= max(1, 1e-3 * height)
    is_right = allowed and min(width + x, height + y) > 0
    code = B.box_problems(B.normalize_boxes(box, (height, width)), (height, width))[0]
    if min(abs(width + x), abs(height + y)) < 1e-2 or abs(max(x, y) - 1) < 1e-6:
        return
    assert (code == B.OK) == is_right
    if is_right:
        B.validate_boxes_px(box, (height, width))
    else:
        with pytest.raises(ValueError, match="boxes must"):
            B.validate_boxes_px(box, (height, width))


def test_a_pixel_outside_is_rounding_to_the_predictor_as_well() -> None:
    B.validate_boxes_px(np.array([[100.0, 6, 321, 100], [-0.4, 6, 200, 100]]), (240, 320))
    with pytest.raises(ValueError, match="inside the picture of 320 x 240"):
        B.validate_boxes_px(np.array([[100.0, 6, 321.1, 100]]), (240, 320))
    with pytest.raises(ValueError, match="inside the picture of 320 x 240"):  # nothing of it is left
        B.validate_boxes_px(np.array([[320.2, 6, 321, 100]]), (240, 320))


@pytest.mark.parametrize("count", [0, 1, 40, 300])
def test_distinct_boxes_are_torchvisions(count: int) -> None:
    rng = np.random.default_rng(count)
    corners = rng.integers(0, 12, (count, 2)) / 20  # few places: many overlaps, equal boxes among them
    boxes = np.concatenate([corners, corners + rng.integers(0, 5, (count, 2)) / 20], 1).astype(np.float32)
    classes = rng.integers(0, 3, count)
    scores = torch.arange(count, 0, -1).double()
    for most in (0.0, 0.31, 0.77):
        kept = torchvision.ops.batched_nms(
            torch.from_numpy(boxes).double(), scores, torch.from_numpy(classes), most
        )
        stays = B.distinct_boxes(boxes, classes, most)
        assert np.flatnonzero(stays).tolist() == kept.tolist()
        assert stays.sum() < count or count < 300
