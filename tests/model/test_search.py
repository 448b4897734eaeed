"""The search for a phrase's box: that it finds what a perfect Prompter knows, picture by picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from open_cloc.model import search
from open_cloc.model.cloc import CLOC, ImageState
from open_cloc.model.search import candidate_grid, ground_phrases
from tests.tiny import tiny_model


def overlap_with_hidden_box(
    _model: CLOC, state: ImageState, prompts: Mapping[str, Tensor], _method: str = "prompter"
) -> Tensor:
    """A stand-in for a perfect Prompter: embeds a box as (IoU with its image's hidden box, the rest, 0...).

    The hidden boxes (B, 4) stand where image features would.
    """
    pairs = zip(prompts["box"], state.image_features)
    ious = torch.stack([box_iou(own, hidden[None])[:, 0] for own, hidden in pairs])
    return F.normalize(F.pad(torch.stack([ious, 1 - ious], -1), (0, 30)), dim=-1)


class Hidden(NamedTuple):
    """Images that hide a box each.

    Attributes:
        model: Whose box head is untrained.
        state: 3 images.
        phrases: (3, 2, D) that ask for the hidden box.
        boxes: (3, 4) where they are.
        content: (3, 4) the pictures inside their canvases.
    """

    model: CLOC
    state: ImageState
    phrases: Tensor
    boxes: Tensor
    content: Tensor


@pytest.fixture
def hidden_boxes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hidden]:
    monkeypatch.setattr(search, "embed_regions", overlap_with_hidden_box)
    model = tiny_model()
    hidden = torch.tensor([[0.1, 0.3, 0.45, 0.6], [0.5, 0.3, 0.9, 0.7], [0.35, 0.1, 0.55, 0.9]])
    content = torch.tensor([[0.0, 0, 1, 1], [0, 0.25, 1, 0.75], [0.3, 0, 0.6, 1]])
    with torch.no_grad():
        state = model.encode_image(torch.zeros(3, 3, 64, 64, dtype=torch.uint8), content)
        state = replace(state, image_features=hidden)
        yield Hidden(model, state, torch.eye(32)[:1].expand(3, 2, -1), hidden, content)


def test_ranking_finds_the_box_whose_embedding_is_the_phrase(hidden_boxes: Hidden) -> None:
    model, state, phrases, hidden, content = hidden_boxes
    found = ground_phrases(model, state, phrases, content)
    head = ground_phrases(model, state, phrases, content, 0)
    for i in range(3):
        assert (box_iou(found.boxes[i], hidden[i : i + 1]) > 0.7).all()
        assert (box_iou(head.boxes[i], hidden[i : i + 1]) < 0.6).all()  # so it was the ranking


def test_a_box_head_has_a_vote_where_it_is_near(
    hidden_boxes: Hidden, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, state, phrases, hidden, content = hidden_boxes

    def overlaps(head: Tensor) -> tuple[Tensor, Tensor]:
        monkeypatch.setattr(model, "ground", lambda *_: head[:, None].expand(-1, 2, -1))
        boxes = ground_phrases(model, state, phrases, content).boxes
        return torch.cat([box_iou(boxes[i], hidden[i : i + 1]) for i in range(3)]), boxes

    corners = content[:, [0, 1, 0, 1]] + torch.tensor([0, 0, 0.05, 0.05])
    others = content[:, [2, 3, 2, 3]] - torch.tensor([0.05, 0.05, 0, 0])
    alone, boxes = overlaps(corners)
    torch.testing.assert_close(overlaps(others)[1], boxes)  # what lies elsewhere changes nothing
    right, _ = overlaps(hidden)
    assert (right > alone + 0.03).all()


def test_grounding_knows_nothing_of_its_neighbours(hidden_boxes: Hidden) -> None:
    model, state, phrases, _, content = hidden_boxes
    together = ground_phrases(model, state, phrases, content, 200)
    for i in range(3):
        one = slice(i, i + 1)
        alone = ground_phrases(model, state.select(one), phrases[one, :1], content[one], 200)
        torch.testing.assert_close(alone.boxes, together.boxes[one, :1], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.scores, together.scores[one, :1], atol=1e-5, rtol=0)


def test_of_boxes_that_match_alike_the_larger_wins_and_neighbours_vote() -> None:
    boxes = torch.tensor([[[[0.2, 0.2, 0.4, 0.4], [0.2, 0.2, 0.5, 0.5], [0.7, 0.7, 0.8, 0.8]]]])
    ranks = search._rank(boxes, torch.tensor([[[1.0, 1.0, 1.0]]]))
    assert ranks.argsort(descending=True).tolist() == [[[1, 0, 2]]]
    assert search._rank(boxes, torch.tensor([[[1.5, 1.0, 1.0]]])).argmax() == 0  # only among equals
    (((x1, y1, x2, y2),),) = search._vote(boxes, ranks, 0.1).tolist()
    assert (x1, y1) == pytest.approx((0.2, 0.2))  # the third box is apart: no vote
    assert 0.4 < x2 < 0.5
    assert x2 == pytest.approx(y2)
    assert x2 > 0.45  # nearer to the better one


@pytest.mark.parametrize("limit", [1, 18, 100, 600, 2000])
def test_candidate_grid_is_within_its_limit_and_covers_the_picture(limit: int) -> None:
    grid = candidate_grid(limit)
    assert 0 < len(grid) <= limit
    assert (grid >= 0).all()
    assert (grid <= 1 + 1e-6).all()
    assert (grid[:, 2:] > grid[:, :2]).all()
    if limit >= 100:  # every point of the picture lies in a box
        points = torch.rand(500, 2)[:, None]
        assert ((points >= grid[:, :2]) & (points <= grid[:, 2:])).all(-1).any(1).all()


def test_the_next_best_boxes_are_others(hidden_boxes: Hidden) -> None:
    """Greedily, by hand: the best of the grid that overlaps nothing better by more than a half."""
    model, state, phrases, _, content = hidden_boxes
    found = ground_phrases(model, state, phrases, content, 60, further=4)
    alone = ground_phrases(model, state, phrases, content, 60)
    assert alone.further is None
    assert found.further is not None
    torch.testing.assert_close(found.boxes, alone.boxes)
    assert found.further.shape == (3, 2, 4, 4)
    for i in range(3):
        low, high = content[i, :2].repeat(2), content[i, 2:].repeat(2)
        grid = candidate_grid(60) * (high - low) + low
        regions = overlap_with_hidden_box(model, state.select(slice(i, i + 1)), {"box": grid[None]})[0]
        scores = regions[:, 0]
        units = (scores - scores.median()) / (scores.max() - scores.median())
        areas = (grid[:, 2] - grid[:, 0]) * (grid[:, 3] - grid[:, 1])
        ranks = units + search.AREA_WEIGHT * areas.log()
        kept = [found.boxes[i, 0]]
        for row in ranks.argsort(descending=True).tolist():
            if all(float(box_iou(grid[row, None], box[None])) <= 0.5 for box in kept):
                kept.append(grid[row])
        torch.testing.assert_close(found.further[i, 0], torch.stack(kept[1:5]), atol=1e-5, rtol=0)
    few = ground_phrases(model, state, phrases, content, 1, further=4).further
    assert few is not None
    assert few.isnan().all(-1).any()
