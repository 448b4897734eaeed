"""Build open_clip's model from its config, ready for CLOC.

A model is described by open_clip's own `model_cfg`, so that what is saved never depends on a name in a
registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, get_type_hints

import open_clip
import timm
from torch import nn

from open_cloc.config import convert
from open_cloc.errors import MissingFileError, UserError, first_line
from open_cloc.model.foreign import open_safely
from open_cloc.model.towers import image_tower_of
from open_cloc.model.towers.siglip_network import register_named
from open_cloc.model.towers.text_dropout import OPTION, check_dropout, set_dropout
from open_cloc.model.towers.timm import allow_any_image_size, fit_projection
from open_cloc.model.towers.tokenizer import check_tokenizer

# Longest text in tokens: beyond all text towers, and short enough to be padded in memory.
MAX_CONTEXT = 2**16
# What a config may give to an activation or a norm.
PART_OPTIONS: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    "act_kwargs": {"approximate": lambda value: value in ("none", "tanh")},
    "norm_kwargs": {"eps": lambda value: isinstance(value, float) and 0 < value < 1},
}


def build_clip(model_cfg: Mapping[str, Any]) -> nn.Module:
    """Make an untrained open_clip model with separate `visual` and `text` towers.

    Args:
        model_cfg: open_clip's model config: `embed_dim`, `vision_cfg`, `text_cfg`, ...

    Raises:
        UserError: If the config is not one that open_clip understands, or its image tower gives no grid of
            tokens.
        MissingFileError: If it names a text tower's folder that holds no config.
    """
    cfg = check_model_cfg(model_cfg)
    dropout = _take_dropout(cfg["text_cfg"])
    try:
        clip = open_clip.model.CustomTextCLIP(**cfg, nonscalar_logit_scale=True)
    except UserError:
        raise
    # A config may say anything, and open_clip checks little of it.
    except Exception as error:
        reason = first_line(error)
        if isinstance(error, KeyError):  # its table of Hugging Face architectures
            reason = f"text towers of type {error} are not among those it knows"
        raise UserError(f"open_clip cannot build this model_cfg: {reason}") from error
    if cfg["text_cfg"].get("hf_model_name"):
        set_dropout(clip.text, dropout)
    allow_any_image_size(clip.visual)
    fit_projection(clip.visual)
    # Refuses a tower that gives no grid of tokens.
    image_tower_of(clip.visual)
    return clip


def check_model_cfg(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config that open_clip builds without downloading weights and without foreign code.

    Raises:
        UserError: If a value is of another type than open_clip's, or asks for what a CLOC cannot do.
        MissingFileError: If it names a text tower's folder that holds no config.
    """
    cfg = deepcopy(dict(model_cfg))
    cfg.pop("custom_text", None)
    for part in ("embed_dim", "vision_cfg", "text_cfg"):
        if part not in cfg:
            raise UserError(f"model_cfg lacks {part!r}; got keys {sorted(cfg)!s:.200}")
    cfg["embed_dim"] = convert(int, cfg["embed_dim"], "model_cfg.embed_dim")
    for name, hint in (("quick_gelu", bool), ("init_logit_scale", float), ("init_logit_bias", float | None)):
        if name in cfg:
            cfg[name] = convert(hint, cfg[name], f"model_cfg.{name}")
    vision = cfg["vision_cfg"] = _check_part(open_clip.CLIPVisionCfg, cfg["vision_cfg"], "vision_cfg")
    text = cfg["text_cfg"] = _check_part(open_clip.CLIPTextCfg, cfg["text_cfg"], "text_cfg")
    if vision.get("patch_dropout"):
        raise UserError("patch_dropout must be 0: regions need every image token")
    if "multimodal_cfg" in cfg:
        raise UserError("CoCa models are not supported: their captioning decoder has no place in CLOC")
    context = text.get("context_length")
    if context is not None and not 3 <= context <= MAX_CONTEXT:
        raise UserError(f"model_cfg.text_cfg.context_length must lie in [3, {MAX_CONTEXT}]; got {context}")
    check_tokenizer(text)
    network = vision.get("timm_model_name")
    register_named(network or "")
    # timm would go to the hub, or to a folder, for some names.
    if network and (not timm.is_model(network) or set(network) & set("/:\\")):
        raise UserError(f"open_clip cannot build this model_cfg: timm has no network {network!r:.60}")
    vision["timm_model_pretrained"] = False
    if text.get("hf_model_name"):
        text["hf_model_pretrained"] = False
        check_text_tower(text["hf_model_name"])
    return cfg


def _check_part(cls: type, part: Any, name: str) -> dict[str, Any]:
    """The values of a tower's config by open_clip's own annotations; keys that it lacks it names itself."""
    if not isinstance(part, Mapping):
        raise UserError(f"model_cfg.{name} must be a table of keys and values; got {part!r:.60}")
    hints, checked = get_type_hints(cls), {}
    for key, value in part.items():
        where = f"model_cfg.{name}.{key}"
        # open_clip's own configs say null for what their kind of tower has not.
        checked[key] = value if value is None else convert(hints.get(key, Any), value, where)
        for option, given in (checked[key] or {}).items() if key in PART_OPTIONS else ():
            if option not in PART_OPTIONS[key] or not PART_OPTIONS[key][option](given):
                raise UserError(f"{where} takes no {option} of {given!r:.60}")
    return checked


def _take_dropout(text_cfg: dict[str, Any]) -> float:
    """Our own field, which open_clip does not know, taken out of a text tower's config.

    Raises:
        UserError: If it is no chance, or the tower has no dropout.
    """
    dropout = check_dropout(text_cfg.pop(OPTION, 0.0))
    if dropout and not text_cfg.get("hf_model_name"):
        raise UserError(f"dropout of {dropout:g} asked for, but this model has no Hugging Face text tower")
    return dropout


def require_config(text_tower: str) -> None:
    """Refuse a Hugging Face text tower's folder without a config; a name of the hub's passes.

    Raises:
        MissingFileError: If it is such a folder.
    """
    if Path(text_tower).is_dir() and not (Path(text_tower) / "config.json").is_file():
        raise MissingFileError(f"text tower folder {text_tower} holds no config.json")


def check_text_tower(name: str) -> Any:
    """The config of a Hugging Face text tower, read without its code.

    open_clip opens it again by itself. Where the library knows the type, it takes its own code by itself.

    Args:
        name: A folder, or a name on the hub.

    Raises:
        MissingFileError: If the folder holds no config.
        UserError: If the library does not know the type, or the config asks for other folders or code.
    """
    from transformers import AutoConfig

    require_config(name)
    return open_safely(AutoConfig, name)
