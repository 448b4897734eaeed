"""Gradient accumulation: a batch in parts has the whole batch's gradients, every one of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from paper_terms import paper_objectives
from tiny_recipes import SCENES
from torch import Tensor

from open_cloc.data.collate import LoaderConfig
from open_cloc.data.loader import RegionLoader
from open_cloc.data.readers import open_reader
from open_cloc.model import sharded
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.prompter import PrompterConfig
from open_cloc.objectives import Objectives
from open_cloc.samples import Features, RegionBatch
from open_cloc.training import accumulate
from open_cloc.training.accumulate import Forward, split_batch
from open_cloc.training.loop import train
from open_cloc.training.recipe import DataConfig, OptimConfig, Recipe, RunConfig

PLACE = (5, 3, 0)  # seed, step, rank


@pytest.fixture
def tiny_cfg(tiny_model_cfg: dict[str, Any]) -> dict[str, Any]:
    tiny_model_cfg["vision_cfg"] |= {"image_size": 32, "patch_size": 8}
    return tiny_model_cfg


def make(
    cfg: dict[str, Any], prompter: PrompterConfig, *, batch_size: int = 8, num_regions: int = 3, **model: Any
) -> tuple[CLOC, RegionBatch]:
    """A model with its starting weights, and a batch of scenes of which the second has no caption."""
    torch.manual_seed(0)
    made = build_model(ModelConfig(towers=cfg, prompter=prompter, **model)).train()
    config = LoaderConfig(num_regions=num_regions, workers=0)
    batch = next(
        iter(RegionLoader(open_reader(SCENES), made.preprocess, made.tokenize, config, batch_size=batch_size))
    )
    captions = batch.caption_index.clone()
    captions[1] = -1
    return made, replace(batch, caption_index=captions)


def gradients(
    model: CLOC, batch: RegionBatch, parts: int, loss: Objectives, *, bf16: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """The total loss and every parameter's gradient."""
    model.zero_grad()
    forward = Forward(model, split_batch(batch, parts), loss.needs, None, bf16, PLACE)
    features = forward.features()
    total = loss(features)["total"]
    total.backward()
    forward.backward(features)
    made = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return total.detach(), made


def assert_same_gradients(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    """Each to a share of the whole gradient's norm, and the logit scale's to a share of its own."""
    assert one.keys() == other.keys()
    norm = torch.stack([gradient.norm() for gradient in one.values()]).norm()
    for name, gradient in one.items():
        assert (gradient - other[name]).norm() <= tolerance * norm, name
    for name in ("clip.logit_scale", "clip.logit_bias"):
        if name in one:
            torch.testing.assert_close(one[name], other[name], rtol=10 * tolerance, atol=0)


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize(
    ("prompter", "loss"),
    [
        (PrompterConfig(readout="prompt", box_prior=True, patch_positions=True), paper_objectives()),
        (PrompterConfig(readout="mean"), paper_objectives(grounding="l1_giou", conflict_threshold=2.0)),
        (PrompterConfig(regions="roialign", readout="prompt"), paper_objectives()),
    ],
)
def test_gradients_are_those_of_one_big_batch(
    tiny_cfg: dict[str, Any], prompter: PrompterConfig, loss: Objectives, parts: int
) -> None:
    model, batch = make(tiny_cfg, prompter)
    whole, expected = gradients(model, batch, 1, loss)
    total, got = gradients(model, batch, parts, loss)
    assert total.item() == pytest.approx(whole.item(), rel=1e-6)
    assert expected["clip.logit_scale"].abs() > 1e-3
    assert_same_gradients(expected, got, 1e-6)


def test_sigmoid_losses_and_their_bias(tiny_cfg: dict[str, Any]) -> None:
    model, batch = make(tiny_cfg, PrompterConfig(readout="prompt"), sigmoid=True)
    loss = paper_objectives(contrastive="sigmoid")
    expected, got = (gradients(model, batch, parts, loss)[1] for parts in (1, 4))
    assert "clip.logit_bias" in expected
    assert_same_gradients(expected, got, 1e-6)


def test_without_regions(tiny_cfg: dict[str, Any]) -> None:
    model, batch = make(tiny_cfg, PrompterConfig(), num_regions=0)
    expected, got = (gradients(model, batch, parts, paper_objectives())[1] for parts in (1, 4))
    assert not any(name.startswith("prompter.") for name in expected)
    assert_same_gradients(expected, got, 1e-6)


def test_bfloat16(tiny_cfg: dict[str, Any]) -> None:
    """The casts of a pass without a graph must not be taken for those of the pass with one."""
    model, batch = make(tiny_cfg, PrompterConfig(readout="prompt", box_prior=True))
    expected, got = (gradients(model, batch, parts, paper_objectives(), bf16=True)[1] for parts in (1, 4))
    assert_same_gradients(expected, got, 0.05)


def dropping(cfg: dict[str, Any]) -> tuple[CLOC, RegionBatch]:
    return make(cfg, PrompterConfig(readout="prompt", pooled_residual=True, dropout=0.3, layer_drop=0.5))


def joined_with_graph(model: CLOC, batch: RegionBatch, parts: int) -> dict[str, Tensor]:
    """The slow reference: all parts' graphs kept, each part with its own random numbers."""
    model.zero_grad()
    made = []
    for number, part in enumerate(split_batch(batch, parts)):
        accumulate.seed_step(*PLACE, number)
        made.append(model(part))
    names = [
        n for n, value in vars(made[0]).items() if isinstance(value, Tensor) and not n.startswith("logit")
    ]
    joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in made]) for name in names}
    features: Features = replace(made[0], **joined)
    paper_objectives()(features)["total"].backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_dropout_is_repeated_in_the_second_pass(
    tiny_cfg: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = dropping(tiny_cfg)
    model.prompter.project.weight.data.normal_()  # its starting zeros would hide the layer
    expected = joined_with_graph(model, batch, 4)
    assert_same_gradients(expected, gradients(model, batch, 4, paper_objectives())[1], 1e-6)
    monkeypatch.setattr(accumulate, "seed_step", lambda *place: None)
    with pytest.raises(AssertionError):
        assert_same_gradients(expected, gradients(model, batch, 4, paper_objectives())[1], 1e-2)


def test_parts_hold_their_own_texts(tiny_cfg: dict[str, Any]) -> None:
    _, batch = make(tiny_cfg, PrompterConfig())
    parts = split_batch(batch, 4)
    assert sum(len(part.texts) for part in parts) > len(batch.texts) > max(len(part.texts) for part in parts)
    for number, part in enumerate(parts):
        rows = slice(2 * number, 2 * number + 2)
        for name in ("images", "content_boxes", "boxes", "region_mask", "region_text_ids"):
            assert torch.equal(getattr(part, name), getattr(batch, name)[rows]), name
        assert part.keys == batch.keys[rows]
        assert (part.caption_index < 0).tolist() == (batch.caption_index[rows] < 0).tolist()
        captions = [index[index >= 0] for index in (part.caption_index, batch.caption_index[rows])]
        assert torch.equal(part.texts[captions[0]], batch.texts[captions[1]])
        mask = part.region_mask
        regions = batch.texts[batch.region_text_index[rows][mask]]
        assert torch.equal(part.texts[part.region_text_index[mask]], regions)
        assert list(part.text_lengths) == sorted(part.text_lengths)
        assert len(part.text_lengths) == len(part.texts)
        used = {tuple(text.tolist()) for text in [*regions, *batch.texts[captions[1]]]}
        assert len(part.texts) <= len(used) + 1  # what masked places point at
    assert split_batch(batch, 1)[0] is batch


def test_memory_is_one_parts(tiny_cfg: dict[str, Any]) -> None:
    model, batch = make(tiny_cfg, PrompterConfig(readout="prompt"))
    parameters = {p.data_ptr() for p in model.parameters()}
    alive = peak = 0

    class Kept:
        """Counts a saved tensor's bytes while autograd holds it."""

        def __init__(self, tensor: Tensor) -> None:
            nonlocal alive, peak
            self.tensor = tensor
            self.size = 0 if tensor.data_ptr() in parameters else tensor.nbytes
            alive += self.size
            peak = max(peak, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= self.size

    peaks = []
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        for parts in (1, 4):
            peak = 0
            gradients(model, batch, parts, paper_objectives())
            peaks.append(peak)
    assert peaks[1] < 0.4 * peaks[0]


def recipe(cfg: dict[str, Any], output: Path, **run: Any) -> Recipe:
    return Recipe(
        name="tiny",
        model=ModelConfig(towers=cfg, prompter=PrompterConfig(readout="prompt", box_prior=True)),
        data=DataConfig(train=(SCENES,), loader=LoaderConfig(num_regions=3, workers=0)),
        optim=OptimConfig(lr=1e-3, warmup=2),
        run=RunConfig(
            samples=40,
            global_batch_size=8,
            output=str(output),
            device="cpu",
            log_steps=1,
            report_to=(),
            progress=False,
            **run,
        ),
    )


def test_five_steps_are_those_of_big_batches(tiny_cfg: dict[str, Any], tmp_path: Path) -> None:
    for parts in (1, 4):
        train(recipe(tiny_cfg, tmp_path / str(parts), accumulate=parts, save_steps=5))
    whole, in_parts = (
        sharded.read_weights(tmp_path / str(parts) / "checkpoints/step_00000005") for parts in (1, 4)
    )
    for name, weight in whole.items():
        torch.testing.assert_close(weight, in_parts[name], rtol=1e-4, atol=1e-5)


def test_a_batch_norm_that_learns_is_refused(
    tiny_cfg: dict[str, Any], text_tower: Path, tmp_path: Path
) -> None:
    spec = f"timm:cloc_resnet10_s8,text={text_tower},embed_dim=24,context_length=16"
    model = ModelConfig(spec, image_size=32)
    resnet = replace(recipe(tiny_cfg, tmp_path / "run", accumulate=2), model=model)
    with pytest.raises(
        ValueError, match=r"run.accumulate must be 1 with a batch norm that learns, such as clip"
    ):
        train(resnet)
    assert not (tmp_path / "run").exists()
    train(replace(resnet, optim=replace(resnet.optim, lock_image=True)))  # its statistics are fixed
