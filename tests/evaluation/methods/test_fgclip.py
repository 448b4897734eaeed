"""FG-CLIP against its authors' rules, written once more on bare tensors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_data import Samples, with_maps
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align
from transformers import AutoTokenizer

from open_cloc.errors import UserError
from open_cloc.evaluation.batches import evaluation_batches
from open_cloc.evaluation.methods import open_method
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.samples import RegionSample

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIDE, PATCH, HEADS = 32, 8, 2


class Plain:
    """FG-CLIP's forward passes, of a folder's tensors alone."""

    def __init__(self, folder: Path) -> None:
        self.state = load_file(folder / "model.safetensors")

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-5)

    def mlp(self, x: Tensor, block: str) -> Tensor:
        hidden = self.linear(x, f"{block}.mlp.fc1")
        return self.linear(hidden * torch.sigmoid(1.702 * hidden), f"{block}.mlp.fc2")

    def attention(self, x: Tensor, block: str, causal: bool) -> Tensor:
        """Of the tokens of one picture or text: (T, C)."""
        q, k, v = (self.linear(x, f"{block}.self_attn.{part}_proj") for part in "qkv")
        mixed = []
        for own in range(HEADS):
            part = slice(own * 16, own * 16 + 16)
            scores = q[:, part] @ k[:, part].T / 4
            if causal:
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            mixed.append(scores.softmax(-1) @ v[:, part])
        return self.linear(torch.cat(mixed, -1), f"{block}.self_attn.out_proj")

    def blocks(self, x: Tensor, tower: str, count: int, causal: bool = False) -> Tensor:
        for number in range(count):
            block = f"{tower}.encoder.layers.{number}"
            x = x + self.attention(self.norm(x, f"{block}.layer_norm1"), block, causal)
            x = x + self.mlp(self.norm(x, f"{block}.layer_norm2"), block)
        return x

    def embedded(self, sample: RegionSample) -> Tensor:
        """Patches of a picture that is squashed to a square, behind the class token: (1 + N, C)."""
        picture = Image.fromarray(sample.pixels()).resize((SIDE, SIDE))  # Pillow's own choice is bicubic
        pixels = (torch.from_numpy(np.array(picture)).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        name = "vision_model.embeddings"
        weight = self.state[f"{name}.patch_embedding.weight"]
        patches = F.conv2d(pixels.permute(2, 0, 1)[None], weight, stride=PATCH)[0].flatten(1).T
        x = torch.cat([self.state[f"{name}.class_embedding"][None], patches])
        return self.norm(x + self.state[f"{name}.position_embedding.weight"], "vision_model.pre_layrnorm")

    def image(self, sample: RegionSample) -> Tensor:
        x = self.norm(self.blocks(self.embedded(sample), "vision_model", 2)[0], "vision_model.post_layernorm")
        return F.normalize(self.linear(x, "visual_projection"), dim=-1)

    def dense(self, sample: RegionSample) -> Tensor:
        """Patches through the last block without what its attention mixes: (N, D), not of unit length."""
        x, block = self.blocks(self.embedded(sample), "vision_model", 1), "vision_model.encoder.layers.1"
        values = self.linear(self.norm(x, f"{block}.layer_norm1"), f"{block}.self_attn.v_proj")
        x = x + self.linear(values, f"{block}.self_attn.out_proj")
        x = x + self.mlp(self.norm(x, f"{block}.layer_norm2"), block)
        return self.linear(self.norm(x, "vision_model.post_layernorm")[1:], "visual_projection")

    def text(self, ids: list[int], end: int, long: bool) -> Tensor:
        name = "text_model.embeddings"
        words = self.state[f"{name}.token_embedding.weight"][ids]
        rows = []
        for place in range(len(ids)):
            table = f"_{'ori' if place < 20 else 'res'}" if long else ""
            rows.append(words[place] + self.state[f"{name}.position_embedding{table}.weight"][place])
        x = self.norm(self.blocks(torch.stack(rows), "text_model", 2, True), "text_model.final_layer_norm")
        projection = "text_filip_projection" if long else "text_projection"
        return F.normalize(self.linear(x[ids.index(end)], projection), dim=-1)


@torch.inference_mode()
def test_regions_are_one_point_of_the_dense_features(fgclip: Path, samples: Samples) -> None:
    plain, method = Plain(fgclip), open_method(f"fgclip:{fgclip}", device="cpu")
    (batch,) = evaluation_batches(samples, method.canvas, batch_size=len(samples))
    expected = []
    for sample in samples:
        if sample.regions:
            grid = plain.dense(sample).T.reshape(1, 24, 4, 4)
            boxes = torch.tensor([[0.0, *(4 * side for side in region.box)] for region in sample.regions])
            rows = roi_align(grid, boxes, (1, 1), 1.0, -1, True)[..., 0, 0]
            expected.append(F.normalize(rows, dim=-1))
    found = method.embed_regions(batch, batch.boxes)
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=0)
    images = torch.stack(list(map(plain.image, samples)))
    torch.testing.assert_close(method.embed_images(batch), images, atol=1e-5, rtol=0)
    drawn = [RegionSample("a", image.permute(1, 2, 0).contiguous().numpy()) for image in batch.images]
    dense = torch.stack([F.normalize(plain.dense(sample), dim=-1).reshape(4, 4, 24) for sample in drawn])
    tokens = method.embed_tokens(batch)  # type: ignore[attr-defined]
    torch.testing.assert_close(tokens, dense, atol=1e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("length", ["short", "long"])
def test_texts_have_their_own_positions_and_projection(fgclip: Path, length: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(fgclip)
    plain, method = Plain(fgclip), open_method(f"fgclip:{fgclip},texts={length}", device="cpu")
    most = 248 if length == "long" else 77
    texts = ["a red dog", "two cat " * 30, "small " * 300]
    expected = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=most)["input_ids"]
        expected.append(plain.text(ids, tokenizer.sep_token_id, length == "long"))
    torch.testing.assert_close(method.embed_texts(texts), torch.stack(expected), atol=1e-5, rtol=0)
    told = {"short": "fgclip", "long": "fgclip,texts=long"}
    assert method.describe()["method"] == told[length]


def test_it_is_measured(fgclip: Path, samples: Samples) -> None:
    spec = f"fgclip:{fgclip}"
    config = EvaluationConfig(classes=("red dog", "two cat", "small dog", "a mat"))
    result = evaluate(None, with_maps(samples), "segmentation", config, method=spec, device="cpu")
    assert 0 <= result["metrics"]["miou"] <= 1


def test_a_plain_clip_and_damaged_weights_are_told(fgclip: Path, hf_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"is no FG-CLIP: its weights lack .*; measure a plain CLIP as --weights"
    ):
        open_method(f"fgclip:{hf_clip}", device="cpu")
    changes: dict[str, Any] = {
        "differ in shape": {"text_filip_projection.weight": torch.zeros(24, 7)},
        "holds nan": {"text_filip_projection.weight": torch.full((24, 32), torch.nan)},
    }
    for told, change in changes.items():
        folder = shutil.copytree(fgclip, tmp_path / told)
        save_file(
            load_file(folder / "model.safetensors") | change, folder / "model.safetensors", {"format": "pt"}
        )
        with pytest.raises(UserError, match=told):
            open_method(f"fgclip:{folder}", device="cpu")
    (tmp_path / "config.json").write_text('{"model_type": "fgclip2"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="holds a model of type 'fgclip2'; expected clip"):
        open_method(f"fgclip:{tmp_path}", device="cpu")
