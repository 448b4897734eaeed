"""What requests and answers look like, for checking and for OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from open_cloc.config import require

pydantic = require("pydantic", "serve")

Number = Annotated[float, pydantic.Field(allow_inf_nan=False)]
FourNumbers = Annotated[list[Number], pydantic.Field(min_length=4, max_length=4)]
IMAGE = "The picture in base64, plain or as a data: URL; or a URL, where the server was told to fetch those."
BOXES = "Four numbers each, in pixels of the picture unless `normalized`."


class _Form(pydantic.BaseModel):  # type: ignore[name-defined]
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


class _OfImage(_Form):
    image: str = pydantic.Field(description=IMAGE)


class _OfBoxes(_OfImage):
    boxes: list[FourNumbers] = pydantic.Field(description=BOXES)
    box_format: Literal["xyxy", "xywh", "cxcywh"] = "xyxy"
    normalized: bool = pydantic.Field(False, description="Boxes are in [0, 1] of the picture.")


Encoding = Literal["float", "base64"]
ENCODING = "Lists of numbers, or base64 of little-endian float32, which is smaller and quicker."


class EmbedImage(_OfImage):
    """Embed a picture."""

    encoding: Encoding = pydantic.Field("float", description=ENCODING)


class EmbedTexts(_Form):
    """Embed texts."""

    texts: list[str] = pydantic.Field(min_length=1)
    encoding: Encoding = pydantic.Field("float", description=ENCODING)


class EmbedRegions(_OfBoxes):
    """Embed boxes of a picture."""

    encoding: Encoding = pydantic.Field("float", description=ENCODING)


class Classify(_OfImage):
    """Name boxes of a picture, or the picture."""

    boxes: list[FourNumbers] | None = pydantic.Field(
        None, description=f"{BOXES} The whole picture unless given."
    )
    box_format: Literal["xyxy", "xywh", "cxcywh"] = "xyxy"
    normalized: bool = pydantic.Field(False, description="Boxes are in [0, 1] of the picture.")
    labels: list[str] = pydantic.Field(min_length=1, description="Distinct names to choose from.")
    top_k: int = pydantic.Field(5, ge=1, le=10_000, description="Names of each box.")


class Ground(_OfImage):
    """Find phrases in a picture."""

    phrases: list[str] = pydantic.Field(min_length=1)
    min_score: Number | None = pydantic.Field(
        None, description="Leave out phrases whose box matches less than this."
    )


class Search(_Form):
    """Search the index, by one of these or by their sum."""

    text: str | list[str] | None = pydantic.Field(None, description="What to look for; several are added up.")
    minus: str | list[str] | None = pydantic.Field(None, description="Texts of which half is taken away.")
    image: str | None = pydantic.Field(None, description=IMAGE)
    box: FourNumbers | None = pydantic.Field(None, description="A box of `image`, in its pixels.")
    like: str | None = pydantic.Field(None, description="A hit's `id`, for more like it.")
    limit: int = pydantic.Field(12, ge=1, le=10_000)
    where: str = pydantic.Field("", description="A filter in SQL over the index's columns.")
    rows: Literal["auto", "regions", "pictures", "all"] = "auto"


class Label(_Form):
    """A name and its score."""

    label: str
    score: float


class NamedBox(_Form):
    """A box and its names, best first."""

    box: FourNumbers
    labels: list[Label]


class Found(_Form):
    """A phrase, its box in pixels and its score."""

    phrase: str
    box: FourNumbers
    score: float


class Hit(_Form):
    """A region of the index."""

    id: str
    picture: str
    key: str
    size: list[int]
    box: FourNumbers
    score: float
    text: str
    label_score: float | None
    source: str
    caption: str
    columns: dict[str, Any]
    folded: list[str]


class Embedding(_Form):
    """Of unit length."""

    size: list[int]
    embedding: list[float] | str


class Embeddings(_Form):
    """Of unit length, in the order of the request."""

    embeddings: list[list[float]] | list[str]


class Names(_Form):
    """Names of boxes."""

    size: list[int]
    regions: list[NamedBox]


class Phrases(_Form):
    """Boxes of phrases."""

    size: list[int]
    phrases: list[Found]


class Hits(_Form):
    """Hits, best first."""

    hits: list[Hit]


class Info(_Form):
    """What this server is."""

    version: str
    model: str
    embed_dim: int
    image_size: list[int]
    limits: dict[str, int]
    index: dict[str, Any] | None
    urls: bool


class Failure(_Form):
    """Why a request was not answered."""

    error: str


def schema_of(form: Any) -> dict[str, Any]:
    """A form as JSON Schema for OpenAPI, in one piece: references would point to nowhere there."""
    schema: dict[str, Any] = form.model_json_schema()
    parts = schema.pop("$defs", {})

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return whole(parts[value["$ref"].rpartition("/")[2]])
            return {name: whole(part) for name, part in value.items()}
        return [whole(part) for part in value] if isinstance(value, list) else value

    return {name: whole(part) for name, part in schema.items()}
