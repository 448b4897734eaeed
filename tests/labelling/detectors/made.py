"""Tiny checkpoints on disk, opened by the code that opens real ones, and pictures for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import (
    BertConfig,
    CLIPTextConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    OmDetTurboConfig,
    OmDetTurboForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    OwlViTConfig,
    OwlViTForObjectDetection,
    PreTrainedTokenizerFast,
    SwinConfig,
)

from open_cloc.labelling.detectors import open_detector
from open_cloc.labelling.recipe import DetectorConfig
from open_cloc.labelling.types import Detections
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.prompter import PrompterConfig

TYPES = ("owlv2", "owlvit", "grounding-dino")

WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "small",
    "dog",
    "cat",
    "bird",
    "tree",
    "car",
    "sky",
    "mat",
    "on",
    "of",
    "two",
]

SIZE = 64  # canvas of the tiny OWL models

# Of scores in [0, 1] whose float32 products were made in another place or size of a batch: 4e-7 was seen.
ROUNDING = 1e-5

# A box is a mean of boxes up to 20 pixels apart. Their weights are exponentials of scores over 0.05 of the
# spread of all scores, so rounding (1e-6 of a spread near 1e-2) moves it by some hundredths of a pixel.
VOTES_PX = 0.1

PICTURES = [(48, 80), (80, 48), (64, 64), (50, 90), (48, 80), (30, 100), (64, 64), (48, 80)]

PHRASES = [
    ["dog"],
    ["a red dog", "cat"],
    ["tree", "car", "sky"],
    ["two cat on the mat"],
    ["bird", "a small bird on a tree", "sky", "car"],
    ["the blue car"],
    ["dog", "dog"],
    ["mat"],
]


def tokenizer(ids: dict[str, int], start: str, stop: str, pad: str) -> PreTrainedTokenizerFast:
    own = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    own.normalizer = normalizers.Lowercase()
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(start, ids[start]), (stop, ids[stop])]
    own.post_processor = processors.TemplateProcessing(single=f"{start} $A {stop}", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=own,
        unk_token="[UNK]",
        cls_token=start,
        sep_token=stop,
        eos_token=stop,
        pad_token=pad,
    )


def make_owl(folder: Path, model_type: str) -> Path:
    names = ["!", "[UNK]", *WORDS, "<start>", "<end>"]  # the end has the largest id: that is where it is read
    tokenizer({n: i for i, n in enumerate(names)}, "<start>", "<end>", "!").save_pretrained(folder)
    text = {
        "vocab_size": len(names), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 8, "pad_token_id": 0,
        "bos_token_id": names.index("<start>"), "eos_token_id": names.index("<end>"),
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": SIZE, "patch_size": 16,
    }  # fmt: skip
    config, model = {
        "owlv2": (Owlv2Config, Owlv2ForObjectDetection),
        "owlvit": (OwlViTConfig, OwlViTForObjectDetection),
    }[model_type]
    save(model(config(text_config=text, vision_config=vision, projection_dim=32)), folder)
    return folder


def make_dino(folder: Path, model_type: str = "grounding-dino") -> Path:
    """A tiny Grounding DINO, or MM Grounding DINO."""
    # The ids of [CLS], [SEP], full stop and question mark are constants of the library's model.
    ids = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
    ids |= {word: 200 + row for row, word in enumerate(WORDS)}
    tokenizer(ids, "[CLS]", "[SEP]", "[PAD]").save_pretrained(folder)
    config, model = {
        "grounding-dino": (GroundingDinoConfig, GroundingDinoForObjectDetection),
        "mm-grounding-dino": (MMGroundingDinoConfig, MMGroundingDinoForObjectDetection),
    }[model_type]
    own = config(
        backbone_config=SwinConfig(
            image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
            out_indices=[2, 3, 4],
        ),
        text_config=BertConfig(
            vocab_size=1100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        ),
        d_model=32, num_queries=10, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_text_len=24,
    )  # fmt: skip
    save(model(own), folder)
    size = {"shortest_edge": 72, "longest_edge": 144}
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": size}))
    return folder


def make_omdet(folder: Path) -> Path:
    """A tiny OmDet-Turbo."""
    names = ["!", "[UNK]", ",", ".", "detect", *WORDS, "<start>", "<end>"]  # the end has the largest id
    ids = {name: row for row, name in enumerate(names)}
    tokenizer(ids, "<start>", "<end>", "!").save_pretrained(folder)
    text = CLIPTextConfig(
        vocab_size=len(names), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, pad_token_id=0, bos_token_id=ids["<start>"],
        eos_token_id=ids["<end>"], projection_dim=32,
    )  # fmt: skip
    vision = SwinConfig(
        image_size=SIZE, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_indices=[2, 3, 4],
    )  # fmt: skip
    config = OmDetTurboConfig(
        backbone=None, backbone_config=vision, text_config=text, use_timm_backbone=False, image_size=SIZE,
        apply_layernorm_after_vision_backbone=False, text_projection_in_dim=32, text_projection_out_dim=32,
        task_encoder_hidden_dim=32, class_embed_dim=32, num_queries=10, encoder_hidden_dim=16,
        vision_features_channels=[16, 16, 16], encoder_in_channels=[16, 32, 64], encoder_attention_heads=2,
        encoder_dim_feedforward=32, decoder_hidden_dim=16, decoder_num_heads=2, decoder_num_layers=2,
        decoder_dim_feedforward=32,
    )  # fmt: skip
    save(OmDetTurboForObjectDetection(config), folder)
    size = {"height": SIZE, "width": SIZE}
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": size}))
    return folder


def save(model: torch.nn.Module, folder: Path) -> None:
    model_with_effect(model).save_pretrained(folder)


def model_with_effect(model: torch.nn.Module) -> torch.nn.Module:
    """Draw weights so large that pictures and phrases make a difference far above rounding."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                fan_in = parameter.flatten(1).shape[1]
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return model


def make_cloc(folder: Path) -> Path:
    cfg = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
        "text_cfg": {"width": 32, "heads": 2, "layers": 2, "context_length": 16},
    }
    prompter = PrompterConfig(readout="prompt", box_prior=True, box_content="none", pooled_residual=True)
    torch.manual_seed(0)  # for the position code, which is no parameter
    save(build_model(ModelConfig(towers=cfg, prompter=prompter)), folder)
    return folder


def detector(folder: Path, **changes: Any) -> Any:
    """A detector of the weights in a folder, which keeps every box."""
    return open_detector(DetectorConfig(weights=str(folder), **{"raw_score": 0.0, **changes}), "cpu")


def picture(size_hw: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Smooth noise: sharp noise would be gone after a resize."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.integers(0, 256, (1, 3, 6, 6))).float()
    return F.interpolate(coarse, size=size_hw, mode="bilinear")[0].permute(1, 2, 0).to(torch.uint8).numpy()


def pictures() -> list[np.ndarray]:
    return [picture(size, seed) for seed, size in enumerate(PICTURES)]


def bright_boxes(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(B, 3, H, W), normalised -> (B, 4) `cxcywh` in pixels of the bright rectangle, to a part of one."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (mean, std))
    grey = (pixels * std + mean).mean(1)  # (B, H, W)
    found = []
    for own in grey:
        sides = []
        for profile in (own.sum(0), own.sum(1)):
            centre = ((torch.arange(len(profile)) + 0.5) * profile).sum() / profile.sum()
            sides.append((centre, profile.sum() / profile.max()))
        (x, width), (y, height) = sides
        found.append(torch.stack([x, y, width, height]))
    return torch.stack(found)


def plant(own: Any) -> None:
    """Make a detector's model find the bright rectangle in the pixels that it is given."""
    mean, std = own.preprocess.mean, own.preprocess.std

    def relative(pixels, size_hw):
        height, width = size_hw
        return bright_boxes(pixels, mean, std) / torch.tensor([width, height, width, height])

    def embed(pixels, interpolate_pos_encoding):
        return (relative(pixels, pixels.shape[-2:])[:, None, None],)  # (B, 1, 1, 4)

    def dino(pixel_values, pixel_mask, input_ids, attention_mask):
        boxes = torch.cat(
            [
                relative(image[None, :, :height, :width], (height, width))
                for image, mask in zip(pixel_values, pixel_mask)
                for height, width in [(int(mask[:, 0].sum()), int(mask[0].sum()))]
            ]
        )
        return SimpleNamespace(pred_boxes=boxes[:, None], logits=torch.full((len(boxes), 1, 24), 3.0))

    if own.preprocess.mode == "edges":
        own.model = dino
    else:
        own.model.image_embedder = embed
        own.model.box_predictor = lambda features, feature_map, resized: features
        own.model.class_predictor = lambda features, queries, mask: (
            torch.full((len(features), 1, queries.shape[1]), 3.0),
        )


def assert_equal_detections(first: Detections, second: Detections, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(first.scores, second.scores, atol=atol)
    np.testing.assert_allclose(first.boxes, second.boxes, atol=atol)
    assert first.dropped == second.dropped


# Architecture -> function that makes a tiny checkpoint of it in a folder.
MAKERS: dict[str, Callable[[Path], Path]] = {
    "owlv2": lambda folder: make_owl(folder, "owlv2"),
    "owlvit": lambda folder: make_owl(folder, "owlvit"),
    "grounding-dino": make_dino,
    "mm-grounding-dino": lambda folder: make_dino(folder, "mm-grounding-dino"),
    "omdet-turbo": make_omdet,
    "cloc": make_cloc,
}


def make_all(root: Path) -> dict[str, Path]:
    """A checkpoint of each architecture, by name."""
    torch.manual_seed(0)  # for what has one dimension
    return {name: make(root / name) for name, make in MAKERS.items()}
