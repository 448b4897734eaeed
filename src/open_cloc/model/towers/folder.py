"""Models in a local folder: open_clip's layout, transformers' CLIPModel and SiglipModel, or a whole CLOC."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from open_cloc.canvas import CanvasConfig
from open_cloc.config import from_dict
from open_cloc.errors import MissingFileError, UserError
from open_cloc.files import read_json
from open_cloc.model.cloc import CLOC
from open_cloc.model.limits import no_larger_than, read_header
from open_cloc.model.towers.build import build_clip, check_model_cfg
from open_cloc.model.towers.hugging_face import from_hugging_face, state_from_hugging_face
from open_cloc.model.towers.open_clip import trained_towers
from open_cloc.model.towers.siglip import siglip_model_cfg, state_from_siglip
from open_cloc.model.towers.tower import OPENAI_CANVAS, StartingTowers
from open_cloc.model.weights import (
    CONFIG_NAME,
    TEXT_TOWER_FOLDER,
    WEIGHTS_NAME,
    load_strictly,
    read_config,
    read_folder_state,
    read_state,
    require_fit,
)

# Of weights by transformers' names, to open_clip's.
Rename = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]

# Of SigLIP's own processors.
SIGLIP_CANVAS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic"}
OPEN_CLIP_CONFIG = "open_clip_config.json"
# Which of a folder's files tell that it holds what open_clip's config names.
OWN_TEXTS = {
    "hf_model_name": ("config.json",),
    "hf_tokenizer_name": ("tokenizer.json", "tokenizer_config.json"),
}
# Of transformers, with what Pillow's numbers of its `resample` mean.
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
RESAMPLING = {2: "bilinear", 3: "bicubic"}
TRANSFORMERS_WEIGHTS, TRANSFORMERS_PARTS = (WEIGHTS_NAME, "pytorch_model.bin"), "model-*-of-*.safetensors"
CLIP_WORDS = 49408
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def saved_towers(path: str) -> StartingTowers:
    """`folder:PATH`: a folder of open_clip's, of transformers' `CLIPModel` or `SiglipModel`, or of a CLOC.

    Args:
        path: The folder. A CLOC is taken whole, with its Prompter and preprocessing; of a checkpoint of
            training, too.

    Raises:
        MissingFileError: If it holds neither config, or no weights.
        UserError: If they are damaged.
    """
    folder = Path(path)
    if path and (folder / OPEN_CLIP_CONFIG).is_file():
        return _open_clip_folder(folder)
    if path and (folder / CONFIG_NAME).is_file():
        config = read_json(folder / CONFIG_NAME)
        kind = config.get("model_type") if isinstance(config, dict) else None
        if kind in ("clip", "siglip"):
            return _transformers_folder(folder, config, kind)
        if kind == "siglip2":
            raise UserError(
                f"{folder} holds a SigLIP 2 of the NaFlex kind, whose pictures keep their shape; take one of "
                "a fixed size, such as siglip2-base-patch16-256"
            )
        return _cloc_folder(folder)
    raise MissingFileError(
        f"model {path!r}: expected a folder that holds {OPEN_CLIP_CONFIG}, or {CONFIG_NAME} of a CLOC, a "
        "CLIPModel or a SiglipModel"
    )


def _open_clip_folder(folder: Path) -> StartingTowers:
    path = folder / OPEN_CLIP_CONFIG
    config = read_json(path)
    model_cfg = config.get("model_cfg") if isinstance(config, dict) else None
    preprocess = config.get("preprocess_cfg") if isinstance(config, dict) else None
    if not isinstance(model_cfg, dict) or not isinstance(preprocess or {}, dict):
        raise UserError(f"{path} is not an open_clip config: expected tables model_cfg and preprocess_cfg")
    existing = [folder / name for name in OPEN_CLIP_WEIGHTS if (folder / name).is_file()]
    if not existing:
        raise MissingFileError(f"{folder} holds no weights; expected {' or '.join(OPEN_CLIP_WEIGHTS)}")
    towers = trained_towers(_with_own_texts(model_cfg, folder), existing[0], preprocess)
    with no_larger_than(_shapes(existing[0]).values(), str(folder)), torch.device("meta"):
        build_clip(towers.model_cfg)
    return towers


def _shapes(path: Path) -> dict[str, torch.Size]:
    if path.suffix == ".safetensors":
        return read_header(path)
    return {name: tensor.shape for name, tensor in read_state(path).items()}


def _with_own_texts(model_cfg: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A config whose text tower and tokenizer are the folder's, as it would be on the hub.

    Raises:
        UserError: If they are not there: other folders and the hub are not asked.
    """
    text_cfg = model_cfg.get("text_cfg")
    if not isinstance(text_cfg, dict):
        return model_cfg
    own = dict(text_cfg)
    places = (folder / TEXT_TOWER_FOLDER, folder)
    for key, files in OWN_TEXTS.items():
        if not own.get(key):
            continue
        found = [place for place in places if any((place / name).is_file() for name in files)]
        if not found:
            raise UserError(
                f"{folder / OPEN_CLIP_CONFIG} names {own[key]!r:.60} as its {key}, which is not opened; "
                f"expected {' or '.join(files)} in the folder or in its {TEXT_TOWER_FOLDER}/"
            )
        own[key] = str(found[0])
    return {**model_cfg, "text_cfg": own}


def _transformers_folder(folder: Path, config: dict[str, Any], kind: str) -> StartingTowers:
    """A `CLIPModel` or a `SiglipModel` of transformers, with the folder's tokenizer.

    A CLIP of CLIP's own words needs none: open_clip has it.
    """
    if kind == "clip":
        model_cfg, rename, canvas = from_hugging_face(config), state_from_hugging_face, OPENAI_CANVAS
    else:
        model_cfg, rename, canvas = siglip_model_cfg(config), state_from_siglip, SIGLIP_CANVAS
    text_cfg = model_cfg["text_cfg"]
    has_own = any((folder / name).is_file() for name in OWN_TEXTS["hf_tokenizer_name"])
    if has_own and (kind == "siglip" or text_cfg["vocab_size"] != CLIP_WORDS):
        text_cfg["hf_tokenizer_name"] = str(folder)
    check_model_cfg(model_cfg)
    files = _weights_of(folder)
    shapes = [shape for file in files for shape in _shapes(file).values()]
    with no_larger_than(shapes, str(folder)), torch.device("meta"):
        build_clip(model_cfg)
    load = partial(_load_transformers, folder=folder, files=files, rename=rename)
    return StartingTowers(model_cfg, _processor_canvas(folder, canvas), load, is_clip=True)


def _weights_of(folder: Path) -> list[Path]:
    """transformers' files of weights: one, or the parts of a large model.

    Raises:
        MissingFileError: If there are none.
    """
    one = next((folder / name for name in TRANSFORMERS_WEIGHTS if (folder / name).is_file()), None)
    parts = sorted(folder.glob(TRANSFORMERS_PARTS))
    if one is None and not parts:
        raise MissingFileError(
            f"{folder} holds no weights of transformers; expected {' or '.join(TRANSFORMERS_WEIGHTS)}"
        )
    return parts if one is None else [one]


def _processor_canvas(folder: Path, default: Mapping[str, Any]) -> dict[str, Any]:
    """Mean, deviation and interpolation of an image processor, or those of its kind."""
    for name in PROCESSORS:
        if not (folder / name).is_file():
            continue
        found = read_json(folder / name)
        found = found.get("image_processor", found) if isinstance(found, dict) else {}
        canvas = dict(default)
        canvas |= {key: found[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in found}
        if isinstance(found.get("resample"), int):
            canvas["interpolation"] = RESAMPLING.get(found["resample"], "bicubic")
        from_dict(CanvasConfig, canvas, f"{folder / name}")
        return canvas
    return dict(default)


def _load_transformers(model: Any, folder: Path, files: list[Path], rename: Rename) -> None:
    state = {name: tensor for file in files for name, tensor in read_state(file).items()}
    load_strictly(model.clip, rename(state), str(files[0] if len(files) == 1 else folder))


def _cloc_folder(folder: Path) -> StartingTowers:
    config = read_config(folder)
    require_fit(CLOC.shapes_of, config, folder)
    load = partial(_load_cloc, folder=folder)
    return StartingTowers(
        config["model_cfg"],
        config["preprocess"],
        load,
        prompter=config["prompter"],
        texts=config["texts"],
    )


def _load_cloc(model: Any, folder: Path) -> None:
    load_strictly(model, read_folder_state(folder), str(folder))
