"""Models and tokenizers of transformers, opened without their code, from nowhere but their own folder.

The library's configs are powerful: they can name code, other folders, weights and kernels on the hub. What a
folder says is looked through before the library reads it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from open_cloc.errors import MissingFileError, UserError, first_line
from open_cloc.files import read_json
from open_cloc.model.limits import no_larger_than, read_header, require_sound_weights

# Read by the library when it opens a model, an image processor or a tokenizer.
CONFIGS = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("model.safetensors.index.json", "pytorch_model.bin.index.json"),
)
TOKENIZER_CONFIG = "tokenizer_config.json"
ADAPTER = "adapter_config.json"

# Where a model came from, classes that code of its own would have, names of labels.
HARMLESS = {"_name_or_path", "name_or_path", "auto_map", "id2label", "label2id", "chat_template"}
# `owner/name`, with what the library takes behind it; a path; a name with its source before it.
ELSEWHERE = re.compile(
    r"[\w.-]+/[\w.-]+(@[^/:]+)?(:[^/:]+)?|[~/\\].*|\.\.?[/\\].*|\.\.|[A-Za-z_-]+:[^ ]+/.*|hf.hub:.*"
)
# Configs list as many things for each of these.
COUNTS = re.compile(r"layer|depth|block|stage|num_labels", re.IGNORECASE)
MOST = 100_000
# Pixels of pictures as they enter a model.
SIZES, LARGEST_SIDE = ("height", "width", "size", "crop_size", "image_size"), 8192


def open_safely(kind: Any, name: str | Path, **options: Any) -> Any:
    """What a class of transformers makes of a folder, or of a name on the hub.

    Args:
        kind: A class with `from_pretrained`, or open_clip's tokenizer, which calls one.
        name: The folder, of which nothing is asked but itself, or `owner/name` on the hub.
        **options: Further arguments.

    Raises:
        MissingFileError: If there is neither.
        UserError: If the folder's configs ask for code, other folders or the hub, or the library finds that
            they do not fit.
    """
    is_local = Path(name).is_dir()
    if is_local:
        check_folder(Path(name))
    make = getattr(kind, "from_pretrained", kind)
    try:
        return make(str(name), trust_remote_code=False, local_files_only=is_local, **options)
    except UserError:
        raise
    except OSError as error:
        raise MissingFileError(
            f"{str(name)!r} is neither a local folder nor cached: {first_line(error)}"
        ) from error
    # A folder may say anything, and the library checks little of it.
    except Exception as error:
        raise UserError(f"transformers cannot open {name}: {first_line(error)}") from error


def open_model(kind: Any, folder: Path, **options: Any) -> Any:
    """A model with the weights of its folder; with what is told of loading it, if `options` ask for that.

    Args:
        kind: A class of transformers, such as `AutoModel`.
        folder: The folder.
        **options: Further arguments.

    Raises:
        MissingFileError: If there are no weights.
        UserError: If the configs ask for code, other folders, the hub, or more than the weights are, or
            weights are damaged or absurd.
    """
    files = sorted(folder.glob("*.safetensors"))
    # Files of plain tensors are read whole: only a config beside safetensors can ask for more.
    limit: AbstractContextManager[None] = nullcontext()
    if files:
        limit = no_larger_than([shape for file in files for shape in read_header(file).values()], str(folder))
    with limit:
        opened = open_safely(kind, folder, **options)
    model = opened[0] if isinstance(opened, tuple) else opened
    require_sound_weights(model.state_dict(), str(folder))
    return opened


def check_folder(folder: Path) -> None:
    """Refuse a folder of transformers whose configs reach out of it, or ask for absurdly much.

    Raises:
        UserError: Names the file and what it asks for.
    """
    if (folder / ADAPTER).exists():
        raise UserError(f"{folder} holds an adapter of another model ({ADAPTER}); merge them first")
    for name in CONFIGS:
        if (folder / name).is_file():
            _check_config(folder / name)
    if (folder / TOKENIZER_CONFIG).is_file():
        _check_tokenizer_config(folder / TOKENIZER_CONFIG)


def _check_config(path: Path) -> None:
    config = read_json(path)
    if not isinstance(config, Mapping):
        raise UserError(f"{path} must be a table of keys and values; got {config!r:.60}")
    for table in _tables(config):
        for key, value in table.items():
            if key in HARMLESS:
                continue
            reason = _reason_against(key, value, table)
            if reason:
                raise UserError(f"{path}: {key} is {value!r:.60}, {reason}")


def _reason_against(key: str, value: Any, table: Mapping[str, Any]) -> str:
    """What is wrong with a value; empty if nothing is."""
    if key == "checkpoint_path" and value:
        return "a file that the library would unpickle"
    if key == "use_pretrained_backbone" and value:
        return "and weights of other places are not fetched"
    if key == "backbone" and value and not table.get("use_timm_backbone"):
        return "a model of another place, which is not opened"
    if isinstance(value, str) and ELSEWHERE.fullmatch(value):
        return "which lies outside of the folder and is not opened"
    numbers = [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, (int, float))]
    if COUNTS.search(key) and any(abs(number) > MOST for number in numbers):
        return f"and no model has more than {MOST:,}"
    if key in SIZES and any(abs(number) > LARGEST_SIDE for number in numbers):
        return f"and no picture has more than {LARGEST_SIDE} pixels a side here"
    return ""


def _tables(value: Any) -> Iterator[Mapping[str, Any]]:
    """All tables in a document, the outermost first."""
    if isinstance(value, Mapping):
        yield value
    inner = [v for k, v in value.items() if k not in HARMLESS] if isinstance(value, Mapping) else value
    for part in inner if isinstance(inner, list) else ():
        yield from _tables(part)


def _check_tokenizer_config(path: Path) -> None:
    """Old versions of the library open the files that this one names; stale names are harmless."""
    config = read_json(path)
    if not isinstance(config, Mapping):
        raise UserError(f"{path} must be a table of keys and values; got {config!r:.60}")
    folder = os.path.normpath(path.parent)
    for key, value in config.items():
        if not key.endswith("_file") or not isinstance(value, str):
            continue
        named = os.path.normpath(os.path.join(folder, value))
        if os.path.exists(named) and not Path(named).is_relative_to(folder):
            raise UserError(f"{path}: {key} is {value!r:.60}, which lies outside of the folder")


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' bars and warnings, such as of weights that a part of a model does not take."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
