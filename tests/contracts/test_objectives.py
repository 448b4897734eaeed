"""Every objective: finite without captions and regions, and two ranks give what one process gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from open_cloc.objectives import OBJECTIVES, Objectives, Term
from open_cloc.samples import Features
from open_cloc.training.gather import gather
from tests.processes import START_METHOD

WORLD, IMAGES, REGIONS, PATCHES, TOKENS, WIDTH = 2, 4, 3, 6, 5, 8
TERMS = [
    *map(Term, OBJECTIVES),
    *(Term(kind, options={"form": "sigmoid"}) for kind in ("image_text", "region_text")),
]
TERMS.append(Term("grounding", options={"form": "l1_giou"}))
TERMS.append(Term("grounding", options={"target": "nearest"}))
SCALARS = ("logit_scale", "logit_bias")
OF_PICTURES = ("distill",)  # what needs neither captions nor regions
CASES = {
    "ragged": ([3, 0, 1, 2, 0, 0, 3, 1], [1, 1, 0, 1, 1, 0, 1, 1]),
    "one rank without any": ([0] * 4 + [2, 3, 0, 1], [0] * 4 + [1, 0, 1, 1]),
    "none": ([0] * 8, [0] * 8),
}


def everything(case: str) -> Features:
    """All fields of the batch of two ranks, in float64."""
    generator = torch.Generator().manual_seed(1)
    total = WORLD * IMAGES
    regions, captions = (torch.tensor(counts) for counts in CASES[case])

    def randn(*shape: int) -> Tensor:
        return torch.randn(total, *shape, generator=generator, dtype=torch.float64)

    low = torch.rand(2, total, REGIONS, 2, generator=generator, dtype=torch.float64) / 2
    pred, true = torch.cat([low, low + 0.3], dim=-1)
    places = torch.arange(TOKENS)
    of_crops = randn(5, WIDTH), randn(5, WIDTH)
    return Features(
        views={"crops": Features(place_features=of_crops[0])},
        teacher=Features(views={"crops": Features(image_features=of_crops[1])}),
        image_features=randn(WIDTH),
        text_features=randn(WIDTH),
        caption_mask=captions.bool(),
        region_features=randn(REGIONS, WIDTH),
        region_text_features=randn(REGIONS, WIDTH),
        region_mask=torch.arange(REGIONS) < regions[:, None],
        region_text_ids=torch.arange(total * REGIONS).view(total, REGIONS),
        pred_boxes=pred,
        boxes=true,
        logit_scale=torch.tensor([9.0], dtype=torch.float64),
        logit_bias=torch.tensor([-3.0], dtype=torch.float64),
        image_tokens=randn(PATCHES, WIDTH),
        image_token_mask=torch.arange(PATCHES).expand(total, -1) < 5,
        text_tokens=randn(TOKENS, WIDTH),
        text_token_mask=(places < 1 + torch.arange(total)[:, None] % TOKENS) & captions.bool()[:, None],
    )


def run(features: Features, term: Term) -> dict[str, Tensor]:
    """The values of one objective, and the gradients of what it needs."""
    objectives = Objectives((term,))
    leaves = {
        path: tensor.clone().requires_grad_()
        for path, tensor in features.tensors().items()
        if path in objectives.needs and tensor.is_floating_point()
    }
    known = features.put(leaves)
    unneeded: dict[str, Any] = {}
    for path in features.tensors():
        name = path.partition(".")[0]
        if path not in objectives.needs and not any(need.startswith(f"{name}.") for need in objectives.needs):
            unneeded[name] = {} if name == "views" else None
    values = objectives(gather(replace(known, **unneeded), objectives.gathered))  # type: ignore[arg-type]
    values["total"].backward()
    gradients = {f"grad {path}": leaf.grad for path, leaf in leaves.items() if leaf.grad is not None}
    return {name: value.detach() for name, value in values.items()} | gradients  # type: ignore[dict-item]


def of_rank(features: Features, rank: int) -> Features:
    own = slice(rank * IMAGES, (rank + 1) * IMAGES)
    return features.put({p: t[own] for p, t in features.tensors().items() if p not in SCALARS})


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=WORLD)
    found = {
        (case, str(term)): run(of_rank(everything(case), rank), term) for case in CASES for term in TERMS
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.start_processes(work, (str(folder),), nprocs=WORLD, start_method=START_METHOD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("term", TERMS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process(ranks: list[dict[Any, Any]], case: str, term: Term) -> None:
    expected, found = run(everything(case), term), [rank[case, str(term)] for rank in ranks]
    # Boxes are float32 whatever they come in, so their sums round; everything else is float64 here.
    near = {"rtol": 1e-6, "atol": 1e-7} if term.kind == "grounding" else {"rtol": 1e-9, "atol": 1e-12}
    for name, value in expected.items():
        if not name.startswith("grad "):
            assert all(torch.allclose(one[name], value, **near) for one in found), name
            continue
        gradients = [one[name] for one in found]
        mean = sum(gradients) if name.removeprefix("grad ") in SCALARS else torch.cat(gradients)
        torch.testing.assert_close(mean / WORLD, value, **near, msg=name)


@pytest.mark.parametrize("term", TERMS, ids=str)
def test_finite_and_differentiable_without_captions_and_regions(term: Term) -> None:
    found = run(everything("none"), term)
    assert all(value.isfinite().all() for value in found.values())
    if term.kind in OF_PICTURES:
        assert found["total"] > 0
        return
    assert found["total"] == 0
    assert all(not value.any() for name, value in found.items() if name.startswith("grad "))


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_an_objective_says_what_it_needs(kind: str) -> None:
    """What it has not named is not there: `run` takes it away. And what it gathers it needs."""
    objectives = Objectives((Term(kind),))
    assert objectives.gathered <= objectives.needs
    assert run(everything("ragged"), Term(kind))["total"] > 0
    with pytest.raises(ValueError, match="unknown option 'sharpness'"):
        Objectives((Term(kind, options={"sharpness": "1"}),))


@pytest.mark.parametrize("term", TERMS, ids=str)
def test_a_term_is_read_back_from_its_text(term: Term) -> None:
    assert Term.parse(str(replace(term, weight=0.5, name="other")), OBJECTIVES).weight == 0.5
    assert Term.parse(str(term), OBJECTIVES) == term


def test_one_process_gathers_nothing() -> None:
    features = everything("ragged")
    assert gather(features) is features
