"""Masks: a filled box is the box, half of it is something else, and any trained model answers them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from open_cloc.canvas import Geometry
from open_cloc.model.prompter import Prompter, PrompterConfig
from open_cloc.model.prompts.mask import shares_of_patches, tight_boxes

WIDTH, EMBED, GRID, SIZE_HW = 16, 8, (3, 4), (48, 64)

CONFIGS = {
    "paper": PrompterConfig(),
    "prior": PrompterConfig(
        readout="prompt", patch_positions=True, box_prior=True, box_content="none", pooled_residual=True
    ),
}
BOXES_PX = [(3, 5, 40, 31), (0, 0, 64, 48), (17, 20, 19, 22)]


def filled(boxes_px: list[tuple[int, int, int, int]]) -> Tensor:
    """(1, R, 48, 64) masks that fill whole-pixel boxes."""
    masks = torch.zeros(1, len(boxes_px), *SIZE_HW, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks[0], boxes_px):
        mask[y1:y2, x1:x2] = True
    return masks


def prompter_of(name: str) -> Prompter:
    prompter = Prompter(WIDTH, EMBED, CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in prompter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return prompter


def normalized(boxes_px: list[tuple[int, int, int, int]]) -> Tensor:
    return torch.tensor(boxes_px)[None] / torch.tensor([64, 48, 64, 48])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_mask_that_fills_a_box_is_the_box(name: str) -> None:
    prompter = prompter_of(name)
    image = prompter.prepare(torch.randn(1, 12, WIDTH), GRID)
    boxes = prompter.embed(image, {"box": normalized(BOXES_PX)})
    masks = prompter.embed(image, {"mask": filled(BOXES_PX)})
    torch.testing.assert_close(masks, boxes, rtol=0, atol=2e-6)


def test_half_of_a_box_is_something_else() -> None:
    """A triangle has the box's corners, and other patches."""
    prompter = prompter_of("prior")
    image = prompter.prepare(torch.randn(1, 12, WIDTH), GRID)
    whole = filled(BOXES_PX[:1])
    below = torch.arange(48)[:, None] / 48 + torch.arange(64) / 64 < 0.75
    half = whole & below
    half[0, 0, 5, 39] = half[0, 0, 30, 3] = True  # the same tight box
    torch.testing.assert_close(tight_boxes(half.float()), tight_boxes(whole.float()))
    one, other = (prompter.embed(image, {"mask": mask}) for mask in (half, whole))
    assert (one - other).abs().max() > 1e-2


def test_masks_of_patches_equal_masks_of_pixels() -> None:
    prompter = prompter_of("prior")
    image = prompter.prepare(torch.randn(1, 12, WIDTH), GRID)
    patches = torch.tensor([[[0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0]]], dtype=torch.bool)
    pixels = patches.view(1, 1, *GRID).repeat_interleave(16, -2).repeat_interleave(16, -1)
    one, other = (prompter.embed(image, {"mask": mask}) for mask in (patches, pixels))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_tight_boxes_are_exact_to_fractions_of_pixels() -> None:
    rows = torch.tensor([0, 0.25, 1, 1, 0.5, 0])
    columns = torch.tensor([0, 0, 0, 0.5, 0, 0, 0, 0])
    (box,) = tight_boxes((rows[:, None] * columns)[None, None] * 1.0)[0]
    assert box[1] * 6 == pytest.approx(1 + (1 - 0.125))  # the profile is the thicker of the two
    columns = torch.tensor([0, 0.75, 1, 1, 1, 0.5, 0, 0])
    (box,) = tight_boxes((rows[:, None] * columns)[None, None])[0]
    assert (box * torch.tensor([8.0, 6, 8, 6])).tolist() == pytest.approx([1.25, 1.75, 5.5, 4.5])
    alone = torch.zeros(1, 1, 6, 8)
    alone[0, 0, 2, 3] = 0.5
    assert (tight_boxes(alone)[0, 0] * torch.tensor([8.0, 6, 8, 6])).tolist() == pytest.approx(
        [3.25, 2.25, 3.75, 2.75]
    )
    assert tight_boxes(torch.zeros(1, 1, 6, 8)).isfinite().all()


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("mode", ["longest", "squash"])
@pytest.mark.parametrize("source_hw", [(50, 90), (90, 50), (7, 300), (48, 64)])
def test_masks_lie_on_the_canvas_where_boxes_lie(
    source_hw: tuple[int, int], mode: str, flipped: bool
) -> None:
    geometry = Geometry.fit(source_hw, (48, 64), mode)
    geometry = geometry.flip() if flipped else geometry
    height, width = source_hw
    x1, y1, x2, y2 = width // 4, height // 3, width - 1, height - 2
    mask = np.zeros((1, height, width), bool)
    mask[:, y1:y2, x1:x2] = True
    expected = geometry.to_canvas(np.array([[x1 / width, y1 / height, x2 / width, y2 / height]]))
    got = geometry.masks_to_canvas(mask)
    assert got.dtype == np.float32
    assert got.shape == (1, 48, 64)
    area = (expected[:, 2:] - expected[:, :2]).prod() * 48 * 64
    assert got.sum() == pytest.approx(area, rel=1e-5)
    if min(area, 9) == 9 and source_hw != (7, 300):  # several pixels each way
        np.testing.assert_allclose(tight_boxes(torch.from_numpy(got)[None])[0], expected, atol=1e-5)


@pytest.mark.parametrize(("canvas", "grid"), [(224, 16), (42, 3), (64, 4), (30, 7)])
def test_patches_are_covered_by_area(canvas: int, grid: int) -> None:
    """Cells that end within a patch count for both by what lies in each: no patch has another's."""
    mask = torch.rand(2, canvas, canvas, generator=torch.Generator().manual_seed(0)).round()
    fine = mask.repeat_interleave(grid, -1).repeat_interleave(grid, -2)  # each pixel cut into grid x grid
    expected = fine.unflatten(-1, (grid, canvas)).unflatten(-3, (grid, canvas)).mean((-3, -1)).flatten(-2)
    torch.testing.assert_close(shares_of_patches(mask, (grid, grid)), expected, atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(shares_of_patches(mask, (grid, grid)), expected, atol=1e-5, rtol=0)
    first = torch.zeros(1, canvas, canvas)
    first[:, : canvas // grid, : canvas // grid] = 1
    if canvas % grid == 0:
        assert shares_of_patches(first, (grid, grid))[0].tolist() == pytest.approx(
            [1.0] + [0.0] * (grid**2 - 1)
        )


def test_masks_of_a_cut_picture_lose_what_is_outside() -> None:
    geometry = Geometry.fit((40, 40), (20, 20)).crop((0.5, 0.0, 1.0, 0.5))
    left, right = np.zeros((2, 1, 40, 40), bool)
    left[:, :, :20], right[:, :20, 20:] = True, True
    assert geometry.masks_to_canvas(left).sum() == 0
    np.testing.assert_allclose(geometry.masks_to_canvas(right), 1)
