"""Windows against the way that SCLIP's script lays them, in plain loops."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from open_cloc.canvas import CanvasConfig
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.evaluation.protocols import PROTOCOLS, DenseRules
from open_cloc.evaluation.windows import cosines_of, enlarged, resized_hw, starts
from open_cloc.samples import RegionSample


class Colours:
    """The mean colour of each 4 x 4 pixels of the canvas, made a vector."""

    canvas = CanvasConfig((16, 16), resize_mode="squash")

    def describe(self) -> dict[str, str]:
        return {"method": "colours"}

    def embed_tokens(self, batch: EvaluationBatch) -> Tensor:
        means = F.avg_pool2d(batch.images.float(), 4).permute(0, 2, 3, 1) - 120
        return F.normalize(means, dim=-1)


def test_windows_cover_a_length() -> None:
    for length in range(16, 90):
        for stride in (1, 5, 8, 16):
            found = starts(length, 16, stride)
            covered = {pixel for start in found for pixel in range(start, start + 16)}
            assert covered == set(range(length))
            assert len(found) == max(length - 16 + stride - 1, 0) // stride + 1


@pytest.mark.parametrize(
    ("size", "canvas", "rules", "expected"),
    [
        ((480, 640), 224, DenseRules(), (336, 448)),
        ((1024, 2048), 224, DenseRules(short_side=2.5), (560, 1120)),
        ((480, 640), 448, DenseRules(1.0, 0.75), (448, 597)),
        ((512, 683), 448, DenseRules(1.0, 0.75), (448, 598)),
        ((512, 683), 448, PROTOCOLS["tips"].dense, (448, 597)),  # what TIPS's own notebook printed
        ((683, 512), 448, PROTOCOLS["tips-whole"].dense, (597, 448)),
        ((256, 360), 224, PROTOCOLS["sclip"].dense, (336, 473)),  # 472.5: halves go up, as in mmcv
        ((256, 360), 224, PROTOCOLS["sclip-stuff"].dense, (448, 630)),
        ((100, 3000), 224, DenseRules(), (224, 2048)),  # no longer than 2,048, no narrower than a window
    ],
)
def test_pictures_are_resized_as_the_scripts_do(
    size: tuple[int, int], canvas: int, rules: DenseRules, expected: tuple[int, int]
) -> None:
    assert resized_hw(size, (canvas, canvas), rules) == expected


@pytest.mark.parametrize("average", ["cosines", "probabilities"])
def test_cosines_are_those_of_plain_loops(average: str) -> None:
    rules = DenseRules(scale=3.0, average=average)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 256, (6, 9, 3)), np.ones((4, 4, 1))).astype(np.uint8)  # 24 x 36
    texts = F.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    method = Colours()
    found = cosines_of(method, RegionSample("s", pixels), pixels, texts, rules, 4)  # type: ignore[arg-type]
    total, counts = torch.zeros(5, 24, 36), torch.zeros(24, 36)
    for y1 in (0, 8):
        for x1 in (0, 8, 16, 20):
            window = torch.from_numpy(pixels[y1 : y1 + 16, x1 : x1 + 16].copy()).permute(2, 0, 1)[None]
            colours = F.normalize(F.avg_pool2d(window.float(), 4)[0] - 120, dim=0)
            near = torch.einsum("qd,dhw->qhw", texts, colours)
            large = F.interpolate(near[None], (16, 16), mode="bilinear")[0]
            total[:, y1 : y1 + 16, x1 : x1 + 16] += (3 * large).softmax(0) if average != "cosines" else large
            counts[y1 : y1 + 16, x1 : x1 + 16] += 1
    torch.testing.assert_close(found, total / counts, atol=1e-5, rtol=0)


def test_tips_sizes_are_those_of_its_notebook() -> None:
    """Cut, not rounded, and no pixel lost to floats."""
    rules = PROTOCOLS["tips"].dense
    for height in range(300, 700, 7):
        for width in range(300, 700, 11):
            short = min(height, width)
            expected = tuple(448 if side == short else int(448 * side / short) for side in (height, width))
            assert resized_hw((height, width), (448, 448), rules) == expected


def test_a_picture_seen_at_once_is_enlarged_to_whole_places() -> None:
    rules = DenseRules(1.0, scale=1.0, sizes="cut", whole=True)
    rng = np.random.default_rng(0)
    pixels = rng.integers(60, 180, (16, 26, 3), dtype=np.uint8)
    texts = F.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    method = Colours()
    with pytest.raises(UserError, match="method colours sees pictures of one size alone; take a protocol of"):
        cosines_of(method, RegionSample("s", pixels), pixels, texts, rules, 4)  # type: ignore[arg-type]
    method.patch_hw = (4, 4)  # type: ignore[attr-defined]
    found = cosines_of(method, RegionSample("s", pixels), pixels, texts, rules, 4)  # type: ignore[arg-type]
    wide = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
    wide = F.interpolate(wide, (16, 28), mode="bicubic", align_corners=False)
    colours = F.normalize(F.avg_pool2d(wide, 4)[0] - 120, dim=0)
    expected = torch.einsum("qd,dhw->qhw", texts, colours)
    assert found.shape == (5, 4, 7)
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)  # of 256 values


@pytest.mark.parametrize("size", [(31, 47), (5, 4), (7, 9), (1, 1), (64, 3)])
@pytest.mark.parametrize("at_once", [1, 500, 10**9])
def test_rows_at_a_time_are_what_interpolate_gives(size: tuple[int, int], at_once: int) -> None:
    values = torch.randn(3, 7, 9, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([part for _, part in enlarged(values, size, at_once)], dim=1)
    expected = F.interpolate(values[None], size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", ["", "bilinear", "bicubic"])
def test_a_protocol_says_how_pictures_are_resized(way: Literal["", "bilinear", "bicubic"]) -> None:
    """Whatever the model was trained on."""
    pixels = np.random.default_rng(0).integers(60, 180, (40, 40, 3), dtype=np.uint8)
    texts = F.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    found = {}
    for own in ("bilinear", "bicubic"):
        method = Colours()
        method.canvas = CanvasConfig((16, 16), resize_mode="squash", interpolation=own)
        rules = DenseRules(1.0, interpolation=way)
        found[own] = cosines_of(method, RegionSample("s", pixels), pixels, texts, rules, 4)  # type: ignore[arg-type]
    assert torch.equal(found["bilinear"], found["bicubic"]) == bool(way)
    scripts = {
        name: PROTOCOLS[name].dense.interpolation
        for name in PROTOCOLS
        if "segmentation" in PROTOCOLS[name].metrics
    }
    assert {scripts[name] for name in scripts if name.startswith("sclip")} == {"bilinear"}
    assert {scripts["tips"], scripts["tips-whole"]} == {"bicubic"}
