"""Unit-length embeddings of texts and regions, any number of them in bounded memory.

Evaluation and inference embed through these functions only, so that both see the same numbers.
Shapes: B images, R regions per image, N image tokens, T texts, C tower width, D shared embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from open_cloc.devices import runs_triton
from open_cloc.model.cloc import CLOC, ImageState
from open_cloc.model.prompts.box import ROI_SIZE

TEXTS_PER_CHUNK = 256
SHOWN = 80  # characters of a text in a message
# Of the largest intermediate of one chunk of regions: 128 MiB, and 512 where starting a chunk costs most.
MAX_FLOATS = {"cpu": 2**25, "other": 2**27}

logger = logging.getLogger(__name__)


def embed_texts(model: CLOC, texts: Sequence[str]) -> Tensor:
    """Texts -> (T, D) float32 of unit length."""
    chunks = [
        F.normalize(model.encode_text(model.tokenize(list(chunk)).to(model.device)).float(), dim=-1)
        for chunk in _chunks(texts, TEXTS_PER_CHUNK)
    ]
    return torch.cat(chunks) if chunks else torch.zeros(0, model.embed_dim, device=model.device)


def tell_cut(model: CLOC, texts: Sequence[str]) -> None:
    """Say how many texts the model's context cuts off: it does not read their ends."""
    tell_cut_texts(model.tokenize.cut(texts), len(texts), model.tokenize.context_length)


def tell_cut_texts(cut: Sequence[str], count: int, length: int) -> None:
    """Say how many of `count` texts are cut to a model's `length` tokens; nothing where none is."""
    if cut:
        logger.warning(
            "%d of %d texts are longer than the %d tokens this model reads, and lose their ends, such as %r",
            len(cut),
            count,
            length,
            cut[0] if len(cut[0]) <= SHOWN else f"{cut[0][:SHOWN]}...",
        )


def embed_regions(model: CLOC, state: ImageState, prompts: Mapping[str, Tensor]) -> Tensor:
    """Embed what any number of prompts point at.

    Args:
        model: A model in eval mode.
        state: Encoded images, B of them.
        prompts: (B, R, ...) prompts by kind, as `CLOC.encode_regions` takes them: `{"box": boxes}`.

    Returns:
        (B, R, D) float32 of unit length, kind after kind in the order given.

    Raises:
        UserError: If there is no such kind.
    """
    size = max(1, most_floats(state.image_tokens.device) // _floats_per_prompt(model, state))
    chunks = [
        F.normalize(model.encode_regions(state, {kind: chunk}).float(), dim=-1)
        for kind, given in prompts.items()
        for chunk in given.split(size, dim=1)
        if chunk.shape[1]
    ]
    if not chunks:
        return torch.zeros(len(state.image_tokens), 0, model.embed_dim, device=model.device)
    return torch.cat(chunks, dim=1)


def most_floats(device: torch.device) -> int:
    """Numbers that the largest tensor of a chunk may have on a device."""
    return MAX_FLOATS.get(device.type, MAX_FLOATS["other"])


def _floats_per_prompt(model: CLOC, state: ImageState) -> int:
    """Size of the largest tensor that one prompt per image makes the model allocate."""
    num_images, num_tokens, tower_width = state.image_tokens.shape
    config = model.prompter.config
    width = config.width or tower_width
    if config.regions == "roialign":
        per_image = ROI_SIZE**2 * tower_width
    elif config.readout == "mean" and not runs_triton(state.image_tokens.device):
        # Each prompt has N + K outputs of its own, and a hidden layer of them, which a kernel never holds.
        per_image = int(num_tokens * width * max(config.mlp_ratio, 1))
    else:
        per_image = max(4 * num_tokens, int(2 * width * max(config.mlp_ratio, 1)))
    return num_images * per_image


def _chunks(items: Sequence[str], size: int) -> list[Sequence[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
