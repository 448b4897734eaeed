"""TIPSv2 of transformers: boxes by RoIAlign of its patches, which its training brings near texts.

Shapes: B images, R regions of one image, N patches, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from open_cloc.canvas import CanvasConfig
from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.evaluation.method import Setup
from open_cloc.evaluation.methods.hf_clip import HfClipMethod, open_foreign
from open_cloc.model.prompts.box import pool_boxes
from open_cloc.precision import computing_in

Patches = Literal["last", "value_block"]


class Tipsv2Method(HfClipMethod):
    """As `HfClipMethod`, but that boxes are pooled from one pass over the picture.

    Attributes:
        tokens: `last`, the patches as the tower gives them, or `value_block`, its last block with values in
            place of what attention mixes, as its authors segment.
    """

    name_of_method = "tipsv2"
    tokens: Patches = "last"

    @property
    def logit_scale(self) -> float | None:
        """What the model multiplies cosines by."""
        return float(1 / self.model.temperature.detach())

    def describe(self) -> dict[str, Any]:
        """What made the numbers, as plain JSON."""
        method = (
            self.name_of_method if self.tokens == "last" else f"{self.name_of_method},tokens={self.tokens}"
        )
        return {**super().describe(), "method": method, "tokens": self.tokens}

    def embed_regions(self, batch: EvaluationBatch, boxes: Sequence[np.ndarray]) -> Tensor:
        """Boxes of each picture of a batch -> (sum of R, D) float32 of unit length."""
        rows = [self._nothing()]
        for sample, own in zip(batch.samples, boxes):
            if len(own):
                patches, grid = self._patches([sample.pixels()])
                asked = torch.tensor(own.copy(), dtype=torch.float32)[None].to(self.device)
                rows.append(F.normalize(pool_boxes(patches, grid, asked)[0].mean(1), dim=-1))
        return torch.cat(rows)

    def embed_tokens(self, batch: EvaluationBatch) -> Tensor:
        """Pictures of a batch -> (B, rows, columns, D) float32 of unit length, places of the picture."""
        pictures = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in batch.images]
        patches, grid = self._patches(pictures, do_resize=False)
        return F.normalize(patches, dim=-1).unflatten(1, grid)

    @property
    def patch_hw(self) -> tuple[int, int]:
        """Pixels (height, width) of a patch: pictures of whole patches may be of any size."""
        patch = self.model.vision_model.config.patch_size
        return patch, patch

    def _patches(self, pictures: Sequence[np.ndarray], **options: Any) -> tuple[Tensor, tuple[int, int]]:
        """Patches (B, N, D) of pictures, squashed to the model's size unless told; their rows, columns."""
        shown = [Image.fromarray(pixels) for pixels in pictures]
        inputs = self.processor(images=shown, return_tensors="pt", **options).to(self.device)
        vision = self.model.vision_model
        with computing_in(self.config.precision, self.device):
            if self.tokens == "last":
                tokens = vision(**inputs).last_hidden_state
            else:
                tokens = _by_values(vision, inputs)
        size, patch = inputs["pixel_values"].shape[-2:], vision.config.patch_size
        rows, columns = (length // patch for length in size)
        return tokens[:, -rows * columns :].float(), (rows, columns)


def _by_values(vision: Any, inputs: Any) -> Tensor:
    """The tower's tokens with the values of its last block in place of what attention mixes of them."""
    last = vision.encoder.layer[-1]
    came: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda module, given: came.append(given[0]))
    try:
        vision(**inputs)
    finally:
        hook.remove()
    attention, (x,) = last.attention, came
    x = x + last.layer_scale1(attention.o_proj(attention.v_proj(last.norm1(x))))
    return vision.layernorm(x + last.layer_scale2(last.mlp(last.norm2(x))))


def open_tipsv2(
    what: str, setup: Setup, *, tokens: Patches = "last", lower_case: bool = True
) -> Tipsv2Method:
    """A TIPSv2 of transformers.

    Args:
        what: Its folder or hub id.
        setup: How to measure, and where.
        tokens: `last` or `value_block`.
        lower_case: Lower-case its texts, as its own tokenizer does.

    Raises:
        UserError: If it is another model, or damaged.
        MissingFileError: If it is not there.
    """
    method = open_foreign(Tipsv2Method, what, setup, lower_case, ("tipsv2",))
    size = method.processor.size
    method.tokens, method.canvas = tokens, CanvasConfig((size["height"], size["width"]), resize_mode="squash")
    return method
