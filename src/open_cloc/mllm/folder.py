"""A language model that sees, on disk: safetensors and JSON, in one folder.

| | |
|---|---|
| `mllm.json` | how it is asked, and where the tower is; written last: a folder that has it is whole |
| `lm/` | language model and tokenizer, as transformers writes them |
| `projectors.safetensors` | what stands between |
| `tower/` | the CLOC, unless `mllm.json` names another place |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from open_cloc.config import from_dict
from open_cloc.devices import choose_device
from open_cloc.errors import ExistingFileError, MissingFileError, UserError
from open_cloc.files import is_free, read_json, write_json, write_whole
from open_cloc.mllm.language_model import open_language_model
from open_cloc.model.foreign import quietly
from open_cloc.model.load import load_model
from open_cloc.model.weights import load_strictly, read_state

CONFIG, LM, PROJECTORS, TOWER = "mllm.json", "lm", "projectors.safetensors", "tower"

Model = TypeVar("Model", bound=nn.Module)


def save(model: Any, folder: Path, tower: str = "") -> None:
    """Write a `RegionLM`; see its `save_pretrained`."""
    if not is_free(folder):
        raise ExistingFileError(f"a language model's folder must be new or empty; got {folder}")
    with quietly():
        model.lm.save_pretrained(folder / LM)
        model.tokenizer.save_pretrained(folder / LM)
    with write_whole(folder / PROJECTORS) as part:
        save_file(projector_state(model), part, metadata={"format": "pt"})
    if not tower:
        model.tower.save_pretrained(folder / TOWER)
    write_json(folder / CONFIG, {"tower": tower or TOWER, "config": asdict(model.config)})


def projector_state(model: Any) -> dict[str, Tensor]:
    """Weights of the projectors, by part and name."""
    parts: Any = nn.ModuleDict(model.projectors())
    state: dict[str, Tensor] = parts.state_dict()
    return {name: tensor.cpu().contiguous() for name, tensor in state.items()}


def load(
    folder: Path,
    device: str | torch.device | None,
    config_class: type[Any],
    build: Callable[..., Model],
) -> Model:
    """Open a `RegionLM`; see `model.load`.

    Args:
        folder: The folder.
        device: Where to compute.
        config_class: `MLLMConfig`.
        build: Makes the model of (tower, language model, tokenizer, config).
    """
    path = folder / CONFIG
    if not path.is_file():
        raise MissingFileError(f"{folder} is no language model that sees: it holds no {CONFIG}")
    document = read_json(path)
    if not isinstance(document, dict) or set(document) != {"tower", "config"}:
        raise UserError(f"{path} is not a language model's config: expected tower and config")
    if not isinstance(document["tower"], str):
        raise UserError(f"{path} must name its tower as a text; got {document['tower']!r:.60}")
    config = from_dict(config_class, document["config"], "config")
    target = choose_device(device)
    tower = load_model(folder / TOWER if document["tower"] == TOWER else document["tower"], target)
    lm, tokenizer = open_language_model(folder / LM)
    model: Any = build(tower, lm, tokenizer, config)
    parts = nn.ModuleDict(model.projectors())
    load_strictly(parts, read_state(folder / PROJECTORS), str(folder / PROJECTORS))
    return model.to(target).eval()
