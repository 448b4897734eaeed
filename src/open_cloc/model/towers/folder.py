"""Models in a local folder: open_clip's layout, or a whole CLOC."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from open_cloc.errors import MissingFileError
from open_cloc.files import read_json
from open_cloc.model.cloc import CLOC
from open_cloc.model.towers.open_clip import trained_towers
from open_cloc.model.towers.tower import StartingTowers
from open_cloc.model.weights import CONFIG_NAME, load_strictly, read_config, read_folder_state, require_fit

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def saved_towers(path: str) -> StartingTowers:
    """`folder:PATH`: a folder that holds `open_clip_config.json`, or a CLOC's `config.json`.

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
        return _cloc_folder(folder)
    raise MissingFileError(
        f"model {path!r}: expected a folder that holds {OPEN_CLIP_CONFIG} or CLOC's {CONFIG_NAME}"
    )


def _open_clip_folder(folder: Path) -> StartingTowers:
    config = read_json(folder / OPEN_CLIP_CONFIG)
    existing = [folder / name for name in OPEN_CLIP_WEIGHTS if (folder / name).is_file()]
    if not existing:
        raise MissingFileError(f"{folder} holds no weights; expected {' or '.join(OPEN_CLIP_WEIGHTS)}")
    return trained_towers(config["model_cfg"], existing[0], config.get("preprocess_cfg"))


def _cloc_folder(folder: Path) -> StartingTowers:
    config = read_config(folder)
    require_fit(CLOC.shapes_of, config, folder)
    load = partial(_load_cloc, folder=folder)
    return StartingTowers(config["model_cfg"], config["preprocess"], load, prompter=config["prompter"])


def _load_cloc(model: Any, folder: Path) -> None:
    load_strictly(model, read_folder_state(folder), str(folder))
