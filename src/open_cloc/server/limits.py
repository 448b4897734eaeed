"""What a server takes, and the errors by which it refuses the rest."""

from __future__ import annotations

from dataclasses import dataclass, fields

from open_cloc.errors import UserError


class RefusedError(Exception):
    """A request that is not answered.

    Attributes:
        status: HTTP's status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """Most of everything that one request may hold or hold up.

    Attributes:
        megabytes: Of a request's body, 1024 x 1024 bytes each.
        megapixels: Of a picture, a million pixels each; looked at before it is decoded.
        boxes: Of one request.
        texts: Of one request.
        characters: Of one text.
        hits: Of one search.
        waiting: Pictures that wait for the model; further requests are sent away with 503.
        batch: Pictures that go through the tower together.
        cache_megabytes: Of pictures that were looked at and are remembered.
    """

    megabytes: int = 20
    megapixels: int = 50
    boxes: int = 1000
    texts: int = 1000
    characters: int = 1000
    hits: int = 100
    waiting: int = 256
    batch: int = 16
    cache_megabytes: int = 512

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < (0 if field.name == "cache_megabytes" else 1):
                raise UserError(f"limit {field.name} must be at least 1; got {getattr(self, field.name)}")

    @property
    def bytes(self) -> int:
        """Most bytes of a request's body."""
        return self.megabytes * 2**20

    def check_count(self, count: int, most: int, what: str) -> None:
        """Refuse too many of something.

        Raises:
            RefusedError: With status 422.
        """
        if count > most:
            raise RefusedError(422, f"at most {most} {what} in a request; got {count}")

    def check_texts(self, texts: list[str], what: str) -> None:
        """Refuse too many or too long texts.

        Raises:
            RefusedError: With status 422.
        """
        self.check_count(len(texts), self.texts, what)
        longest = max((len(text) for text in texts), default=0)
        if longest > self.characters:
            raise RefusedError(422, f"{what} must have at most {self.characters} characters; got {longest}")
