"""Two processes against one on the joined batch: losses, every gradient, and what is sent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from paper_terms import paper_objectives
from torch import Tensor

from open_cloc.objectives.pairs import losses, tiled
from open_cloc.samples import Features
from open_cloc.training.gather import gather
from tests.processes import START_METHOD

WORLD = 2
IMAGES, REGIONS, WIDTH = 6, 4, 16  # of one rank
CONTRASTIVE = ("softmax", "sigmoid")
FORMS = ("dense", "tiled")
# Regions per image, and which images have a caption: rank 0's six, then rank 1's.
MASKS = {
    "ragged": ([4, 0, 1, 3, 2, 4, 1, 1, 0, 4, 0, 0], [1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1]),
    "one rank without any": ([0] * 6 + [2, 4, 0, 1, 3, 3], [1, 0, 1, 1, 0, 1] + [0] * 6),
    "none": ([0] * 12, [0] * 12),
}
LEAVES = (
    "image_features",
    "text_features",
    "region_features",
    "region_text_features",
    "pred_boxes",
    "logit_scale",
    "logit_bias",
)
WIDE = 512  # for counting words


def joined(case: str, dtype: torch.dtype = torch.float64) -> Features:
    """The batch of both ranks. Some texts repeat, within a rank and between them."""
    generator = torch.Generator().manual_seed(0)
    counts, captions = MASKS[case]
    total = WORLD * IMAGES

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    ids = torch.randint(0, 30, (total, REGIONS), generator=generator)
    low = torch.rand(2, total, REGIONS, 2, generator=generator, dtype=torch.float64) / 2
    pred, true = torch.cat([low, low + 0.3], dim=-1).to(dtype)
    return Features(
        image_features=randn(total, WIDTH),
        text_features=randn(total, WIDTH),
        caption_mask=torch.tensor(captions).bool(),
        region_features=randn(total, REGIONS, WIDTH),
        region_text_features=randn(30, WIDTH)[ids],
        region_mask=torch.arange(REGIONS) < torch.tensor(counts)[:, None],
        pred_boxes=pred,
        boxes=true,
        logit_scale=torch.tensor([14.0], dtype=dtype),
        logit_bias=torch.tensor([-4.0], dtype=dtype),
        region_text_ids=ids,
    )


def with_leaves(features: Features) -> Features:
    return replace(features, **{name: getattr(features, name).clone().requires_grad_() for name in LEAVES})


def of_rank(features: Features, rank: int) -> Features:
    """A rank's images and their texts."""
    own = slice(rank * IMAGES, (rank + 1) * IMAGES)
    rows = {
        name: value[own]
        for name, value in vars(features).items()
        if isinstance(value, Tensor) and not name.startswith("logit")
    }
    return replace(features, **rows)


def run(features: Features, kind: str) -> dict[str, Tensor]:
    """Losses by name, and gradients by the name of their leaf."""
    features = with_leaves(features)
    made = paper_objectives(kind, "l1_giou")(gather(features))
    made["total"].backward()
    grads = {f"grad {name}": getattr(features, name).grad for name in LEAVES}
    return {name: value.detach() for name, value in made.items()} | {
        name: value for name, value in grads.items() if value is not None
    }


def set_form(form: str) -> None:
    losses.most_dense_pairs = lambda device: 10**9 if form == "dense" else 0
    tiled.TILE["cpu"] = 5


def count_words() -> dict[str, float]:
    """Words that each collective makes a rank send, as they go."""
    words = {"gather": 0.0, "scatter": 0.0, "reduce": 0.0}

    def counted(name: str, kind: str, size: Any) -> None:
        original = getattr(dist, name)

        def wrapped(*args: Any) -> Any:
            words[kind] += size(*args)
            return original(*args)

        setattr(dist, name, wrapped)

    counted("all_gather_into_tensor", "gather", lambda out, x: out.numel() * out.element_size() / 4)
    counted("reduce_scatter_tensor", "scatter", lambda out, x: x.numel() * x.element_size() / 4)
    counted("all_reduce", "reduce", lambda x, operation: 2 * x.numel() * x.element_size() / 4)
    return words


def words_of_a_step(rank: int) -> dict[str, float]:
    """With features of 512 numbers in float32 and every pair real."""
    features = of_rank(joined("ragged", torch.float32), rank)
    wide = {
        name: torch.randn(*getattr(features, name).shape[:-1], WIDE)
        for name in LEAVES
        if name.endswith("features")
    }
    masks = {name: torch.ones_like(getattr(features, name)) for name in ("caption_mask", "region_mask")}
    words = count_words()
    run(replace(features, **wide, **masks), "softmax")
    return words


def work(rank: int, folder: str) -> None:
    """One rank: every case, then the words of one step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=WORLD)
    found: dict[Any, Any] = {}
    for case in MASKS:
        for form in FORMS:
            set_form(form)
            for kind in CONTRASTIVE:
                for dtype in (torch.float64, torch.bfloat16):
                    found[case, form, kind, dtype] = run(of_rank(joined(case, dtype), rank), kind)
            without_ids = replace(joined(case), region_text_ids=None)
            found[case, form, "no ids"] = run(of_rank(without_ids, rank), "softmax")
    found["words"] = words_of_a_step(rank)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.start_processes(work, (str(folder),), nprocs=WORLD, start_method=START_METHOD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def check(found: list[dict[str, Tensor]], expected: dict[str, Tensor], rtol: float, atol: float) -> None:
    """Values are the whole batch's on each rank; gradients are such that their average over ranks is."""
    for name, value in expected.items():
        if not name.startswith("grad "):
            for one in found:
                torch.testing.assert_close(one[name], value, rtol=rtol, atol=atol, msg=name)
            continue
        grads = [one[name] for one in found]
        mean = sum(grads) / WORLD if "logit" in name else torch.cat(grads) / WORLD
        torch.testing.assert_close(mean, value, rtol=rtol, atol=atol, msg=name)


def by_text(features: Features, gradient: Tensor) -> Tensor:
    """(texts, D) sums over the copies of a text."""
    return gradient.new_zeros(30, WIDTH).index_add_(
        0, features.region_text_ids.flatten(), gradient.flatten(0, 1)
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [*CONTRASTIVE, "no ids"])
@pytest.mark.parametrize("case", MASKS)
def test_two_ranks_equal_one_process(
    ranks: list[dict[Any, Any]], case: str, kind: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "most_dense_pairs", lambda device: 10**9)  # of the joined batch
    features = joined(case)
    expected = run(features, "softmax" if kind == "no ids" else kind)
    key = (case, form, kind) if kind == "no ids" else (case, form, kind, torch.float64)
    found = [dict(rank[key]) for rank in ranks]
    if case != "none":
        assert expected["filtered_pairs"] > 0
        assert all(value.abs().sum() > 0 for value in expected.values())
    if form == "tiled" and kind != "no ids":  # one copy of each text has the gradient of all
        name = "grad region_text_features"
        joint = torch.cat([one.pop(name) for one in found]) / WORLD
        torch.testing.assert_close(
            by_text(features, joint), by_text(features, expected.pop(name)), rtol=1e-9, atol=1e-12
        )
    boxes = {name: expected.pop(name) for name in ("grounding", "total", "grad pred_boxes")}
    check(found, boxes, rtol=1e-5, atol=1e-7)  # boxes are compared in float32
    share = {"filtered_pairs": expected.pop("filtered_pairs")}
    check(found, share, rtol=1e-6, atol=0)  # a share in float32
    check(found, expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_in_bfloat16_are_summed_in_float32(
    ranks: list[dict[Any, Any]], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "most_dense_pairs", lambda device: 10**9)
    features = joined("ragged", torch.bfloat16)
    expected = run(features, "softmax")
    found = [dict(rank["ragged", form, "softmax", torch.bfloat16]) for rank in ranks]
    assert found[0]["grad text_features"].dtype == torch.bfloat16
    assert found[0]["region_text"].dtype == torch.float32
    names = ["image_text", "region_text", "grad text_features", "grad image_features"]
    # A bfloat16 keeps 8 bits: one rounding each.
    check(found, {name: expected[name] for name in names[:2]}, rtol=1e-6, atol=1e-7)
    check(found, {name: expected[name] for name in names[2:]}, rtol=2**-7, atol=1e-7)


def test_words_sent(ranks: list[dict[Any, Any]]) -> None:
    """About 2 n d for n pairs of images and regions in the world: texts there, their gradients back."""
    pairs = WORLD * IMAGES * (1 + REGIONS)
    for rank in ranks:
        words = rank["words"]
        assert words["scatter"] == pairs * WIDE
        assert pairs * WIDE < words["gather"] <= 1.02 * pairs * WIDE
        assert words["reduce"] > 0
        assert sum(words.values()) <= 2.05 * pairs * WIDE


def test_gather_of_one_process_is_its_argument(tmp_path: Path) -> None:
    features = joined("ragged")
    assert gather(features) is features
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert gather(features) is features
    finally:
        dist.destroy_process_group()
