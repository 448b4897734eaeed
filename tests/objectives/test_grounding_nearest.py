"""A phrase at several boxes of one picture: the nearest of them is the target, against a plain loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from open_cloc.errors import UserError
from open_cloc.objectives import Objectives, Term, grounding_loss
from open_cloc.objectives.grounding import Grounding
from open_cloc.samples import Features, World

MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
# Text 7 stands at three boxes of the first picture and in others too; a masked place has it as well.
IDS = torch.tensor([[7, 7, 3, 7, 7], [7, 3, 7, 0, 0], [7, 7, 7, 7, 7], [5, 5, 6, 6, 7]])


def boxes(seed: int) -> Tensor:
    """(4, 5, 4) normalised `xyxy`."""
    corners = torch.rand(4, 5, 2, 2, generator=torch.Generator().manual_seed(seed))
    return corners.sort(dim=2).values.flatten(2)


def slow_targets(pred: Tensor, true: Tensor) -> Tensor:
    """The box of the same text in the same picture with the least L1 distance, each by itself."""
    targets = true.clone()
    for i in range(len(pred)):
        for m in range(pred.shape[1]):
            same = [q for q in range(pred.shape[1]) if MASK[i, q] and IDS[i, q] == IDS[i, m]]
            if MASK[i, m]:
                targets[i, m] = min(
                    (true[i, q] for q in same), key=lambda box: (pred[i, m] - box).abs().sum()
                )
    return targets


@pytest.mark.parametrize("form", ["l2", "l1_giou"])
@pytest.mark.parametrize("seed", range(5))
def test_value_and_gradient_equal_the_loop(form: str, seed: int) -> None:
    pred, true = boxes(seed).requires_grad_(), boxes(100 + seed)
    fast = grounding_loss(pred, true, region_mask=MASK, form=form, text_ids=IDS)
    (gradient,) = torch.autograd.grad(fast, pred)
    targets = slow_targets(pred.detach(), true)
    slow = grounding_loss(pred, targets, region_mask=MASK, form=form)
    (expected,) = torch.autograd.grad(slow, pred)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(gradient, expected)
    assert not torch.equal(targets, true)
    assert fast < grounding_loss(pred, true, region_mask=MASK, form=form)


def test_texts_that_do_not_repeat_have_their_own_box() -> None:
    pred, true = boxes(1), boxes(2)
    ids = torch.arange(20).view(4, 5)
    plain = grounding_loss(pred, true, region_mask=MASK)
    assert torch.equal(grounding_loss(pred, true, region_mask=MASK, text_ids=ids), plain)


def test_any_of_a_texts_boxes_is_a_perfect_answer() -> None:
    """The plain loss wants the mean of both, which is neither."""
    true = torch.tensor([[[0.0, 0.0, 0.2, 0.2], [0.8, 0.8, 1.0, 1.0]]])
    ids = torch.tensor([[4, 4]])
    middle = true.mean(1, keepdim=True).expand_as(true)
    for answer in true[0]:
        pred = answer.expand_as(true)
        assert grounding_loss(pred, true, text_ids=ids) == 0
        assert grounding_loss(middle, true) < grounding_loss(pred, true)


def test_padding_that_is_no_number_reaches_nothing() -> None:
    pred, true = boxes(1), boxes(2)
    expected = grounding_loss(pred, true, region_mask=MASK, text_ids=IDS)
    for value in (float("nan"), float("inf")):
        broken = pred.masked_fill(~MASK[..., None], value).requires_grad_()
        found = grounding_loss(broken, true, region_mask=MASK, text_ids=IDS)
        (gradient,) = torch.autograd.grad(found, broken)
        torch.testing.assert_close(found, expected)
        assert gradient.isfinite().all()


def features(first: int = 0, count: int = 4) -> Features:
    rows = slice(first, first + count)
    return Features(
        pred_boxes=boxes(1)[rows],
        boxes=boxes(2)[rows],
        region_mask=MASK,
        region_text_ids=IDS,
        world=World(first, count),
        gathered=frozenset({"region_mask", "region_text_ids"}),
    )


def test_each_rank_looks_at_its_own_pictures_ids() -> None:
    """Another objective may have gathered the ids of the world."""
    whole = Grounding(target="nearest")(features())
    parts = [Grounding(target="nearest")(features(first, 2)) for first in (0, 2)]
    torch.testing.assert_close(sum(parts), whole)
    own = replace(features(2, 2), region_text_ids=IDS[2:], gathered=frozenset({"region_mask"}))
    torch.testing.assert_close(Grounding(target="nearest")(own), parts[1])


def test_the_option_is_one_of_the_objective() -> None:
    plain, nearest = (
        Objectives((Term.parse(f"grounding{o}", {"grounding": ""}),)) for o in ("", ",target=nearest")
    )
    assert "region_text_ids" in nearest.needs
    assert "region_text_ids" not in plain.needs
    assert nearest(features())["total"] < plain(features())["total"]
    with pytest.raises(UserError, match="unknown target 'closest'"):
        Objectives((Term("grounding", options={"target": "closest"}),))
    with pytest.raises(UserError, match="unknown target of grounding 'closest'"):
        Grounding(target="closest")  # type: ignore[arg-type]
