"""A timm image tower joined to a Hugging Face text tower by linear projections, each with its own weights."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import timm
from torch import Tensor, nn

from open_cloc.errors import MissingFileError, UserError
from open_cloc.model.foreign import open_model, quietly
from open_cloc.model.towers.build import check_text_tower
from open_cloc.model.towers.text_dropout import with_dropout
from open_cloc.model.towers.tower import StartingTowers
from open_cloc.model.weights import load_in_order, load_strictly, read_state

# First part of the names of tensors that have no place in a tower.
CLASSIFIERS = ("classifier", "head", "fc")


def joined_towers(
    name: str,
    *,
    text: str,
    weights: str = "",
    weights_match: Literal["name", "order"] = "name",
    embed_dim: int = 256,
    context_length: int = 77,
    text_dropout: float = 0.0,
) -> StartingTowers:
    """`timm:NAME,text=FOLDER`: two towers that were not trained together.

    Args:
        name: Any network of timm that gives a grid of tokens, ViT or convolutional.
        text: Folder of a Hugging Face text tower: config, tokenizer and, if it has them, weights.
        weights: Local weights file for the image tower; empty starts it untrained.
        weights_match: `name`, or `order` for a file with other names in the same order.
        embed_dim: D of the shared space.
        context_length: Longest text in tokens.
        text_dropout: Dropout of the text tower in training, whatever its own config says.

    Raises:
        UserError: If timm does not know the name.
        MissingFileError: If the text tower's folder or its config is not there.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.3)
        raise UserError(f"unknown timm model {name!r}; nearest names: {', '.join(near)}")
    if not Path(text).is_dir():
        raise MissingFileError(f"text tower folder not found: {text}")
    model_cfg = {
        "embed_dim": embed_dim,
        "vision_cfg": _vision_cfg(name),
        "text_cfg": _text_cfg(text, embed_dim, context_length),
    }
    load = partial(_load, weights=weights, match=weights_match, text=text)
    return StartingTowers(with_dropout(model_cfg, text_dropout), _canvas(name), load)


def _vision_cfg(name: str) -> dict[str, Any]:
    return {"image_size": 224, "timm_model_name": name, "timm_pool": "avg", "timm_proj": "linear"}


def _text_cfg(folder: str, embed_dim: int, context_length: int) -> dict[str, Any]:
    width = getattr(check_text_tower(folder), "hidden_size", None)
    return {
        "hf_model_name": folder,
        "hf_tokenizer_name": folder,
        # A shared space as wide as the text tower's is the text tower's: nothing to project.
        "hf_proj_type": None if width == embed_dim else "linear",
        "hf_pooler_type": "mean_pooler",
        "context_length": context_length,
    }


def _canvas(name: str) -> dict[str, Any]:
    cfg = timm.get_pretrained_cfg(name)
    interpolation = cfg.interpolation if cfg.interpolation == "bilinear" else "bicubic"
    return {"mean": cfg.mean, "std": cfg.std, "interpolation": interpolation}


def _load(model: Any, *, weights: str, match: str, text: str) -> None:
    if weights:
        load_trunk(model.clip.visual.trunk, weights, match)
    if any(Path(text).glob("*.safetensors")) or any(Path(text).glob("*.bin")):
        load_text_tower(model.clip.text.transformer, text)


def load_trunk(trunk: nn.Module, path: str, match: str) -> None:
    """Fill a timm network without its classifier from a file.

    Args:
        trunk: The network.
        path: Weights, of a classifier or not.
        match: `name`, or `order` for a file with other names in the same order.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If it is of another architecture.
    """
    state = read_state(path)
    if match == "order":
        load_in_order(trunk, _without_last(state, trunk), path)
    else:
        load_strictly(trunk, _without_classifier(state, trunk), path)


def _without_last(state: Mapping[str, Tensor], trunk: nn.Module) -> dict[str, Tensor]:
    """The tensors of a file that the trunk has a place for: the classifier comes last in such files."""
    size = sum(not name.endswith("num_batches_tracked") for name in trunk.state_dict())
    kept = [name for name in state if not name.endswith("num_batches_tracked")][:size]
    return {name: state[name] for name in kept}


def _without_classifier(state: Mapping[str, Tensor], trunk: nn.Module) -> dict[str, Tensor]:
    own = set(trunk.state_dict())
    return {n: tensor for n, tensor in state.items() if n in own or n.split(".")[0] not in CLASSIFIERS}


def load_text_tower(transformer: nn.Module, folder: str) -> None:
    """Fill a text tower with the weights of its folder.

    Raises:
        UserError: If they are of another architecture.
    """
    from transformers import AutoModel

    with quietly():  # a pooler in the file that this tower lacks is no news
        loaded, report = open_model(
            AutoModel, Path(folder), add_pooling_layer=False, output_loading_info=True
        )
    if missing := sorted(report["missing_keys"]):  # transformers would start them at random
        raise UserError(
            f"weights of another architecture: {folder} lack {len(missing)} tensors such as {missing[0]!r}"
        )
    load_strictly(transformer, loaded.state_dict(), folder)
