"""Towers that open_clip knows by name or that are written in its config, and weights in its formats."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import open_clip

from open_cloc.canvas import CanvasConfig
from open_cloc.config import from_dict
from open_cloc.errors import MissingFileError, UserError, first_line
from open_cloc.files import read_json
from open_cloc.model.limits import require_sound_weights
from open_cloc.model.towers.build import check_model_cfg
from open_cloc.model.towers.text_dropout import with_dropout
from open_cloc.model.towers.tower import OPENAI_CANVAS, StartingTowers
from open_cloc.model.weights import read_state


def open_clip_towers(name: str, *, pretrained: str = "", text_dropout: float = 0.0) -> StartingTowers:
    """`open_clip:NAME`: an architecture of open_clip.

    Args:
        name: open_clip's name, such as `ViT-B-16`, or a JSON file with a `model_cfg`, as open_clip has them.
        pretrained: One of open_clip's tags, which downloads weights, or a local weights file; empty starts
            untrained.
        text_dropout: Dropout of a Hugging Face text tower in training, whatever its own config says.

    Raises:
        UserError: If open_clip does not know the name or the tag.
        MissingFileError: If a JSON file is not there, or the weights cannot be fetched.
    """
    model_cfg = _read_cfg(Path(name)) if name.endswith(".json") else architecture_cfg(name)
    model_cfg = with_dropout(model_cfg, text_dropout)
    if not pretrained:
        return written_towers(model_cfg)
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if not tag:
        return trained_towers(model_cfg, _weights_file(name, pretrained))
    # OpenAI's weights need QuickGELU: the tag knows it, the architecture's name does not.
    model_cfg["quick_gelu"] = tag.get("quick_gelu", model_cfg.get("quick_gelu", False))
    return trained_towers(model_cfg, _fetched(name, pretrained, tag), tag)


def _read_cfg(path: Path) -> Any:
    """A config of open_clip's, alone or as the `model_cfg` of a file that holds more."""
    found = read_json(path)
    return found["model_cfg"] if isinstance(found, dict) and "model_cfg" in found else found


def _fetched(name: str, pretrained: str, tag: Mapping[str, Any]) -> Path:
    """The weights of a tag, downloaded unless they are in the cache."""
    try:
        return Path(open_clip.download_pretrained(dict(tag)))
    except Exception as error:  # of the hub, of its transport, of the disk
        raise MissingFileError(
            f"weights {pretrained!r} of {name} are not in the cache, nor to be fetched: {first_line(error)}"
        ) from error


def architecture_cfg(name: str) -> dict[str, Any]:
    """open_clip's config of an architecture.

    Raises:
        UserError: If open_clip does not know the name; lists the nearest ones.
    """
    cfg = open_clip.get_model_config(name)
    if cfg is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=5, cutoff=0.3)
        raise UserError(f"unknown architecture {name!r}; open_clip's nearest names: {', '.join(near)}")
    return cfg


def _weights_file(name: str, pretrained: str) -> Path:
    path = Path(pretrained)
    if path.is_dir():
        raise UserError(f"pretrained {pretrained!r} is a folder: name it alone, as folder:{pretrained}")
    if not path.is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise UserError(
            f"pretrained {pretrained!r} is neither a local file nor a tag of {name}; its tags: {tags}"
        )
    return path


def written_towers(model_cfg: Mapping[str, Any]) -> StartingTowers:
    """Towers of a written-out config, untrained.

    Raises:
        UserError: If it is no model config of open_clip's.
    """
    check_model_cfg(model_cfg)
    return StartingTowers(_copy(model_cfg), OPENAI_CANVAS)


def _copy(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in model_cfg.items()}


def trained_towers(
    model_cfg: Mapping[str, Any], weights: Path, preprocess: Mapping[str, Any] | None = None
) -> StartingTowers:
    """Towers that start from an open_clip checkpoint.

    Args:
        model_cfg: open_clip's config of the towers.
        weights: The checkpoint.
        preprocess: What open_clip says of their input: `mean`, `std`, `interpolation`; others are ignored.

    Raises:
        UserError: If one of them is not what it must be.
    """
    check_model_cfg(model_cfg)
    given = {name: (preprocess or {})[name] for name in OPENAI_CANVAS if name in (preprocess or {})}
    from_dict(CanvasConfig, given, "preprocess_cfg")
    load = partial(load_checkpoint, path=weights)
    return StartingTowers(_copy(model_cfg), {**OPENAI_CANVAS, **given}, load, is_clip=True)


def load_checkpoint(model: Any, path: Path) -> None:
    """open_clip's own loader: converts old layouts and resizes position embeddings, then loads strictly.

    Args:
        model: The CLOC whose `clip` is filled.
        path: The checkpoint.

    Raises:
        UserError: If it is broken, or of another architecture.
    """
    from open_clip.factory import load_checkpoint as load

    if path.suffix not in (".npz", ".npy"):
        require_sound_weights(read_state(path), str(path))
    try:
        load(model.clip, str(path), strict=True)
    # open_clip asserts, looks up and reshapes what it expects to find.
    except Exception as error:
        said = " ".join(str(error).split())
        raise UserError(f"weights of another architecture: {path}: {said:.200}") from error
