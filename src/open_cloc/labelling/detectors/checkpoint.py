"""Find a detector's checkpoint, tell exactly which one it is, and open it."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from open_cloc.labelling.recipe import DetectorConfig
from open_cloc.model.load import HUB_ID

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".jinja", ".distcp"}  # all that a model is made of


class Checkpoint(NamedTuple):
    """A model's files on this machine.

    Attributes:
        folder: Where they are.
        revision: Commit on the hub; None for a folder of one's own.
        sha256: Of all of its files.
    """

    folder: Path
    revision: str | None
    sha256: str


def find_checkpoint(weights: str, revision: str | None = None) -> Checkpoint:
    """A folder, or a hub repository that is fetched unless it is in the cache.

    Raises:
        FileNotFoundError: If there is neither.
        ValueError: If a revision of a folder is asked for.
    """
    folder, commit = Path(weights), None
    if folder.is_dir():
        if revision:
            raise ValueError(
                f"a revision is for models on the hub; got {revision!r} with the folder {weights}"
            )
    elif HUB_ID.fullmatch(weights):
        patterns = [f"*{suffix}" for suffix in SUFFIXES]
        try:
            folder = Path(snapshot_download(weights, revision=revision, allow_patterns=patterns))
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            reason = str(error).strip().splitlines()[0]
            raise FileNotFoundError(
                f"weights not found: no folder {weights}, and the hub says: {reason}"
            ) from error
        commit = folder.name
    else:
        raise FileNotFoundError(
            f"weights not found: no folder {weights}, and it is no hub name such as owner/name"
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{weights} is not a model: it holds no config.json")
    return Checkpoint(folder, commit, _sha256(folder.resolve()))


@lru_cache(maxsize=8)
def _sha256(folder: Path) -> str:
    """Of the names and contents of a model's files."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in SUFFIXES and path.is_file():
            whole.update(f"{path.relative_to(folder).as_posix()} {_file_sha256(path)}\n".encode())
    return whole.hexdigest()


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def read_model_type(checkpoint: Checkpoint) -> str:
    """transformers' name of the architecture; `cloc` for a model of ours.

    Raises:
        ValueError: If the config is not JSON or names none.
    """
    path = checkpoint.folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if "model_cfg" in config and "prompter" in config:
        return "cloc"
    if not isinstance(config.get("model_type"), str):
        raise ValueError(f"{path} names no model_type")
    return config["model_type"]


def load_transformers(checkpoint: Checkpoint, device: torch.device) -> tuple[Any, Any]:
    """Open a zero-shot detector of transformers and its tokenizer.

    Weights are float32, from safetensors; no code of the repository runs.

    Raises:
        FileNotFoundError: If there are no safetensors.
        ValueError: If weights are missing, which the library would draw at random.
    """
    from transformers import AutoModelForZeroShotObjectDetection, AutoTokenizer

    folder = checkpoint.folder
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder} holds no .safetensors; other weights are not opened: they may run code"
        )
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    model, info = AutoModelForZeroShotObjectDetection.from_pretrained(
        folder, use_safetensors=True, output_loading_info=True, **options
    )
    if info["missing_keys"]:
        names = sorted(info["missing_keys"])
        raise ValueError(f"{folder} lacks {len(names)} tensors of its model, such as {names[0]}")
    return model.float().to(device).eval(), AutoTokenizer.from_pretrained(folder, **options)


def base_provenance(config: DetectorConfig, checkpoint: Checkpoint, kind: str) -> dict[str, Any]:
    """What every detector says of itself."""
    import transformers

    return {
        "kind": kind,
        "weights": config.weights,
        "revision": checkpoint.revision,
        "sha256": checkpoint.sha256,
        "prompt": config.prompt,
        "raw_score": config.raw_score,
        "max_boxes": config.max_boxes,
        "dtype": config.dtype,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def check_config(config: DetectorConfig) -> None:
    """Refuse what cannot be meant.

    Raises:
        ValueError: On a value out of range.
    """
    if config.dtype not in DTYPES:
        raise ValueError(f"detect.dtype must be one of {', '.join(DTYPES)}; got {config.dtype!r}")
    if config.prompt.count("{}") != 1:
        raise ValueError(f"detect.prompt must hold {{}} once, for the phrase; got {config.prompt!r}")
    if not 0 <= config.raw_score <= 1:
        raise ValueError(f"detect.raw_score must lie in [0, 1]; got {config.raw_score}")
    if config.max_boxes < 1:
        raise ValueError(f"detect.max_boxes must be at least 1; got {config.max_boxes}")
