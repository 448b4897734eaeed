"""The folder of a model, on this machine or on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from open_cloc.errors import MissingFileError, UserError, first_line

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find_folder(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    patterns: list[str] | None = None,
) -> Path:
    """The local folder of a model, which is fetched from the hub unless it is a folder or in the cache.

    Args:
        path_or_hub_id: A folder, or `owner/name` on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.
        token: Access token for the hub; None takes the one you are logged in with.
        cache_dir: Where downloads are kept; None takes the hub's own place.
        patterns: Files to fetch, such as `*.json`; None takes all.

    Returns:
        The folder; that of a hub's model bears the name of its commit.

    Raises:
        MissingFileError: If there is neither, or the hub cannot be reached.
        UserError: If a revision of a folder is asked for.
    """
    name = str(path_or_hub_id)
    if Path(name).is_dir():
        if revision:
            raise UserError(f"a revision is for models on the hub; got {revision!r} with the folder {name}")
        return Path(name)
    if not HUB_ID.fullmatch(name):
        raise MissingFileError(f"weights not found: no folder {name}, and it is no hub id such as owner/name")
    return fetch(name, patterns, revision=revision, token=token, cache_dir=cache_dir)


def fetch(name: str, patterns: list[str] | None = None, **options: Any) -> Path:
    """The folder of a model on the hub, fetched unless it is in the cache.

    Args:
        name: `owner/name`.
        patterns: Files to fetch, such as `*.json`; None takes all.
        **options: The hub's: `revision`, `cache_dir`, `token`, ...

    Raises:
        MissingFileError: If there is none, or the hub cannot be reached.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = first_line(error)
        raise MissingFileError(f"weights not found: no folder {name}, and the hub says: {reason}") from error
