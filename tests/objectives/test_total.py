"""Losses against plain loops over pairs, open_clip's losses and torchvision's GIoU."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import open_clip
import pytest
import torch
import torchvision
from paper_terms import paper_objectives
from torch import Tensor
from torch.nn import functional as F

from open_cloc.objectives import (
    grounding_loss,
    image_text_loss,
    region_text_loss,
    sigmoid_image_text_loss,
    sigmoid_region_text_loss,
)
from open_cloc.objectives.pairs.losses import filtered_share, find_pairs
from open_cloc.samples import Features

SCALE = torch.tensor([7.0])
BIAS = torch.tensor([-3.0])


# --- slow references ------------------------------------------------------------------------------


def _pairs(regions: Tensor, texts: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Unit vectors (region, its text) of every region that counts."""
    return [
        (regions[i, m] / regions[i, m].norm(), texts[i, m] / texts[i, m].norm())
        for i in range(mask.shape[0])
        for m in range(mask.shape[1])
        if mask[i, m]
    ]


def _conflict(pairs: list[tuple[Tensor, Tensor]], p: int, q: int, threshold: float | None) -> bool:
    """Whether pair (p, q) is left out: alike texts, never the positive itself."""
    if p == q or threshold is None:
        return False
    return float(pairs[p][1].detach() @ pairs[q][1].detach()) > threshold


def slow_softmax(
    regions: Tensor, texts: Tensor, mask: Tensor, scale: Tensor, threshold: float | None
) -> Tensor:
    """Eq. 2: both directions, one row at a time."""
    pairs = _pairs(regions, texts, mask)
    total = regions.sum() * 0
    for p, (region, text) in enumerate(pairs):
        kept = [q for q in range(len(pairs)) if not _conflict(pairs, p, q, threshold)]
        positive = (scale * (region @ text)).exp()
        to_text = sum((scale * (region @ pairs[q][1])).exp() for q in kept)
        to_region = sum((scale * (pairs[q][0] @ text)).exp() for q in kept)
        total = total - ((positive / to_text).log() + (positive / to_region).log()).sum() / 2
    return total / max(len(pairs), 1)


def slow_sigmoid(
    regions: Tensor, texts: Tensor, mask: Tensor, scale: Tensor, threshold: float | None
) -> Tensor:
    pairs = _pairs(regions, texts, mask)
    total = regions.sum() * 0
    for p, (region, _) in enumerate(pairs):
        for q, (_, text) in enumerate(pairs):
            if not _conflict(pairs, p, q, threshold):
                sign = 1 if p == q else -1
                total = total - F.logsigmoid(sign * (scale * (region @ text) + BIAS)).sum()
    return total / max(len(pairs), 1)


def fast_sigmoid(*args: Tensor, **kwargs: object) -> Tensor:
    return sigmoid_region_text_loss(*args, logit_bias=BIAS, **kwargs)  # type: ignore[arg-type]


REGION_LOSSES = pytest.mark.parametrize(
    ("fast", "slow"),
    [(region_text_loss, slow_softmax), (fast_sigmoid, slow_sigmoid)],
    ids=["softmax", "sigmoid"],
)


def _regions() -> tuple[Tensor, Tensor, Tensor]:
    """Features (3, 4, 8), texts of which some are the same or nearly so, and a mask with an empty image."""
    generator = torch.Generator().manual_seed(3)
    regions = torch.randn(3, 4, 8, generator=generator)
    texts = torch.randn(3, 4, 8, generator=generator)
    texts[2, 1] = 5 * texts[0, 0]  # the same phrase, in another image
    texts[0, 2] = texts[0, 0] + 0.1 * texts[0, 1]  # nearly the same, in the same image
    texts[2, 3] = texts[2, 2]
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1]], dtype=torch.bool)
    return regions, texts, mask


def _grad(loss: Callable[[Tensor, Tensor], Tensor], regions: Tensor, texts: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in (regions, texts)]
    value = loss(*leaves)
    value.backward()
    return value.detach(), *(leaf.grad for leaf in leaves)


# --- region-text ----------------------------------------------------------------------------------


@REGION_LOSSES
@pytest.mark.parametrize("threshold", [None, 0.9, 0.3])
def test_region_loss_and_gradients_equal_the_loop(
    fast: Callable[..., Tensor], slow: Callable[..., Tensor], threshold: float | None
) -> None:
    regions, texts, mask = _regions()
    got = _grad(
        lambda r, t: fast(r, t, SCALE, region_mask=mask, conflict_threshold=threshold), regions, texts
    )
    expected = _grad(
        lambda r, t: slow(r, t, mask, SCALE.double(), threshold).float(), regions.double(), texts.double()
    )
    for one, other in zip(got, expected):
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-5)


def test_conflict_filter_changes_the_loss_on_these_features() -> None:
    """Else the test above could not tell a filter from none."""
    regions, texts, mask = _regions()
    values = {
        threshold: float(
            region_text_loss(regions, texts, SCALE, region_mask=mask, conflict_threshold=threshold)
        )
        for threshold in (None, 0.9, 0.3)
    }
    assert values[None] > values[0.9] > values[0.3]
    off = region_text_loss(regions, texts, SCALE, region_mask=mask, conflict_threshold=1.5)
    assert float(off) == pytest.approx(values[None])


def test_the_positive_is_never_left_out() -> None:
    """Where every text is the same, only the positives remain and the loss is exactly 0."""
    regions = torch.randn(2, 3, 8)
    texts = torch.randn(8).expand(2, 3, 8)
    assert float(region_text_loss(regions, texts, SCALE)) == pytest.approx(0, abs=1e-6)
    without = float(region_text_loss(regions, texts, SCALE, conflict_threshold=None))
    assert without > math.log(6) - 0.1


@REGION_LOSSES
def test_padding_does_not_matter(fast: Callable[..., Tensor], slow: Callable[..., Tensor]) -> None:
    """More masked regions, wherever they stand, leave the loss of the real ones alone."""
    regions, texts, mask = _regions()
    packed = fast(regions[mask][None], texts[mask][None], SCALE)
    padded = fast(regions, texts, SCALE, region_mask=mask)
    wider = [F.pad(x, (0, 0, 2, 5), value=1.0) for x in (regions, texts)]
    more = fast(*wider, SCALE, region_mask=F.pad(mask, (2, 5)))
    assert float(padded) == pytest.approx(float(packed), rel=1e-5)
    assert float(more) == pytest.approx(float(packed), rel=1e-5)


@REGION_LOSSES
@pytest.mark.parametrize("shape", [(2, 3), (2, 0), (1, 1)])
def test_no_region_gives_zero_with_finite_gradients(
    fast: Callable[..., Tensor], slow: Callable[..., Tensor], shape: tuple[int, int]
) -> None:
    mask = torch.zeros(shape, dtype=torch.bool)
    regions, texts = (torch.randn(*shape, 8, requires_grad=True) for _ in range(2))
    scale = SCALE.clone().requires_grad_()
    loss = fast(regions, texts, scale, region_mask=mask)
    loss.backward()
    assert loss.shape == ()
    assert float(loss.detach()) == 0
    for leaf in (regions, texts, scale):
        assert leaf.grad is not None
        assert leaf.grad.eq(0).all()


@REGION_LOSSES
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_garbage_in_masked_rows_reaches_nothing(
    fast: Callable[..., Tensor], slow: Callable[..., Tensor], garbage: float
) -> None:
    regions, texts, mask = _regions()
    clean = _grad(lambda r, t: fast(r, t, SCALE, region_mask=mask), regions, texts)
    dirty_regions, dirty_texts = (x.masked_fill(~mask[..., None], garbage) for x in (regions, texts))
    dirty = _grad(lambda r, t: fast(r, t, SCALE, region_mask=mask), dirty_regions, dirty_texts)
    for one, other in zip(dirty, clean):
        torch.testing.assert_close(one, other)
    assert dirty[1][~mask].eq(0).all()


@REGION_LOSSES
def test_region_loss_is_float32_under_bfloat16_autocast(
    fast: Callable[..., Tensor], slow: Callable[..., Tensor]
) -> None:
    regions, texts, mask = _regions()
    expected = fast(regions, texts, SCALE, region_mask=mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = fast(regions, texts, SCALE, region_mask=mask)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)
    halves = (regions.bfloat16(), texts.bfloat16())
    got = fast(*halves, SCALE.bfloat16(), region_mask=mask)
    assert got.dtype == torch.float32
    assert torch.equal(got, fast(*(x.float() for x in halves), SCALE, region_mask=mask))


def test_features_of_any_length_give_the_same_loss() -> None:
    regions, texts, mask = _regions()
    scaled = region_text_loss(100 * regions, 0.01 * texts, SCALE, region_mask=mask)
    torch.testing.assert_close(scaled, region_text_loss(regions, texts, SCALE, region_mask=mask))


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"pair up; got \(2, 3, 8\) and \(2, 4, 8\)"):
        region_text_loss(torch.ones(2, 3, 8), torch.ones(2, 4, 8), SCALE)
    with pytest.raises(ValueError, match=r"mask must be \(2, 3\); got \(2,\)"):
        region_text_loss(
            torch.ones(2, 3, 8), torch.ones(2, 3, 8), SCALE, region_mask=torch.ones(2, dtype=torch.bool)
        )


# --- image-text -----------------------------------------------------------------------------------


def test_image_text_equals_open_clip() -> None:
    image, text = (F.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
    expected = open_clip.loss.ClipLoss()(image, text, SCALE)
    torch.testing.assert_close(image_text_loss(3 * image, 2 * text, SCALE), expected)
    torch.testing.assert_close(image_text_loss(image, text, SCALE[0]), expected)  # a scalar scale too


def test_sigmoid_image_text_equals_open_clip() -> None:
    image, text = (F.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
    expected = open_clip.loss.SigLipLoss()(image, text, SCALE, BIAS)
    got = sigmoid_image_text_loss(3 * image, 2 * text, SCALE, logit_bias=BIAS)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_images_without_caption_do_not_count(kind: str) -> None:
    def loss(image: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        if kind == "softmax":
            return image_text_loss(image, text, SCALE, caption_mask=mask)
        return sigmoid_image_text_loss(image, text, SCALE, logit_bias=BIAS, caption_mask=mask)

    image, text = torch.randn(6, 8), torch.randn(6, 8)
    mask = torch.tensor([True, False, True, True, False, False])
    torch.testing.assert_close(loss(image, text, mask), loss(image[mask], text[mask]))
    text[~mask] = float("nan")
    assert torch.isfinite(loss(image, text, mask))
    assert float(loss(image, text, torch.zeros(6, dtype=torch.bool))) == 0


# --- grounding ------------------------------------------------------------------------------------


def _boxes() -> tuple[Tensor, Tensor, Tensor]:
    low = torch.rand(2, 2, 3, 2) * 0.5
    pred, true = torch.cat([low, low + 0.1 + torch.rand(2, 2, 3, 2) * 0.4], dim=-1)
    return pred, true, torch.tensor([[True, True, False], [False, True, False]])


def test_l2_equals_the_loop() -> None:
    """Eq. 3: the squared distance over 4 coordinates, averaged over regions."""
    pred, true, mask = _boxes()
    terms = [
        sum((float(pred[i, m, c]) - float(true[i, m, c])) ** 2 for c in range(4)) / 4
        for i in range(2)
        for m in range(3)
        if mask[i, m]
    ]
    assert float(grounding_loss(pred, true, region_mask=mask)) == pytest.approx(sum(terms) / 3, rel=1e-5)


def test_l1_giou_uses_torchvisions_giou() -> None:
    pred, true, mask = _boxes()
    giou = torchvision.ops.generalized_box_iou(pred[mask], true[mask]).diagonal()
    expected = ((pred - true)[mask].abs().sum(-1) + 0.4 * (1 - giou)).mean()
    torch.testing.assert_close(grounding_loss(pred, true, region_mask=mask, form="l1_giou"), expected)
    assert float(grounding_loss(true, true, form="l1_giou")) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", ["l2", "l1_giou"])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 0.0])
def test_garbage_in_masked_boxes_reaches_nothing(kind: str, garbage: float) -> None:
    pred, true, mask = _boxes()
    clean = _grad(lambda p, t: grounding_loss(p, t, region_mask=mask, form=kind), pred, true)
    pred, true = (x.masked_fill(~mask[..., None], garbage) for x in (pred, true))
    dirty = _grad(lambda p, t: grounding_loss(p, t, region_mask=mask, form=kind), pred, true)
    for one, other in zip(dirty, clean):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["l2", "l1_giou"])
@pytest.mark.parametrize("shape", [(2, 3), (2, 0)])
def test_no_box_gives_zero_with_finite_gradients(kind: str, shape: tuple[int, int]) -> None:
    pred = torch.rand(*shape, 4, requires_grad=True)
    loss = grounding_loss(
        pred, torch.zeros(*shape, 4), region_mask=torch.zeros(shape, dtype=torch.bool), form=kind
    )
    loss.backward()
    assert float(loss.detach()) == 0
    assert pred.grad is not None
    assert pred.grad.eq(0).all()


def test_grounding_refuses_unknown_kinds_and_shapes() -> None:
    with pytest.raises(ValueError, match="unknown grounding loss 'giou'; expected one of l2, l1_giou"):
        grounding_loss(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), form="giou")
    with pytest.raises(ValueError, match=r"\(B, R, 4\); got \(1, 2, 4\) and \(1, 1, 4\)"):
        grounding_loss(torch.zeros(1, 2, 4), torch.zeros(1, 1, 4))


# --- total ----------------------------------------------------------------------------------------


def _features() -> Features:
    regions, texts, mask = _regions()
    low = torch.rand(2, 3, 4, 2) * 0.5
    pred, true = torch.cat([low, low + 0.3], dim=-1)
    return Features(
        image_features=torch.randn(3, 8),
        text_features=torch.randn(3, 8),
        caption_mask=torch.tensor([True, True, False]),
        region_features=regions,
        region_text_features=texts,
        region_mask=mask,
        pred_boxes=pred,
        boxes=true,
        logit_scale=SCALE,
        logit_bias=BIAS,
    )


def test_filtered_share_counts_pairs_of_real_regions() -> None:
    texts = torch.randn(2, 3, 8)
    texts[1, 0] = 2 * texts[0, 1]  # the same phrase twice
    texts[1, 2] = texts[0, 1]  # and a third time, on a padded region
    mask = torch.tensor([[True, True, False], [True, True, False]])
    rows = F.normalize(texts[mask], dim=-1)
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    expected = sum(float(rows[i] @ rows[j]) > 0.9 for i, j in pairs) / len(pairs)
    assert expected == 2 / 12
    assert filtered_share(find_pairs(texts, texts, mask, 0.9)).item() == pytest.approx(expected)
    assert filtered_share(find_pairs(texts, texts, mask & False, 0.9)).item() == 0
    assert filtered_share(find_pairs(texts, texts, mask, None)).item() == 0


@pytest.mark.parametrize("contrastive", ["softmax", "sigmoid"])
def test_total_is_the_papers_sum(contrastive: str) -> None:
    """Eq. 4, lambda = images with regions / images = 2 / 3 here."""
    f = _features()
    config = paper_objectives(contrastive=contrastive, region_weight=2.0, grounding_weight=0.5)
    got = config(f)
    assert set(got) == {"image_text", "region_text", "grounding", "total", "filtered_pairs"}
    slow = slow_softmax if contrastive == "softmax" else slow_sigmoid
    image_text = slow(
        f.image_features[:, None], f.text_features[:, None], f.caption_mask[:, None], SCALE, None
    )
    region_text = slow(f.region_features, f.region_text_features, f.region_mask, SCALE, 0.9)
    grounding = (f.pred_boxes - f.boxes)[f.region_mask].square().mean()
    torch.testing.assert_close(got["image_text"], image_text, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got["region_text"], region_text, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got["grounding"], grounding)
    expected = image_text + 2.0 * (2 / 3) * (region_text + 0.5 * grounding)
    torch.testing.assert_close(got["total"], expected, rtol=1e-4, atol=1e-5)
    assert all(value.shape == () for value in got.values())


def test_a_batch_without_regions_is_plain_clip() -> None:
    f = _features()
    masked = replace(f, region_mask=torch.zeros_like(f.region_mask))
    names = ("region_features", "region_text_features", "region_mask", "pred_boxes", "boxes")
    empty = replace(f, **{name: getattr(f, name)[:, :0] for name in names})
    for features in (masked, empty):
        got = paper_objectives()(features)
        assert float(got["total"]) == float(got["image_text"]) > 0
        assert float(got["region_text"]) == float(got["grounding"]) == 0


def test_config_refuses_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"unknown form 'triplet' in .*; expected one of softmax, sigmoid"):
        paper_objectives(contrastive="triplet")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown form 'giou'"):
        paper_objectives(grounding="giou")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="logit bias"):
        paper_objectives(contrastive="sigmoid")(replace(_features(), logit_bias=None))
