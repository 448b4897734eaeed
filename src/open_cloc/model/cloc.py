"""CLOC: a CLIP whose image tokens a small Prompter turns into the embedding of a box, or the box of a phrase.

Shapes: B images, R regions per image, N image tokens, U unique texts, T text tokens, C tower width, D shared
embedding, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from open_cloc.boxes import grid_cells, overlap_fraction
from open_cloc.canvas import CanvasConfig
from open_cloc.config import from_dict
from open_cloc.errors import UserError
from open_cloc.model import weights
from open_cloc.model.features import compute_features, encode_distinct_texts
from open_cloc.model.hub import fetch
from open_cloc.model.prompter import Prompter, PrompterConfig
from open_cloc.model.prompts import PromptedImage
from open_cloc.model.prompts.box import ROI_SIZE, pool_boxes
from open_cloc.model.towers import image_tower_of, text_tower_of
from open_cloc.model.towers.build import build_clip
from open_cloc.model.towers.tokenizer import TextTokenizer
from open_cloc.samples import PAPER_NEEDS, Features, RegionBatch
from open_cloc.texts import TextCleaning

# Options of `from_pretrained` that concern the hub.
HUB_OPTIONS = ("force_download", "token", "cache_dir", "local_files_only", "revision")


def build_parts(model_cfg: Mapping[str, Any], prompter: PrompterConfig) -> tuple[Any, Prompter]:
    """The two towers and the Prompter, untrained: all of a CLOC that has weights."""
    clip: Any = build_clip(model_cfg)
    width = image_tower_of(clip.visual).token_width
    return clip, Prompter(width, model_cfg["embed_dim"], prompter)


@dataclass(frozen=True)
class ImageState:
    """An image after its one pass through the tower: enough for any number of prompts.

    Attributes:
        image_features: (B, D) features of the whole images, not normalised.
        image_tokens: (B, N, C) tokens before pooling and projection.
        grid_size: (rows, columns) of the tokens, N = rows * columns.
        prompted: What the Prompter computes before it knows the prompt.
    """

    image_features: Tensor
    image_tokens: Tensor
    grid_size: tuple[int, int]
    prompted: PromptedImage

    def select(self, index: Tensor | slice) -> ImageState:
        """The same for some of the images."""
        return ImageState(
            self.image_features[index],
            self.image_tokens[index],
            self.grid_size,
            self.prompted.select(index),
        )


class CLOC(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="open-cloc",
    tags=["clip", "region-text", "open-cloc"],
    pipeline_tag="zero-shot-image-classification",
):
    """A CLIP with a Prompter.

    Args:
        model_cfg: open_clip's model config of the towers.
        prompter: How prompts are read out, as a `PrompterConfig` or its dict.
        preprocess: What the tower expects of its input, as a `CanvasConfig` or its dict.
        texts: How texts are cleaned, as a `TextCleaning` or its dict.

    Attributes:
        clip: open_clip's `CustomTextCLIP` with `visual`, `text`, `logit_scale` (shape (1,)), `logit_bias`.
        prompter: The Prompter.
        cleaning: What a text becomes before it is tokenized.
        tokenizer: Texts -> (U, context length) token ids.
        tokenize: The same, cut to the longest text where the text tower allows it exactly.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model_cfg: Mapping[str, Any],
        prompter: PrompterConfig | Mapping[str, Any] | None = None,
        preprocess: CanvasConfig | Mapping[str, Any] | None = None,
        texts: TextCleaning | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model_cfg = dict(model_cfg)
        self.preprocess = from_dict(CanvasConfig, preprocess or {}, "preprocess")
        self.cleaning = from_dict(TextCleaning, texts or {}, "texts")
        prompter_config = from_dict(PrompterConfig, prompter or {}, "prompter")
        # What save_pretrained writes: everything that changes numbers, and nothing of this machine.
        self._hub_mixin_config = {
            "model_cfg": self.model_cfg,
            "prompter": asdict(prompter_config),
            "preprocess": asdict(self.preprocess),
            "texts": asdict(self.cleaning),
        }
        self.clip, self.prompter = build_parts(self.model_cfg, prompter_config)
        text: Any = self.clip.text
        padding = text_tower_of(text).padding_id
        self.tokenize = TextTokenizer(self.model_cfg, padding, text.vocab_size, self.cleaning)
        self.tokenizer: Callable[[list[str]], Tensor] = self.tokenize.full
        self.register_buffer("mean", torch.tensor(self.preprocess.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.preprocess.std).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def embed_dim(self) -> int:
        return self.model_cfg["embed_dim"]

    def normalize_pixels(self, images: Tensor, *, unit_range: bool = False) -> Tensor:
        """Images (B, 3, H, W) -> floats with the tower's mean and standard deviation.

        Args:
            images: uint8, or floats in [0, 1] where `unit_range` says so.
            unit_range: Take floats in place of uint8.

        Raises:
            UserError: If they are of another shape or type, or floats outside [0, 1].
        """
        check_pixels(images, unit_range)
        floats = images.to(torch.float32, copy=True)
        # In place: fresh memory costs more.
        return (floats if unit_range else floats.div_(255)).sub_(self.mean).div_(self.std)

    def encode_image(
        self, images: Tensor, content_boxes: Tensor | None = None, *, unit_range: bool = False
    ) -> ImageState:
        """Run the image tower and the prompt-independent part of the Prompter, once per image.

        Args:
            images: (B, 3, H, W) uint8, not normalised: the model does that. H and W may differ from the
                training size: position embeddings are resized.
            content_boxes: (B, 4) normalised `xyxy` of the picture inside padding; the whole canvas if None.
                Tokens that see nothing of it are masked out of the Prompter's attention.
            unit_range: The images are floats in [0, 1], as torchvision's `ToTensor` gives them.

        Raises:
            UserError: If images are of another shape or type, or floats outside [0, 1].
        """
        pixels = self.normalize_pixels(images, unit_range=unit_range)
        output = image_tower_of(self.clip.visual).encode(pixels)
        return self.state_of(output.image_features, output.image_tokens, output.grid_size, content_boxes)

    def state_of(
        self,
        image_features: Tensor,
        image_tokens: Tensor,
        grid_size: tuple[int, int],
        content_boxes: Tensor | None = None,
    ) -> ImageState:
        """What the model keeps of images whose pass through the tower is known, such as from a cache.

        Args:
            image_features: (B, D) as the tower gave them.
            image_tokens: (B, N, C) as the tower gave them.
            grid_size: (rows, columns) of the tokens.
            content_boxes: (B, 4) as in `encode_image`.
        """
        mask = None if content_boxes is None else self.tokens_in_picture(grid_size, content_boxes)
        prompted = self.prompter.prepare(image_tokens, grid_size, mask)
        return ImageState(image_features, image_tokens, grid_size, prompted)

    @staticmethod
    def tokens_in_picture(grid_size: tuple[int, int], content_boxes: Tensor) -> Tensor:
        """Which tokens of a grid see something of the picture (B, 4) and not only padding: (B, N) bool."""
        cells = grid_cells(grid_size, content_boxes.device)
        return overlap_fraction(content_boxes[:, None].float(), cells)[:, 0] > 0

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Token ids (U, T) -> text features (U, D), not normalised."""
        return text_tower_of(self.clip.text).encode(token_ids)

    def encode_regions(self, state: ImageState, prompts: Mapping[str, Tensor]) -> Tensor:
        """Embed what prompts point at.

        Args:
            state: Encoded images, B of them.
            prompts: Prompts by kind, a key of `open_cloc.model.prompts.PROMPTS`: `{"box": boxes}` with boxes
                (B, R, 4) normalised `xyxy` of the canvas. Several kinds follow one another.

        Returns:
            (B, R, D) region features, not normalised.
        """
        return self.prompter.embed(state.prompted, prompts)

    def ground(self, state: ImageState, text_features: Tensor) -> Tensor:
        """Text features (B, R, D) -> the box of each phrase, (B, R, 4) normalised `xyxy` of the canvas."""
        return self.prompter.ground(state.prompted, {"text": text_features})

    def pool_regions(self, state: ImageState, boxes: Tensor, size: int = ROI_SIZE) -> Tensor:
        """Region features of a plain CLIP: RoIAlign of the image tokens, then the tower's own head.

        Boxes (B, R, 4) normalised `xyxy` of the canvas, of size x size bins each -> (B, R, D). The baseline
        that needs no Prompter.
        """
        pooled = pool_boxes(state.image_tokens, state.grid_size, boxes, size)  # (B, R, size * size, C)
        features = image_tower_of(self.clip.visual).project_pooled(pooled.flatten(0, 1))  # (B * R, D)
        return features.unflatten(0, boxes.shape[:2])

    def forward(
        self,
        batch: RegionBatch,
        needs: Collection[str] = PAPER_NEEDS,
        after_texts: Callable[[Features], object] | None = None,
    ) -> Features:
        """What the objectives need of a batch, by path of `Features`. Each distinct text is encoded once.

        Args:
            batch: Pictures, boxes and texts.
            needs: Paths of what to compute.
            after_texts: Called with the texts' features before pictures are encoded.
        """
        return compute_features(self, batch, needs, after_texts)

    def encode_distinct_texts(self, batch: RegionBatch) -> Tensor:
        """The batch's texts (U, T) -> (U, D), texts of like length together."""
        return encode_distinct_texts(self, batch)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the towers' activations in the backward pass instead of keeping them."""
        image_tower_of(self.clip.visual).set_grad_checkpointing(enable)
        text_tower_of(self.clip.text).set_grad_checkpointing(enable)

    # --- hub mixin: save_pretrained, from_pretrained and push_to_hub come from huggingface_hub ---

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> CLOC:
        """Load a folder that `save_pretrained` wrote, or a hub repository of that layout.

        Raises:
            MissingFileError: If there is no such folder or repository, or a file of it is missing.
            UserError: If its config or weights are not CLOC's, or do not fit each other.
        """
        name, folder = str(pretrained_model_name_or_path), Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            given = {option: kwargs.pop(option) for option in HUB_OPTIONS if option in kwargs}
            folder = fetch(name, weights.FILES, **given)
        # The mixin reads it too, but does not say what is wrong with it.
        weights.read_config(folder)
        return super().from_pretrained(folder, **kwargs)

    @classmethod
    def shapes_of(
        cls,
        model_cfg: Mapping[str, Any],
        prompter: Mapping[str, Any],
        preprocess: Mapping[str, Any],
        texts: Mapping[str, Any],
    ) -> dict[str, torch.Size]:
        """Names and shapes of the weights that a config asks for; on torch's `meta` device without memory.

        Raises:
            UserError: If it is no config of a CLOC.
        """
        from_dict(CanvasConfig, preprocess, "preprocess")
        from_dict(TextCleaning, texts, "texts")
        parts = build_parts(model_cfg, from_dict(PrompterConfig, prompter, "prompter"))
        states = zip(("clip", "prompter"), (part.state_dict() for part in parts))
        return {f"{part}.{name}": tensor.shape for part, state in states for name, tensor in state.items()}

    def _save_pretrained(self, save_directory: Path) -> None:
        weights.save_folder(self, save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", **kwargs: Any) -> CLOC:
        return weights.load_folder(cls, cls.shapes_of, Path(model_id), map_location)


def check_pixels(images: Tensor, unit_range: bool) -> None:
    """Refuse what would be encoded without complaint, and wrongly.

    Args:
        images: (B, 3, H, W) uint8, or floats in [0, 1].
        unit_range: Whether they are said to be floats.

    Raises:
        UserError: If they are of another shape, type or range.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"images must be (B, 3, H, W); got {tuple(images.shape)}")
    dtype = str(images.dtype).removeprefix("torch.")
    if not unit_range:
        if images.dtype != torch.uint8:
            raise UserError(
                f"images must be uint8 pixels from 0 to 255; got {dtype} (for floats in [0, 1], say "
                "unit_range=True; the model normalises by itself)"
            )
        return
    if not images.is_floating_point():
        raise UserError(f"with unit_range, images must be floats in [0, 1]; got {dtype}")
    if images.numel():
        low, high = (value.item() for value in images.aminmax())
        if not (low >= 0 and high <= 1):  # this way round, NaN is refused too
            raise UserError(
                f"with unit_range, images must lie in [0, 1]; got values from {low:g} to {high:g}"
            )
