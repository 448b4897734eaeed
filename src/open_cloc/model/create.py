"""From a `ModelConfig`, what a recipe says about the model, to a CLOC with its starting weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from torch import nn

from open_cloc.canvas import OPENAI_MEAN, OPENAI_STD
from open_cloc.errors import MissingFileError, UserError
from open_cloc.model import towers, weights
from open_cloc.model.cloc import CLOC
from open_cloc.model.prompter import PrompterConfig

logger = logging.getLogger(__name__)

OPEN_CLIP_CONFIG = "open_clip_config.json"


@dataclass(frozen=True)
class ModelConfig:
    """Which towers to start from, and the Prompter on top of them.

    Give one of: `architecture` (an open_clip name), `model_cfg` (open_clip's config written out),
    `timm_model` with `text_tower`, or a folder as `pretrained` alone.

    Attributes:
        architecture: open_clip's name, such as `ViT-B-16`.
        pretrained: An open_clip tag, a local weights file, or a local folder in open_clip's or CLOC's layout.
        model_cfg: open_clip's config as a dict.
        timm_model: Any timm image tower, ViT or convolutional.
        text_tower: Folder of a Hugging Face text tower: config, tokenizer and, if it has them, weights.
        image_weights: Local weights file for the timm tower.
        image_weights_match: `name`, or `order` for a file with other names in the same order.
        embed_dim: D, for joined towers.
        context_length: Longest text in tokens, for joined towers.
        image_size: Pixels a side; 0 keeps the architecture's.
        resize_mode: `longest` or `squash`; see `CanvasConfig`.
        sigmoid: Start the logit scale at 10 and the bias at -10, as the sigmoid losses need.
        prompter: The Prompter.
    """

    architecture: str = ""
    pretrained: str = ""
    model_cfg: Mapping[str, Any] = field(default_factory=dict)
    timm_model: str = ""
    text_tower: str = ""
    image_weights: str = ""
    image_weights_match: Literal["name", "order"] = "name"
    embed_dim: int = 256
    context_length: int = 77
    image_size: int = 0
    resize_mode: Literal["longest", "squash"] = "longest"
    sigmoid: bool = False
    prompter: PrompterConfig = field(default_factory=PrompterConfig)


def create_model(config: ModelConfig) -> CLOC:
    """Build the model that a recipe asks for, with its starting weights.

    Raises:
        UserError: On an unknown name, or weights that do not fit.
        MissingFileError: If a local file or folder is missing.
    """
    folder = Path(config.pretrained) if config.pretrained else None
    if folder is not None and (folder / weights.CONFIG_NAME).is_file() and not _is_open_clip(folder):
        model = CLOC.from_pretrained(str(folder))
        if model.prompter.config != config.prompter:
            logger.warning("taking the Prompter that %s was trained with, not the recipe's", folder)
        return model
    model_cfg, preprocess, checkpoint = _resolve(config)
    if config.image_size:
        model_cfg["vision_cfg"]["image_size"] = config.image_size
    if config.sigmoid:
        model_cfg |= {"init_logit_scale": float(torch.tensor(10.0).log()), "init_logit_bias": -10.0}
    size = model_cfg["vision_cfg"].get("image_size", 224)
    preprocess["image_size"] = (size, size) if isinstance(size, int) else tuple(size)
    preprocess["fill"] = tuple(round(255 * m) for m in preprocess["mean"])
    preprocess["resize_mode"] = config.resize_mode
    model = CLOC(model_cfg=model_cfg, prompter=config.prompter, preprocess=preprocess)
    if checkpoint is not None:
        _load_open_clip(model.clip, checkpoint)
    if config.timm_model:
        _load_joined_towers(model, config)
    if checkpoint is not None:
        start_from_own_projection(model)
    return model


def _is_open_clip(folder: Path) -> bool:
    return (folder / OPEN_CLIP_CONFIG).is_file()


def _resolve(config: ModelConfig) -> tuple[dict[str, Any], dict[str, Any], Path | None]:
    """(model_cfg, mean/std/interpolation, file with the weights of both towers)."""
    preprocess: dict[str, Any] = {"mean": OPENAI_MEAN, "std": OPENAI_STD, "interpolation": "bicubic"}
    named = [name for name in ("architecture", "model_cfg", "timm_model") if getattr(config, name)]
    if len(named) > 1:
        raise UserError(f"give one of architecture, model_cfg, timm_model; got {' and '.join(named)}")
    if config.timm_model:
        return *_resolve_joined(config), None
    if not named:
        return _resolve_folder(Path(config.pretrained), preprocess)
    model_cfg = (
        towers.architecture_cfg(config.architecture) if config.architecture else _copy(config.model_cfg)
    )
    if not config.pretrained:
        return model_cfg, preprocess, None
    tag = (
        open_clip.get_pretrained_cfg(config.architecture, config.pretrained) if config.architecture else None
    )
    if tag:
        # OpenAI's weights need QuickGELU: the tag knows it, the architecture's name does not.
        model_cfg["quick_gelu"] = tag.get("quick_gelu", model_cfg.get("quick_gelu", False))
        preprocess |= {k: tag[k] for k in ("mean", "std", "interpolation") if k in tag}
        return model_cfg, preprocess, Path(open_clip.download_pretrained(tag))
    path = Path(config.pretrained)
    if path.is_dir():
        return _resolve_folder(path, preprocess)
    if not path.is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(config.architecture)) or "none"
        raise UserError(
            f"pretrained {config.pretrained!r} is neither a local file or folder nor a tag of "
            f"{config.architecture or 'this model_cfg'}; its tags: {tags}"
        )
    return model_cfg, preprocess, path


def _copy(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in model_cfg.items()}


def _resolve_folder(
    folder: Path, preprocess: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], Path | None]:
    """A folder in open_clip's layout: `open_clip_config.json` beside the weights."""
    if not str(folder) or not _is_open_clip(folder):
        raise MissingFileError(
            f"model {str(folder)!r}: expected an open_clip architecture, or a folder that holds "
            f"{OPEN_CLIP_CONFIG} or CLOC's {weights.CONFIG_NAME}"
        )
    config = weights.read_json(folder / OPEN_CLIP_CONFIG)
    found = [folder / name for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")]
    existing = [path for path in found if path.is_file()]
    if not existing:
        raise MissingFileError(f"{folder} holds no weights; expected {' or '.join(p.name for p in found)}")
    given = config.get("preprocess_cfg", {})
    preprocess |= {k: given[k] for k in ("mean", "std", "interpolation") if k in given}
    return config["model_cfg"], preprocess, existing[0]


def _resolve_joined(config: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    import timm

    if not config.text_tower:
        raise UserError(f"timm_model {config.timm_model!r} needs a text_tower folder")
    model_cfg = towers.joined_towers_cfg(
        config.timm_model,
        config.text_tower,
        embed_dim=config.embed_dim,
        image_size=config.image_size or 224,
        context_length=config.context_length,
    )
    pretrained_cfg = timm.get_pretrained_cfg(config.timm_model)
    interpolation = pretrained_cfg.interpolation if pretrained_cfg.interpolation == "bilinear" else "bicubic"
    return model_cfg, {
        "mean": pretrained_cfg.mean,
        "std": pretrained_cfg.std,
        "interpolation": interpolation,
    }


def _load_open_clip(clip: nn.Module, path: Path) -> None:
    """open_clip's own loader: converts old layouts and resizes position embeddings, then loads strictly."""
    from open_clip.factory import load_checkpoint

    if path.suffix not in (".npz", ".npy"):
        weights.read_state(path)  # a clear error for a broken file
    try:
        load_checkpoint(clip, str(path), strict=True)
    except (RuntimeError, KeyError, AttributeError) as error:
        first_line = str(error).strip().splitlines()[:2]
        raise UserError(f"weights of another architecture: {path}: {' '.join(first_line)}") from error


def _load_joined_towers(model: CLOC, config: ModelConfig) -> None:
    if config.image_weights:
        trunk = model.clip.visual.trunk
        state = weights.read_state(config.image_weights)
        if config.image_weights_match == "order":
            # The classifier comes last in such files and has no place in the tower.
            size = sum(not name.endswith("num_batches_tracked") for name in trunk.state_dict())
            kept = [name for name in state if not name.endswith("num_batches_tracked")][:size]
            weights.load_in_order(trunk, {name: state[name] for name in kept}, config.image_weights)
        else:
            own = set(trunk.state_dict())
            head = {n for n in state if n.split(".")[0] in ("classifier", "head", "fc") and n not in own}
            state = {name: tensor for name, tensor in state.items() if name not in head}
            weights.load_strictly(trunk, state, config.image_weights)
    if any(Path(config.text_tower).glob("*.safetensors")) or any(Path(config.text_tower).glob("*.bin")):
        import transformers
        from transformers import AutoModel

        transformers.logging.set_verbosity_error()  # a pooler in the file that this tower lacks is no news
        loaded, report = AutoModel.from_pretrained(
            config.text_tower, add_pooling_layer=False, output_loading_info=True
        )
        if missing := sorted(report["missing_keys"]):  # transformers would start them at random
            raise UserError(
                f"weights of another architecture: {config.text_tower} lack {len(missing)} tensors such as "
                f"{missing[0]!r}"
            )
        weights.load_strictly(model.clip.text.transformer, loaded.state_dict(), config.text_tower)


def start_from_own_projection(model: CLOC) -> None:
    """Let region embeddings start in the image embedding's space, by the tower's own projection."""
    own = towers.own_projection(model.clip.visual)
    prompter = model.prompter
    target = prompter.project_pooled if hasattr(prompter, "project_pooled") else prompter.project
    if own is not None and own.shape == target.weight.shape:
        target.weight.data.copy_(own)
