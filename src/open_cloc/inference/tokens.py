"""Image tokens kept on disk: a picture that was looked at once is asked again without its tower.

A file a picture, by the hash of its content, below a folder a model: nothing that has changed is taken for
what it was. Files are written whole, so that processes may share a folder, and are mapped into memory.

Tokens are kept as float16, half of their size; what the Prompter makes of them differs by about 1e-3.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from open_cloc.files import write_whole
from open_cloc.inference.encoded import EncodedImage
from open_cloc.inference.predictor import Predictor
from open_cloc.model.identity import identity_of
from open_cloc.pictures import Picture, read_file, to_rgb

logger = logging.getLogger(__name__)

MOST_OF_HALF = 65504.0  # largest float16


def content_of(picture: Picture) -> str:
    """A picture's name by its content: 32 hexadecimal digits of its encoded bytes, or of its pixels.

    Raises:
        MissingPictureError: If it is a path that does not exist.
    """
    if isinstance(picture, (str, Path)):
        picture = read_file(Path(picture))
    if isinstance(picture, Image.Image):
        picture = to_rgb(picture)
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(picture, np.ndarray):
        digest.update(f"{picture.dtype} {picture.shape}".encode())
        digest.update(np.ascontiguousarray(picture).data)
    else:
        digest.update(picture)
    return digest.hexdigest()


class TokenCache:
    """A predictor that remembers, on disk, what it has looked at."""

    def __init__(self, folder: str | Path, predictor: Predictor, identity: str = "") -> None:
        """Open a cache, or begin one.

        Args:
            folder: Where the files lie; those of several models may share it.
            predictor: Looks at pictures that are not there yet.
            identity: The model's name by `identity_of`, if it is known already.
        """
        self.predictor = predictor
        self.folder = Path(folder) / (identity or identity_of(predictor.model))

    def encode(
        self, pictures: Sequence[Picture], contents: Sequence[str] | None = None
    ) -> list[EncodedImage]:
        """Look at pictures, those that are not known together; raises as `Predictor.encode`.

        Args:
            pictures: The pictures.
            contents: Their names by `content_of`, of what they were before they were decoded.
        """
        contents = contents or [content_of(picture) for picture in pictures]
        known = {content: image for content in contents if (image := self.get(content)) is not None}
        unknown = {c: picture for c, picture in zip(contents, pictures) if c not in known}
        for content, image in zip(unknown, self.predictor.encode(list(unknown.values()))):
            self.put(content, image)
            known[content] = image
        return [known[content] for content in contents]

    def get(self, content: str) -> EncodedImage | None:
        """A picture by its content's name; None where it is not known, or its file is damaged."""
        path = self._path(content)
        try:
            with safe_open(path, "pt") as file:
                about: dict[str, Any] = json.loads(file.metadata()["picture"])
                features, tokens = file.get_tensor("image_features"), file.get_tensor("image_tokens")
            (height, width), (rows, columns) = about["size_hw"], about["grid_size"]
            if about["checksum"] != _checksum(features, tokens):
                raise ValueError("its numbers are not those that were written")
        except FileNotFoundError:
            return None
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is damaged, and is made anew: %s", path, error)
            return None
        return self.predictor.restore((height, width), features, tokens.float(), (rows, columns))

    def put(self, content: str, image: EncodedImage) -> None:
        """Keep a picture; one whose tokens do not fit into float16 is not kept.

        Args:
            content: Its name by `content_of`.
            image: What this cache's predictor has made of it.

        Raises:
            OSError: If it cannot be written.
        """
        tokens = image.state.image_tokens[0]
        if not float(tokens.abs().max()) <= MOST_OF_HALF:  # also where one is no number
            logger.warning("a picture is not kept: its tokens are past what float16 holds")
            return
        tensors: dict[str, Tensor] = {
            "image_features": image.state.image_features[0].float().cpu().contiguous(),
            "image_tokens": tokens.half().cpu().contiguous(),
        }
        about = {
            "size_hw": list(image.size_hw),
            "grid_size": list(image.state.grid_size),
            "checksum": _checksum(**tensors),
        }
        with write_whole(self._path(content)) as part:
            save_file(tensors, part, {"picture": json.dumps(about)})

    def _path(self, content: str) -> Path:
        return self.folder / content[:2] / f"{content}.safetensors"


def _checksum(image_features: Tensor, image_tokens: Tensor) -> int:
    """Of all bytes: safetensors has none, and a damaged number would be a wrong answer that nobody sees."""
    return crc32(image_tokens.numpy().tobytes(), crc32(image_features.numpy().tobytes()))
