"""Any CLIP or SigLIP of transformers, measured with its own processor and tokenizer; regions by crop.

Shapes: X pictures or crops, R regions of one image, T texts, D shared embedding, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from open_cloc.canvas import CanvasConfig
from open_cloc.devices import choose_device
from open_cloc.errors import MissingFileError, UserError, first_line
from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.evaluation.method import Setup
from open_cloc.evaluation.methods.crop import cut_out
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.files import read_json
from open_cloc.model.embed import tell_cut_texts
from open_cloc.model.foreign import open_model, open_safely
from open_cloc.model.hub import find_folder
from open_cloc.precision import computing_in
from open_cloc.texts import TextCleaning

TEXTS_PER_CHUNK = 256
# Of a hub's model, beside its weights.
FILES = ("*.json", "*.txt", "*.model")


Foreign = TypeVar("Foreign", bound="HfClipMethod")


class HfClipMethod:
    """A model of transformers that embeds pictures and texts.

    Args:
        folder: Where it was saved, together with its image processor and its tokenizer.
        name: What it is called in results.
        config: How to measure.
        device: Where it runs.
        cleaning: How its texts are read.
    """

    # The processor wants the pictures themselves, so that nothing need be drawn for it.
    canvas = CanvasConfig((1, 1))
    name_of_method, auto_class = "hf_clip", "AutoModel"

    def __init__(
        self,
        folder: Path,
        name: str,
        config: EvaluationConfig,
        device: torch.device,
        cleaning: TextCleaning,
    ) -> None:
        import transformers
        from transformers import AutoImageProcessor, AutoTokenizer

        self.name, self.config, self.device, self.cleaning = name, config, device, cleaning
        opened = open_model(getattr(transformers, self.auto_class), folder)
        self.model: Any = opened.to(device).eval()
        self.processor: Any = open_safely(AutoImageProcessor, folder)
        self.tokenizer: Any = open_safely(AutoTokenizer, folder)

    @property
    def logit_scale(self) -> float | None:
        """What the model multiplies cosines by; None for a SigLIP, which knows no softmax."""
        scale = getattr(self.model, "logit_scale", None)
        return None if scale is None or hasattr(self.model, "logit_bias") else float(scale.detach().exp())

    def describe(self) -> dict[str, Any]:
        """What made the numbers, as plain JSON."""
        vision = self.model.config.vision_config
        size = f"{vision.hidden_size}x{vision.num_hidden_layers}-patch{vision.patch_size}"
        return {
            "method": self.name_of_method,
            "model": f"{self.model.config.model_type} ViT-{size}",
            "pretrained": self.name,
            "precision": self.config.precision,
            "device": self.device.type,
            "processor": json.loads(self.processor.to_json_string()),
        }

    @property
    def towers(self) -> Any:
        """The model that embeds whole pictures and texts."""
        return self.model

    def try_out(self) -> None:
        """Embed a text and a picture, whose sizes must agree; raises whatever the library does."""
        texts, pictures = self._embed_some_texts(["a"]), self._embed_pictures([np.zeros((8, 8, 3), np.uint8)])
        if texts.shape != pictures.shape:
            raise ValueError(f"texts of {tuple(texts.shape)}, pictures of {tuple(pictures.shape)}")

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (T, D) float32 of unit length."""
        cleaned = list(map(self.cleaning, texts))
        self._tell_cut(cleaned)
        rows = [self._embed_some_texts(some) for some in _chunks(cleaned, TEXTS_PER_CHUNK)]
        return torch.cat(rows) if rows else self._nothing()

    def _tell_cut(self, texts: Sequence[str]) -> None:
        """Say how many texts lose their ends."""
        if not texts:
            return
        length = self.model.config.text_config.max_position_embeddings
        lengths = self.tokenizer(list(texts), truncation=False, verbose=False, return_length=True)["length"]
        tell_cut_texts([text for text, own in zip(texts, lengths) if own > length], len(texts), length)

    def embed_images(self, batch: EvaluationBatch) -> Tensor:
        """Whole pictures of a batch -> (B, D) float32 of unit length."""
        return self._embed_pictures([sample.pixels() for sample in batch.samples])

    def embed_regions(self, batch: EvaluationBatch, boxes: Sequence[np.ndarray]) -> Tensor:
        """Boxes of each picture of a batch, cut out -> (sum of R, D) float32 of unit length."""
        return self._embed_pictures(cut_out(batch.samples, boxes))

    def _embed_pictures(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Pictures (H, W, 3), each of its own size -> (X, D) of unit length."""
        rows = []
        for some in _chunks([Image.fromarray(pixels) for pixels in pictures], self.config.batch_size):
            inputs = self.processor(images=some, return_tensors="pt")
            rows.append(self._embed(self.towers.get_image_features, inputs))
        return torch.cat(rows) if rows else self._nothing()

    def _embed_some_texts(self, texts: list[str]) -> Tensor:
        # SigLIP has seen every text padded to its full length, and nothing else.
        padding = "max_length" if self.model.config.model_type.startswith("siglip") else True
        length = self.model.config.text_config.max_position_embeddings
        inputs = self.tokenizer(
            texts, padding=padding, truncation=True, max_length=length, return_tensors="pt"
        )
        return self._embed(self.towers.get_text_features, inputs)

    def _embed(self, get_features: Any, inputs: Any) -> Tensor:
        with computing_in(self.config.precision, self.device):
            features = get_features(**inputs.to(self.device))
        # transformers 5 gives a record, older ones the tensor.
        features = features if isinstance(features, Tensor) else features.pooler_output
        return F.normalize(features.float(), dim=-1)

    def _nothing(self) -> Tensor:
        """(0, D): how long D is, only an embedding tells."""
        return self._embed_some_texts(["a"])[:0]


def open_hf_clip(what: str, setup: Setup, *, lower_case: bool = True) -> HfClipMethod:
    """A model of transformers.

    Args:
        what: Its folder or hub id.
        setup: How to measure, and where.
        lower_case: Lower-case its texts, as is done for our own models unless they were trained otherwise.

    Raises:
        UserError: If it is no CLIP or SigLIP, is damaged, or CLOC weights are given too.
        MissingFileError: If the model, its image processor or its tokenizer is not there.
    """
    return open_foreign(HfClipMethod, what, setup, lower_case)


def open_foreign(
    kind: type[Foreign], what: str, setup: Setup, lower_case: bool, model_types: Collection[str] = ()
) -> Foreign:
    """A model of transformers of a certain kind, tried out.

    Args:
        kind: The method.
        what: Folder or hub id.
        setup: How to measure, and where.
        lower_case: Lower-case its texts.
        model_types: Those of transformers that will do; all CLIPs unless given.

    Raises:
        UserError: If it is another model, or damaged, or CLOC weights are given too.
        MissingFileError: If the model, its image processor or its tokenizer is not there.
    """
    name = kind.name_of_method
    if setup.weights is not None:
        raise UserError(f"method {name}:{what} brings its own model; leave --weights out")
    if not what:
        raise UserError(f"method {name} needs the folder of a model: {name}:FOLDER")
    device, folder = choose_device(setup.device), _find_clip(what, model_types)
    method = kind(folder, what, setup.config, device, TextCleaning(lower_case))
    if not hasattr(method.towers, "get_image_features") or not hasattr(method.towers, "get_text_features"):
        raise UserError(f"{what} holds a {type(method.model).__name__}; expected a CLIP or SigLIP")
    try:
        method.try_out()
    # What a folder's files make of a tokenizer, a processor and a model shows when they are used.
    except Exception as error:
        raise UserError(f"{what} cannot embed a text and a picture: {first_line(error)}") from error
    return method


def _find_clip(what: str, model_types: Collection[str]) -> Path:
    """The folder of a model that embeds pictures and texts; of a hub's model, what is read of it.

    Raises:
        MissingFileError: If it is not there, or is no model of transformers.
        UserError: If it is a model of another kind.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES

    folder = find_folder(what, patterns=[*FILES, "*.safetensors"])
    if not any(folder.glob("*.safetensors")):  # of old models, as plain tensors
        folder = find_folder(what, patterns=[*FILES, "pytorch_model*.bin"])
    path = folder / "config.json"
    if not path.is_file():
        raise MissingFileError(f"no CLIP or SigLIP of transformers at {what}: it holds no config.json")
    config = read_json(path)
    kind = config.get("model_type") if isinstance(config, dict) else None
    able = model_types or MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES
    if not isinstance(kind, str) or kind not in able:
        expected = " or ".join(model_types) or "a CLIP or SigLIP"
        raise UserError(f"{what} holds a model of type {kind!r:.60}; expected {expected}")
    return folder


def _chunks(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    return (list(items[start : start + size]) for start in range(0, len(items), size))
