"""From a choice of towers and a Prompter to a CLOC with its starting weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from open_cloc.config import call_with_options, from_dict, lookup, parse_spec
from open_cloc.devices import choose_device
from open_cloc.errors import UserError
from open_cloc.model.cloc import CLOC
from open_cloc.model.prompter import PrompterConfig
from open_cloc.model.towers import image_tower_of
from open_cloc.model.towers.open_clip import written_towers
from open_cloc.model.towers.tower import StartingTowers
from open_cloc.texts import TextCleaning

logger = logging.getLogger(__name__)

# What can stand before the colon of a towers spec: a function of what stands behind it, and of options.
TOWERS: dict[str, str | Callable[..., StartingTowers]] = {
    "open_clip": "open_cloc.model.towers.open_clip:open_clip_towers",
    "timm": "open_cloc.model.towers.joined:joined_towers",
    "folder": "open_cloc.model.towers.folder:saved_towers",
}
SIGMOID_START = {"init_logit_scale": float(torch.tensor(10.0).log()), "init_logit_bias": -10.0}


@dataclass(frozen=True)
class ModelConfig:
    """Which towers to start from, and the Prompter on top of them.

    Attributes:
        towers: KIND:WHAT,option=value, such as `open_clip:ViT-B-16,pretrained=openai`,
            `timm:NAME,text=FOLDER` or `folder:PATH`. A name alone is open_clip's; a table is its `model_cfg`.
        image_size: Pixels a side; 0 keeps the towers' own.
        resize_mode: `longest` or `squash`; see `CanvasConfig`.
        sigmoid: Start the logit scale at 10 and the bias at -10, as the sigmoid losses need.
        lower_case: Lower-case all texts, as the paper does; saved with the model, for all who ask it later.
        prompter: The Prompter.
    """

    towers: str | Mapping[str, Any] = ""
    image_size: int = 0
    resize_mode: Literal["longest", "squash"] = "longest"
    sigmoid: bool = False
    lower_case: bool = True
    prompter: PrompterConfig = field(default_factory=PrompterConfig)


def create_model(
    towers: str | Mapping[str, Any],
    *,
    prompter: PrompterConfig | Mapping[str, Any] | None = None,
    image_size: int = 0,
    resize_mode: Literal["longest", "squash"] = "longest",
    sigmoid: bool = False,
    lower_case: bool = True,
    device: str | torch.device | None = None,
    **options: Any,
) -> CLOC:
    """Make a CLOC of towers by name, to look into, to use as it starts, or to train in a loop of your own.

    Until it is trained, its Prompter is as it was drawn. With a CLIP's weights and
    `prompter={"pooled_residual": True}`, regions start as the CLIP's own tokens, pooled inside the box.

    Args:
        towers: As `ModelConfig.towers`, such as `ViT-B-16`, `timm:NAME` or `folder:PATH`.
        prompter: The Prompter's options, as a `PrompterConfig` or its dict.
        image_size: Pixels a side; 0 keeps the towers' own.
        resize_mode: `longest` or `squash`; see `CanvasConfig`.
        sigmoid: Start the logit scale and bias as the sigmoid losses need.
        lower_case: Lower-case all texts.
        device: None takes a GPU if there is one, else the CPU.
        **options: Options of the towers, such as `pretrained="openai"`, or `text=FOLDER` for timm's.

    Returns:
        The model in eval mode.

    Raises:
        UserError: On an unknown name or option, weights that do not fit, or an unknown device.
        MissingFileError: If a local file or folder is missing.
    """
    if options and not isinstance(towers, str):
        raise UserError(f"a written-out model_cfg takes no options of towers; got {', '.join(options)}")
    spec = f"{towers}{''.join(f',{n}={v}' for n, v in options.items())}" if options else towers
    config = ModelConfig(
        towers=spec,
        image_size=image_size,
        resize_mode=resize_mode,
        sigmoid=sigmoid,
        lower_case=lower_case,
        prompter=from_dict(PrompterConfig, prompter or {}, "prompter"),
    )
    target = choose_device(device)
    return build_model(config).to(target).eval()


def build_model(config: ModelConfig, *, load: bool = True) -> CLOC:
    """Build the model that a recipe asks for, on the CPU.

    Args:
        config: The recipe's.
        load: Read its starting weights; what is drawn stays where others will replace them anyway.

    Raises:
        UserError: On an unknown name, or weights that do not fit.
        MissingFileError: If a local file or folder is missing.
    """
    start = open_towers(config.towers)
    prompter: Any = start.prompter
    texts = from_dict(TextCleaning, start.texts or {"lower_case": config.lower_case}, "texts")
    if prompter is None:
        start, prompter = _with_choices(start, config), config.prompter
    elif from_dict(PrompterConfig, prompter, "prompter") != config.prompter:
        logger.warning("taking the Prompter that %s was trained with, not the recipe's", config.towers)
    if texts.lower_case != config.lower_case:
        logger.warning(
            "taking lower_case=%s, which %s was trained with, not the recipe's",
            texts.lower_case,
            config.towers,
        )
    model = CLOC(model_cfg=start.model_cfg, prompter=prompter, preprocess=start.canvas, texts=texts)
    if load:
        start.load(model)
        if start.is_clip:
            start_from_own_projection(model)
    return model


def names_towers(text: str) -> bool:
    """Whether a text is KIND:WHAT of towers, and no folder."""
    return text.partition(":")[0] in TOWERS and ":" in text and not Path(text).exists()


def open_towers(towers: str | Mapping[str, Any]) -> StartingTowers:
    """Look up a choice of towers.

    Args:
        towers: As `ModelConfig.towers`.

    Raises:
        UserError: If there is none, its kind or name is unknown, or an option is wrong.
        MissingFileError: If a local file or folder is missing.
    """
    if not towers:
        kinds = ", ".join(TOWERS)
        raise UserError(f"no towers: expected KIND:WHAT such as open_clip:ViT-B-16; kinds: {kinds}")
    if not isinstance(towers, str):
        return written_towers(towers)
    kind, what, options = parse_spec(towers, TOWERS)
    if kind not in TOWERS and not what and ":" not in kind:
        kind, what = "open_clip", kind
    return call_with_options(lookup(TOWERS, kind, "kind of towers"), what, options=options, where=towers)


def _with_choices(start: StartingTowers, config: ModelConfig) -> StartingTowers:
    """Towers with what a `ModelConfig` says of image size, logit scale and canvas."""
    model_cfg = start.model_cfg | (SIGMOID_START if config.sigmoid else {})
    if config.image_size:
        model_cfg["vision_cfg"] = {**model_cfg["vision_cfg"], "image_size": config.image_size}
    size = model_cfg.get("vision_cfg", {}).get("image_size", 224)
    canvas = {
        **start.canvas,
        "image_size": (size, size) if isinstance(size, int) else tuple(size),
        "fill": tuple(round(255 * mean) for mean in start.canvas["mean"]),
        "resize_mode": config.resize_mode,
    }
    return replace(start, model_cfg=model_cfg, canvas=canvas)


def start_from_own_projection(model: CLOC) -> None:
    """Let region embeddings start in the image embedding's space, by the tower's own projection."""
    own = image_tower_of(model.clip.visual).own_projection()
    prompter = model.prompter
    target = prompter.project_pooled if hasattr(prompter, "project_pooled") else prompter.project
    if own is not None and own.shape == target.weight.shape:
        target.weight.data.copy_(own)
