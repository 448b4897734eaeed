"""A foreign CLIP against transformers itself, and what else may lie in a folder."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_data import NAMES, Samples
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, SiglipConfig, SiglipModel

from open_cloc.errors import MissingFileError, UserError
from open_cloc.evaluation.batches import evaluation_batches
from open_cloc.evaluation.collect import collect_regions
from open_cloc.evaluation.methods import open_method
from open_cloc.evaluation.methods.hf_clip import HfClipMethod
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.model.cloc import CLOC
from open_cloc.samples import RegionSample


def open_folder(folder: Path, **options: Any) -> HfClipMethod:
    method = open_method(f"hf_clip:{folder}", config=EvaluationConfig(**options), device="cpu")
    assert isinstance(method, HfClipMethod)
    return method


def rows_of(features: Any) -> Tensor:
    """transformers 5 gives a record, older ones the tensor."""
    return F.normalize(features if isinstance(features, Tensor) else features.pooler_output, dim=-1)


@torch.inference_mode()
def test_regions_equal_transformers_own_features_of_each_crop(hf_clip: Path, samples: Samples) -> None:
    model, processor = CLIPModel.from_pretrained(hf_clip).eval(), AutoImageProcessor.from_pretrained(hf_clip)
    expected = []
    for sample in samples:
        height, width = sample.pixels().shape[:2]
        for region in sample.regions:
            corners = np.round(np.array(region.box) * [width, height, width, height]).astype(int)
            crop = Image.fromarray(sample.pixels()).crop(tuple(corners.tolist()))
            expected.append(rows_of(model.get_image_features(**processor(images=crop, return_tensors="pt"))))
    found = collect_regions(open_folder(hf_clip, batch_size=3), samples, EvaluationConfig(batch_size=4))
    assert len(found.texts) == len(expected) > 10
    torch.testing.assert_close(found.features, torch.cat(expected), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_texts_equal_transformers_own_features(hf_clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = CLIPModel.from_pretrained(hf_clip).eval(), AutoTokenizer.from_pretrained(hf_clip)
    texts = ["a red dog", "two", "a small cat on a mat"]
    expected = [rows_of(model.get_text_features(**tokenizer([t], return_tensors="pt"))) for t in texts]
    method = open_folder(hf_clip)
    torch.testing.assert_close(method.embed_texts(texts), torch.cat(expected), atol=1e-5, rtol=0)
    assert len(torch.unique(torch.cat(expected), dim=0)) == 3
    assert method.embed_texts(["dog " * 40]).shape == (1, 24)  # cut, not refused, but told
    length = model.config.text_config.max_position_embeddings
    assert f"1 of 1 texts are longer than the {length} tokens this model reads" in caplog.text
    assert method.embed_texts([]).shape == (0, 24)


@torch.inference_mode()
def test_siglip_sees_texts_padded_to_their_full_length(hf_clip: Path, tmp_path: Path) -> None:
    if transformers.__version__.startswith("5.0."):
        pytest.skip("transformers 5.0 opens no folder of SigLIP without sentencepiece")
    tokenizer = AutoTokenizer.from_pretrained(hf_clip)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = size | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32}
    vision = size | {"image_size": 32, "patch_size": 8}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    for part in (model, tokenizer, AutoImageProcessor.from_pretrained(hf_clip)):
        part.save_pretrained(tmp_path)
    inputs = tokenizer(["a red dog", "two"], padding="max_length", max_length=16, return_tensors="pt")
    method = open_folder(tmp_path)
    expected = rows_of(model.get_text_features(**inputs))
    torch.testing.assert_close(method.embed_texts(["a red dog", "two"]), expected, atol=1e-5, rtol=0)
    pixels = np.zeros((40, 20, 3), np.uint8)
    (batch,) = evaluation_batches([RegionSample("a", pixels)], method.canvas)
    assert method.embed_images(batch).shape == (1, 32)
    assert method.describe()["model"] == "siglip ViT-32x2-patch8"


def in_its_words(samples: Samples) -> Samples:
    """The same with names of which the tiny tokenizer knows each word: unknown ones are all alike to it."""
    words = ("red dog", "red cat", "two dog", "two cat", "small dog", "small cat", "a mat")
    names = dict(zip(NAMES, words, strict=True))
    return Samples(
        replace(sample, regions=tuple(replace(r, text=names[r.text]) for r in sample.regions))
        for sample in samples
    )


def test_it_runs_every_task_that_needs_no_boxes_found(hf_clip: Path, samples: Samples) -> None:
    with pytest.raises(UserError, match="are the same to this model"):
        evaluate(None, samples, "zeroshot_region_classification", method=f"hf_clip:{hf_clip}", device="cpu")
    samples = in_its_words(samples)
    for task in ("zeroshot_retrieval", "region_retrieval", "prompt_gain"):
        result = evaluate(None, samples, task, method=f"hf_clip:{hf_clip}", device="cpu")
        assert (result["model"], result["pretrained"]) == ("clip ViT-32x2-patch8", str(hf_clip))
        assert result["protocol"]["processor"]["crop_size"] == {"height": 32, "width": 32}
    with pytest.raises(UserError, match="method hf_clip finds no boxes by itself"):
        evaluate(None, samples, "grounding", method=f"hf_clip:{hf_clip}", device="cpu")
    among = EvaluationConfig(proposals="grid:6")
    result = evaluate(None, samples, "grounding", among, method=f"hf_clip:{hf_clip}", device="cpu")
    assert result["metrics"]["recall@10"] >= result["metrics"]["recall@1"]


def test_bf16(hf_clip: Path) -> None:
    method = open_folder(hf_clip, precision="bf16")
    assert method.embed_texts(["a dog"]).dtype == torch.float32
    assert method.describe()["precision"] == "bf16"


def test_wrong_folders(model: CLOC, hf_clip: Path, text_tower: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no CLIP or SigLIP"):
        open_folder(tmp_path)
    with pytest.raises(UserError, match="needs the folder"):
        open_method("hf_clip")
    with pytest.raises(UserError, match="leave --weights out"):
        open_method(f"hf_clip:{hf_clip}", model)
    with pytest.raises(UserError, match="model of type 'bert'; expected a CLIP"):
        open_folder(text_tower)
    shutil.copytree(hf_clip, tmp_path / "blind")
    (tmp_path / "blind" / "preprocessor_config.json").unlink()
    with pytest.raises(MissingFileError, match="image processor"):
        open_folder(tmp_path / "blind")
