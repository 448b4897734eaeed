"""ONNX graphs of the image tower, the Prompter and the text tower, run in ONNX Runtime; in 32 or 8 bits.

Shapes: B pictures, R boxes per picture, N image tokens, C tower width, U texts, T text tokens, D shared
embedding, H W pixels of the canvas.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from open_cloc.config import require
from open_cloc.errors import UserError
from open_cloc.export.compare import Difference, Inputs, compare, unit
from open_cloc.files import write_text
from open_cloc.model.cloc import CLOC
from open_cloc.model.gelu_sum import exporting
from open_cloc.model.towers import image_tower_of, text_tower_of

EXTRA = "onnx"
ONNX_MOST = 1e-4
CONFIG_NAME = "open_cloc_onnx.json"
INT8_SUFFIX = ".int8.onnx"


class ImagePart(nn.Module):
    """Pixels (B, 3, H, W), normalised -> features (B, D) of unit length, tokens (B, N, C)."""

    def __init__(self, model: CLOC) -> None:
        super().__init__()
        self.visual: Any = model.clip.visual

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        output = image_tower_of(self.visual).encode(pixels)
        return F.normalize(output.image_features, dim=-1), output.image_tokens


class PrompterPart(nn.Module):
    """Tokens (B, N, C), which of them see the picture (B, N), boxes (B, R, 4) -> regions (B, R, D)."""

    def __init__(self, model: CLOC, grid_size: tuple[int, int]) -> None:
        super().__init__()
        self.prompter, self.grid_size = model.prompter, grid_size

    def forward(self, image_tokens: Tensor, token_mask: Tensor, boxes: Tensor) -> Tensor:
        image = self.prompter.prepare(image_tokens, self.grid_size, token_mask)
        return F.normalize(self.prompter.embed(image, {"box": boxes}), dim=-1)


class TextPart(nn.Module):
    """Token ids (U, T) -> features (U, D) of unit length."""

    def __init__(self, model: CLOC) -> None:
        super().__init__()
        self.text: Any = model.clip.text

    def forward(self, token_ids: Tensor) -> Tensor:
        return F.normalize(text_tower_of(self.text).encode(token_ids), dim=-1)


class Part(NamedTuple):
    """One graph.

    Attributes:
        module: What it computes.
        example: Inputs by name, two of everything that varies.
        varies: By input, the axes whose sizes vary, and what they count.
        outputs: Names of the outputs.
    """

    module: nn.Module
    example: dict[str, Tensor]
    varies: dict[str, dict[int, str]]
    outputs: tuple[str, ...]


def export_onnx(model: CLOC, folder: Path, inputs: Inputs) -> list[Difference]:
    """Write `image.onnx`, `prompter.onnx`, `text.onnx` and how pictures and texts become their inputs.

    Raises:
        UserError: If the extra is not installed, or the Prompter has no graph.
        RunError: If ONNX Runtime computes something else.
    """
    onnx_runtime = require("onnxruntime", EXTRA)
    require("onnxscript", EXTRA)
    if model.prompter.config.regions != "prompter":
        raise UserError("cannot export to onnx: a Prompter of regions=roialign has no graph of its own")
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in _parts(model, inputs).items():
        _write(part, folder / f"{name}.onnx")
    write_text(folder / CONFIG_NAME, json.dumps(_config(model), indent=2) + "\n")
    return _compare(onnx_runtime, folder, model, inputs, ONNX_MOST, ".onnx")


def export_onnx_int8(model: CLOC, folder: Path, inputs: Inputs) -> list[Difference]:
    """The same, and beside it each graph with weights of 8 bits, whose features are told and not limited."""
    found = export_onnx(model, folder, inputs)
    quantization = require("onnxruntime.quantization", EXTRA)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # advice for another kind of quantization
    try:
        for path in sorted(folder.glob("*.onnx")):
            quantization.quantize_dynamic(
                path,
                path.with_suffix(INT8_SUFFIX),
                # Not convolutions: they are the patches' alone, and runtimes of 2024 have none of 8 bits.
                op_types_to_quantize=["MatMul", "Gather"],
                weight_type=quantization.QuantType.QInt8,
            )
    finally:
        logging.getLogger().setLevel(level)
    onnx_runtime = require("onnxruntime", EXTRA)
    return found + [
        difference._replace(what=f"in 8 bits: {difference.what}")
        for difference in _compare(onnx_runtime, folder, model, inputs, None, INT8_SUFFIX)
    ]


def _parts(model: CLOC, inputs: Inputs) -> dict[str, Part]:
    with torch.no_grad():
        output = image_tower_of(model.clip.visual).encode(inputs.pixels[:1].repeat(2, 1, 1, 1))
    tokens = output.image_tokens
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1], [0.3, 0.3, 0.4, 0.9]]).expand(2, -1, -1)
    prompter_inputs = {
        "image_tokens": tokens,
        "token_mask": torch.ones(tokens.shape[:2], dtype=torch.bool),
        "boxes": boxes,
    }
    pictures, texts = {0: "pictures"}, {0: "texts"}
    varies = {"image_tokens": pictures, "token_mask": pictures, "boxes": {0: "pictures", 1: "regions"}}
    return {
        "image": Part(
            ImagePart(model),
            {"pixels": inputs.pixels[:1].repeat(2, 1, 1, 1)},
            {"pixels": pictures},
            ("image_features", "image_tokens"),
        ),
        "prompter": Part(
            PrompterPart(model, output.grid_size), prompter_inputs, varies, ("region_features",)
        ),
        "text": Part(
            TextPart(model),
            {"token_ids": model.tokenizer(["a dog", "a cat on a mat"])},
            {"token_ids": texts},
            ("text_features",),
        ),
    }


def _write(part: Part, path: Path) -> None:
    axes = {
        # From 2 on: older torch takes 1 for a size of its own. The graphs run with one of anything.
        name: {axis: torch.export.Dim(count, min=2, max=2**20) for axis, count in part.varies[name].items()}
        for name in part.example
    }
    with _quietly(), exporting():
        torch.onnx.export(
            part.module.eval(),
            tuple(part.example.values()),
            path,
            input_names=list(part.example),
            output_names=list(part.outputs),
            dynamic_shapes=tuple(axes.values()),
            dynamo=True,
            external_data=False,
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's reports of its own progress."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield


def _config(model: CLOC) -> dict[str, Any]:
    canvas = model.preprocess
    return {
        "image_size": list(canvas.image_size),
        "resize_mode": canvas.resize_mode,
        "interpolation": canvas.interpolation,
        "fill": list(canvas.fill),
        "mean": list(canvas.mean),
        "std": list(canvas.std),
        "context_length": model.tokenize.context_length,
        "lower_case": model.cleaning.lower_case,
        "logit_scale": float(model.clip.logit_scale.detach().exp()),
        "boxes": "x1 y1 x2 y2 in [0, 1] of the canvas, padding included",
        "token_mask": "true where a token sees the picture and not only padding",
    }


@torch.inference_mode()
def _compare(
    onnx_runtime: Any, folder: Path, model: CLOC, inputs: Inputs, most: float | None, suffix: str
) -> list[Difference]:
    """With another number of pictures, boxes and texts than the graphs were made from."""
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((len(inputs.pixels), 5, 2, 2)), axis=2) * [0.9, 0.9] + [0, 0.05]
    boxes = torch.from_numpy(corners.reshape(len(inputs.pixels), 5, 4).astype(np.float32))
    output = image_tower_of(model.clip.visual).encode(inputs.pixels)
    mask = torch.rand(output.image_tokens.shape[:2], generator=torch.Generator().manual_seed(0)) > 0.2
    prompted = model.prompter.prepare(output.image_tokens, output.grid_size, mask)
    regions = unit(model.prompter.embed(prompted, {"box": boxes}))
    run = _Runner(onnx_runtime, folder, suffix)
    images, tokens = run("image", pixels=inputs.pixels)
    (found,) = run("prompter", image_tokens=tokens, token_mask=mask, boxes=boxes)
    (texts,) = run("text", token_ids=model.tokenizer(inputs.texts))
    return [
        compare("pictures", images, inputs.images, most),
        compare("boxes", found, regions, most),
        compare("texts", texts, inputs.text_features, most),
    ]


class _Runner:
    """The folder's graphs in ONNX Runtime, on the CPU."""

    def __init__(self, onnx_runtime: Any, folder: Path, suffix: str) -> None:
        self.onnx_runtime, self.folder, self.suffix = onnx_runtime, folder, suffix

    def __call__(self, name: str, **given: Tensor) -> list[Tensor]:
        session = self.onnx_runtime.InferenceSession(
            self.folder / f"{name}{self.suffix}", providers=["CPUExecutionProvider"]
        )
        made = session.run(None, {key: value.numpy() for key, value in given.items()})
        return [torch.from_numpy(array) for array in made]
