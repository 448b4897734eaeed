"""Build open_clip's model from its config, ready for CLOC.

A model is described by open_clip's own `model_cfg`, so that what is saved never depends on a name in a
registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
from torch import nn

from open_cloc.errors import MissingFileError, UserError
from open_cloc.model.towers import image_tower_of
from open_cloc.model.towers.timm import allow_any_image_size, fit_projection


def build_clip(model_cfg: Mapping[str, Any]) -> nn.Module:
    """Make an untrained open_clip model with separate `visual` and `text` towers.

    Args:
        model_cfg: open_clip's model config: `embed_dim`, `vision_cfg`, `text_cfg`, ...

    Raises:
        UserError: If the config is not one that open_clip understands, or its image tower gives no grid of
            tokens.
        MissingFileError: If it names a text tower's folder that holds no config.
    """
    cfg = _checked(model_cfg)
    try:
        clip = open_clip.model.CustomTextCLIP(**cfg, nonscalar_logit_scale=True)
    except (TypeError, KeyError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        if isinstance(error, KeyError):  # its table of Hugging Face architectures
            reason = f"text towers of type {error} are not among those it knows"
        raise UserError(f"open_clip cannot build this model_cfg: {reason}") from error
    allow_any_image_size(clip.visual)
    fit_projection(clip.visual)
    # Refuses a tower that gives no grid of tokens.
    image_tower_of(clip.visual)
    return clip


def _checked(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that open_clip builds without downloading weights."""
    cfg = deepcopy(dict(model_cfg))
    cfg.pop("custom_text", None)
    for part in ("embed_dim", "vision_cfg", "text_cfg"):
        if part not in cfg:
            raise UserError(f"model_cfg lacks {part!r}; got keys {sorted(cfg)}")
    if cfg["vision_cfg"].get("patch_dropout"):
        raise UserError("patch_dropout must be 0: regions need every image token")
    if "multimodal_cfg" in cfg:
        raise UserError("CoCa models are not supported: their captioning decoder has no place in CLOC")
    cfg["vision_cfg"]["timm_model_pretrained"] = False
    if cfg["text_cfg"].get("hf_model_name"):
        cfg["text_cfg"]["hf_model_pretrained"] = False
        require_config(cfg["text_cfg"]["hf_model_name"])
    return cfg


def require_config(text_tower: str) -> None:
    """Refuse a Hugging Face text tower's folder without a config; a name of the hub's passes.

    Raises:
        MissingFileError: If it is such a folder.
    """
    if Path(text_tower).is_dir() and not (Path(text_tower) / "config.json").is_file():
        raise MissingFileError(f"text tower folder {text_tower} holds no config.json")
