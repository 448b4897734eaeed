"""TIPSv2 and OWLv2 against transformers' own calls, and plain towers in a CLOC's place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.ops import box_iou, roi_align

from open_cloc.errors import UserError
from open_cloc.evaluation.batches import EvaluationBatch, evaluation_batches
from open_cloc.evaluation.methods import open_method
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.model.cloc import CLOC
from open_cloc.samples import Region
from tests.evaluation.tiny_data import Samples, with_maps


@torch.inference_mode()
def test_tips_regions_are_pooled_from_its_own_patches(tipsv2: Path, samples: Samples) -> None:
    from transformers import Tipsv2ImageProcessor, Tipsv2Model

    model, processor = (
        Tipsv2Model.from_pretrained(tipsv2).eval(),
        Tipsv2ImageProcessor.from_pretrained(tipsv2),
    )
    method = open_method(f"tipsv2:{tipsv2}", device="cpu")
    for sample in samples[1:4]:
        (batch,) = evaluation_batches(Samples([sample]), method.canvas)
        found = method.embed_regions(batch, batch.boxes)
        inputs = processor(images=Image.fromarray(sample.pixels()), return_tensors="pt")
        patches = model.get_image_features(**inputs).last_hidden_state[:, 2:]  # behind both class tokens
        grid = patches.transpose(1, 2).reshape(1, 32, 4, 4)
        boxes = torch.tensor([region.box for region in sample.regions]) * 4
        pooled = roi_align(grid, [boxes.float()], 7, aligned=True).mean((2, 3))
        torch.testing.assert_close(found, F.normalize(pooled, dim=-1), atol=1e-5, rtol=0)
    assert method.logit_scale == pytest.approx(1 / float(model.temperature))  # type: ignore[attr-defined]


@torch.inference_mode()
def test_tips_blocks_of_values_are_its_authors(tipsv2: Path, samples: Samples) -> None:
    """As their script has it: values through the block's own projection, then the rest of the block."""
    from transformers import Tipsv2Model

    method: Any = open_method(f"tipsv2:{tipsv2},tokens=value_block", device="cpu")
    (batch,) = evaluation_batches(Samples(samples[:2]), method.canvas)
    found = method.embed_tokens(batch)
    vision = Tipsv2Model.from_pretrained(tipsv2).eval().vision_model
    x = vision.embeddings(batch.images.float() / 255)
    x = vision.encoder.layer[0](x)
    last = vision.encoder.layer[1]
    values = last.attention.v_proj(last.norm1(x))
    x = x + last.layer_scale1(last.attention.o_proj(values))
    x = vision.layernorm(x + last.layer_scale2(last.mlp(last.norm2(x))))
    torch.testing.assert_close(found, F.normalize(x[:, 2:], dim=-1).unflatten(1, (4, 4)), atol=1e-5, rtol=0)
    result = evaluate(
        None, with_maps(samples), "segmentation", EvaluationConfig(protocol="tips"), method=f"tipsv2:{tipsv2}"
    )
    assert 0 <= result["metrics"]["miou"] <= 1


@torch.inference_mode()
def test_tips_sees_a_whole_picture(tipsv2: Path, samples: Samples) -> None:
    """Of any number of whole patches, with its positions resampled by transformers."""
    from transformers import Tipsv2Model

    method: Any = open_method(f"tipsv2:{tipsv2},tokens=value_block", device="cpu")
    (height, width), vision = (
        method.canvas.image_size,
        Tipsv2Model.from_pretrained(tipsv2).eval().vision_model,
    )
    patch = vision.config.patch_size
    assert method.patch_hw == (patch, patch)
    drawn = torch.randint(0, 256, (1, 3, height, width + 3 * patch), dtype=torch.uint8)
    (batch,) = evaluation_batches(Samples(samples[:1]), method.canvas)
    found = method.embed_tokens(EvaluationBatch(batch.samples, drawn, batch.content_boxes, batch.geometries))
    x = vision.encoder.layer[0](vision.embeddings(drawn.float() / 255))
    last = vision.encoder.layer[1]
    x = x + last.layer_scale1(last.attention.o_proj(last.attention.v_proj(last.norm1(x))))
    x = vision.layernorm(x + last.layer_scale2(last.mlp(last.norm2(x))))[:, 2:]
    grid = (height // patch, width // patch + 3)
    torch.testing.assert_close(found, F.normalize(x, dim=-1).unflatten(1, grid), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["tipsv2", "roialign"])
def test_segmentation_of_whole_pictures(method: str, tipsv2: Path, model: CLOC, samples: Samples) -> None:
    config = EvaluationConfig(protocol="tips-whole")
    spec, weights = (f"tipsv2:{tipsv2}", None) if method == "tipsv2" else (method, model)
    result = evaluate(weights, with_maps(samples), "segmentation", config, method=spec)
    assert result["protocol"]["rules"]["dense"]["whole"] is True
    assert 0 <= result["metrics"]["miou"] <= 1


@torch.inference_mode()
def test_owl_regions_are_what_its_own_heads_say_of_the_nearest_box(owlv2: Path, samples: Samples) -> None:
    from transformers import Owlv2ForObjectDetection, Owlv2ImageProcessor

    model, processor = (
        Owlv2ForObjectDetection.from_pretrained(owlv2).eval(),
        Owlv2ImageProcessor.from_pretrained(owlv2),
    )
    method, met = open_method(f"owlv2:{owlv2}", device="cpu"), 0
    for sample in samples[1:5]:
        (batch,) = evaluation_batches(Samples([sample]), method.canvas)
        height, width = sample.pixels().shape[:2]
        found = method.embed_regions(batch, batch.boxes)
        inputs = processor(images=Image.fromarray(sample.pixels()), return_tensors="pt")
        texts = {"input_ids": torch.zeros(1, 8, dtype=torch.int64), "attention_mask": torch.ones(1, 8).long()}
        output = model(**inputs, **texts)
        cx, cy, w, h = output.pred_boxes[0].T
        boxes = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1) * max(height, width)
        for row, region in enumerate(sample.regions):
            asked = torch.tensor([region.box]) * torch.tensor([[width, height, width, height]])
            overlaps = box_iou(asked, boxes)[0]
            centre, centres = (asked[0, :2] + asked[0, 2:]) / 2, (boxes[:, :2] + boxes[:, 2:]) / 2
            nearest = (centres / max(height, width) - centre / max(height, width)).norm(dim=1).argmin()
            met += bool(overlaps.max() > 0)
            best = overlaps.argmax() if overlaps.max() > 0 else nearest
            expected = F.normalize(output.class_embeds[0, best], dim=0)
            torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=0)
    assert met > 3


@torch.inference_mode()
def test_a_box_that_owl_sees_nothing_in_has_the_nearest_patch(owlv2: Path, samples: Samples) -> None:
    method = open_method(f"owlv2:{owlv2}", device="cpu")
    tiny = Region((0.999, 0.999, 0.9999, 0.9999), "x")
    data = Samples([samples[1]])
    (batch,) = evaluation_batches(data, method.canvas)
    rows = method.embed_regions(batch, [np.array([tiny.box])])
    assert rows.shape == (1, 32)
    assert rows.isfinite().all()


@pytest.mark.parametrize("name", ["tipsv2", "owlv2"])
def test_another_model_is_named(name: str, hf_clip: Path, model: CLOC) -> None:
    with pytest.raises(UserError, match=f"holds a model of type 'clip'; expected {name}"):
        open_method(f"{name}:{hf_clip}")
    with pytest.raises(UserError, match="brings its own model"):
        open_method(f"{name}:{hf_clip}", model)
    with pytest.raises(UserError, match=f"needs the folder of a model: {name}:FOLDER"):
        open_method(name)


@torch.inference_mode()
def test_plain_towers_are_measured_without_a_prompter(
    tmp_path: Path, tiny_model_cfg: dict, samples: Samples
) -> None:
    """Any CLIP that training could start from: here open_clip's own model and weights."""
    import json

    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(tiny_model_cfg))
    torch.manual_seed(0)
    clip = open_clip.model.CLIP(**tiny_model_cfg).eval()
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    spec = f"open_clip:{config},pretrained={tmp_path / 'clip.pt'}"
    for method in ("roialign,tokens=value", "crop", "blur", "whole"):
        result = evaluate(spec, samples, "zeroshot_region_classification", method=method, device="cpu")
        assert result["pretrained"] == spec
    towers = open_method("whole", spec, device="cpu")
    (batch,) = evaluation_batches(Samples(samples[:1]), towers.canvas)
    pixels = (batch.images.float() / 255 - torch.tensor(towers.canvas.mean).view(3, 1, 1)) / torch.tensor(
        towers.canvas.std
    ).view(3, 1, 1)
    expected = clip.encode_image(pixels, normalize=True)
    torch.testing.assert_close(towers.embed_images(batch), expected, atol=1e-5, rtol=0)
    retrieved = evaluate(spec, samples, "zeroshot_retrieval", device="cpu")
    assert retrieved["protocol"]["method"] == "whole"
    with pytest.raises(UserError, match="method prompter needs a trained Prompter, which open_clip:"):
        evaluate(spec, samples, "zeroshot_region_classification")
