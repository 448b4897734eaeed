"""FG-CLIP: boxes by one point of RoIAlign from its own dense features, without the code in its folder.

FG-CLIP (arXiv 2505.05071) is a `CLIPModel` of transformers with a few tensors more: a second table of text
positions and a second projection for long texts. Its authors' class is remote code; here transformers' own
class takes the weights, and what theirs adds is done as theirs does it.

Read from github.com/360CVGroup/FG-CLIP (`fgclip.py`, `fgovd_eval.py`) and from copies of the released
folder's `modeling_clip.py`; not confirmed on the released weights, which were not at hand.

Shapes: B images, R regions of one image, T texts, N patches, C tower width, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from open_cloc.canvas import CanvasConfig
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.evaluation.method import Setup
from open_cloc.evaluation.methods.hf_clip import HfClipMethod, open_foreign
from open_cloc.model.foreign import quietly
from open_cloc.model.limits import require_sound_weights
from open_cloc.model.weights import read_state
from open_cloc.precision import computing_in

Length = Literal["short", "long"]

LONG_PROJECTION = "text_filip_projection.weight"
# Positions of long texts: the first of one table, the others of another, as Long-CLIP has them.
FIRST_POSITIONS = "text_model.embeddings.position_embedding_ori.weight"
OTHER_POSITIONS = "text_model.embeddings.position_embedding_res.weight"
NUM_FIRST = 20


class FgclipMethod(HfClipMethod):
    """As `HfClipMethod`, but that pictures are squashed, and boxes pooled from one pass over each.

    Attributes:
        texts: `short` or `long`: which of its two ways reads them.
    """

    name_of_method, auto_class = "fgclip", "CLIPModel"
    texts: Length = "short"

    def __init__(self, folder: Path, name: str, *rest: Any) -> None:
        self._long = _long_parts(folder, name)
        with quietly():  # what a CLIPModel has no place for is no news
            super().__init__(folder, name, *rest)
        size = self.model.config.vision_config.image_size
        self.canvas = CanvasConfig((size, size), resize_mode="squash")

    def describe(self) -> dict[str, Any]:
        """What made the numbers, as plain JSON."""
        method = self.name_of_method if self.texts == "short" else f"{self.name_of_method},texts=long"
        return {**super().describe(), "method": method, "texts": self.texts}

    def read_long_texts(self) -> None:
        """Read all texts as FG-CLIP reads long ones: 248 tokens, other positions, another projection."""
        embeddings, config = self.model.text_model.embeddings, self.model.config.text_config
        first, others, projection = self._long
        positions = torch.cat([first[:NUM_FIRST], others[NUM_FIRST:]]).float().to(self.device)
        embeddings.position_embedding = nn.Embedding.from_pretrained(positions)
        embeddings.position_ids = torch.arange(len(positions), device=self.device)[None]
        self.model.text_projection.weight.data.copy_(projection)
        config.max_position_embeddings, self.texts = len(positions), "long"

    def embed_regions(self, batch: EvaluationBatch, boxes: Sequence[np.ndarray]) -> Tensor:
        """Boxes of each picture of a batch -> (sum of R, D) float32 of unit length."""
        asked = [(sample, own) for sample, own in zip(batch.samples, boxes) if len(own)]
        if not asked:
            return self._nothing()
        feature_map = self._dense([sample.pixels() for sample, _ in asked]).permute(0, 3, 1, 2)
        rows, columns = feature_map.shape[2:]
        sides = np.array([columns, rows, columns, rows])
        places = [torch.from_numpy(own * sides).float().to(self.device) for _, own in asked]
        pooled = roi_align(feature_map, places, (1, 1), 1.0, -1, aligned=True)[..., 0, 0]
        return F.normalize(pooled, dim=-1)

    def embed_tokens(self, batch: EvaluationBatch) -> Tensor:
        """Pictures of a batch -> (B, rows, columns, D) float32 of unit length, places of the picture."""
        pictures = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in batch.images]
        return F.normalize(self._dense(pictures), dim=-1)

    def _embed_pictures(self, pictures: Sequence[np.ndarray]) -> Tensor:
        return super()._embed_pictures([self._squashed(pixels) for pixels in pictures])

    def _squashed(self, pixels: np.ndarray) -> np.ndarray:
        """A picture (H, W, 3) as its authors resize it: to a square, whatever its shape."""
        height, width = self.canvas.image_size
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))

    def _dense(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Projected patches (B, rows, columns, D) float32, with values in place of the last attention."""
        shown = [Image.fromarray(self._squashed(pixels)) for pixels in pictures]
        inputs = self.processor(images=shown, return_tensors="pt").to(self.device)
        vision = self.model.vision_model
        last, came = vision.encoder.layers[-1], []
        hook = last.register_forward_pre_hook(lambda module, given: came.append(given[0]))
        try:
            with computing_in(self.config.precision, self.device):
                vision(**inputs)
                (x,) = came
                x = x + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(x)))
                x = vision.post_layernorm(x + last.mlp(last.layer_norm2(x)))
                patches = self.model.visual_projection(x[:, 1:])
        finally:
            hook.remove()
        size, patch = inputs["pixel_values"].shape[-2:], vision.config.patch_size
        return patches.float().unflatten(1, tuple(length // patch for length in size))


def _long_parts(folder: Path, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """What an FG-CLIP has beside a CLIP: two tables of positions and a projection, for long texts.

    Raises:
        UserError: If the folder's weights lack one, or it does not fit the others.
    """
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin")):
        state |= read_state(file)
    names = (FIRST_POSITIONS, OTHER_POSITIONS, LONG_PROJECTION)
    lacking = [part for part in names if part not in state]
    if lacking:
        raise UserError(
            f"{name} is no FG-CLIP: its weights lack {lacking[0]}; measure a plain CLIP as "
            f"--weights folder:{name}"
        )
    first, others, projection = (state[part] for part in names)
    short = state.get("text_projection.weight")
    if first.shape != others.shape or short is None or projection.shape != short.shape:
        raise UserError(f"{name} is no FG-CLIP: its tables of positions or its projections differ in shape")
    require_sound_weights({part: state[part] for part in names}, name)
    return first, others, projection


def open_fgclip(what: str, setup: Setup, *, texts: Length = "short", lower_case: bool = True) -> FgclipMethod:
    """An FG-CLIP; of the second generation (`fgclip2`), whose pictures keep their shape, there is no adapter.

    Args:
        what: Its folder or hub id.
        setup: How to measure, and where.
        texts: `short`, names and phrases of up to 77 tokens; `long`, captions of up to 248.
        lower_case: Lower-case its texts.

    Raises:
        UserError: If it is another model, or damaged.
        MissingFileError: If it is not there.
    """
    method = open_foreign(FgclipMethod, what, setup, lower_case, ("clip",))
    if texts == "long":
        method.read_long_texts()
    return method
