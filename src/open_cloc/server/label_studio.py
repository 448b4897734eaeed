"""The three routes by which Label Studio asks for boxes: `/health`, `/setup` and `/predict`."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urljoin

from open_cloc.config import require
from open_cloc.inference.answer import FoundPhrase
from open_cloc.server.forms import schema_of
from open_cloc.server.limits import RefusedError
from open_cloc.server.requests import read_request

if TYPE_CHECKING:
    from open_cloc.server.service import Service

fastapi = require("fastapi", "serve")
pydantic = require("pydantic", "serve")

MOST_TASKS = 100
MOST_CONFIG = 100_000  # characters of XML


class Setup(pydantic.BaseModel):  # type: ignore[name-defined]
    """A project that takes up the server."""

    model_config = pydantic.ConfigDict(extra="ignore")
    project: str | int | None = None
    schema_: str | None = pydantic.Field(None, alias="schema")
    hostname: str | None = None
    access_token: str | None = None


class Task(pydantic.BaseModel):  # type: ignore[name-defined]
    """A picture to label."""

    model_config = pydantic.ConfigDict(extra="ignore")
    id: int | str | None = None
    data: dict[str, Any]


class Predict(pydantic.BaseModel):  # type: ignore[name-defined]
    """Pictures to label."""

    model_config = pydantic.ConfigDict(extra="ignore")
    tasks: list[Task]
    label_config: str | None = None


class Control(NamedTuple):
    """Where a project wants its boxes.

    Attributes:
        from_name: Name of the tag of the labels.
        to_name: Name of the tag of the picture.
        field: Field of a task's data that holds the picture.
        labels: The project's labels.
    """

    from_name: str
    to_name: str
    field: str
    labels: tuple[str, ...]


def add_label_studio(
    app: Any, service: Service, labels: Sequence[str], name: str, failures: Mapping[int, Any]
) -> None:
    """Add the routes.

    Args:
        app: FastAPI's.
        service: The model's side.
        labels: `LABEL` or `LABEL=PHRASE`, what is looked for for each label of a project.
        name: The model's name, its version there.
        failures: How OpenAPI describes errors, by status.
    """
    phrases = dict(label.partition("=")[::2] for label in labels)
    known: dict[str, str] = {}

    async def setup(request: Any) -> dict[str, str]:
        """Take a project's address; its configuration comes with each request."""
        body = (await read_request(request, Setup, service.limits)).form
        # Both at once: a token goes to no other host than the one that it came with.
        given = {"hostname": body.hostname, "token": body.access_token}
        known.clear()
        known.update({name: value for name, value in given.items() if value})
        return {"model_version": name}

    async def predict(request: Any) -> dict[str, Any]:
        """Boxes of a project's labels in its pictures."""
        body = (await read_request(request, Predict, service.limits)).form
        service.limits.check_count(len(body.tasks), MOST_TASKS, "tasks")
        control = read_config(body.label_config or "")
        results = []
        for task in body.tasks:
            results.append(await _predict(service, control, phrases, task, known, name))
        return {"results": results, "model_version": name}

    for path, route, form in (("/setup", setup, Setup), ("/predict", predict, Predict)):
        # FastAPI reads annotations by their names.
        route.__annotations__["request"] = fastapi.Request
        described = {"content": {"application/json": {"schema": schema_of(form)}}, "required": True}
        app.post(path, responses=failures, openapi_extra={"requestBody": described}, tags=["label studio"])(
            route
        )


async def _predict(
    service: Service,
    control: Control,
    phrases: dict[str, str],
    task: Task,
    known: dict[str, str],
    name: str,
) -> dict[str, Any]:
    url = task.data.get(control.field)
    if not isinstance(url, str) or not url:
        raise RefusedError(422, f"a task's data must have a URL under {control.field!r:.60}")
    if url.startswith("data:"):
        encoded = await service.read(url)
    else:
        whole = urljoin(f"{known.get('hostname', '').rstrip('/')}/", url)
        own = bool(known.get("hostname")) and whole.startswith(f"{known['hostname'].rstrip('/')}/")
        token = {"Authorization": f"Token {known['token']}"} if own and "token" in known else None
        encoded = await service.fetch(whole, token)
    image = await service.look_at(encoded)
    labels = [label for label in control.labels if label in phrases] or [
        label for label in phrases if not control.labels
    ]
    if not labels:
        return {"result": [], "score": 0.0, "model_version": name}
    found = await service.compute(image.find, [phrases[label] or label for label in labels])
    rows = [
        _result(f"{task.id}-{number}", control, label, phrase, image.size_hw)
        for number, (label, phrase) in enumerate(zip(labels, found))
    ]
    score = sum(phrase.score for phrase in found) / len(found)
    return {"result": rows, "score": score, "model_version": name}


def _result(
    row: str, control: Control, label: str, phrase: FoundPhrase, size_hw: tuple[int, int]
) -> dict[str, Any]:
    """A box in Label Studio's form, in percent of the picture."""
    (height, width), (x1, y1, x2, y2) = size_hw, phrase.box
    sides = {"x": 100 * x1 / width, "y": 100 * y1 / height}
    sides |= {"width": 100 * (x2 - x1) / width, "height": 100 * (y2 - y1) / height}
    return {
        "id": row,
        "from_name": control.from_name,
        "to_name": control.to_name,
        "type": "rectanglelabels",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {**sides, "rotation": 0, "rectanglelabels": [label]},
        "score": phrase.score,
    }


def read_config(text: str) -> Control:
    """Where a project's XML wants boxes.

    Raises:
        RefusedError: If it has no RectangleLabels for an Image.
    """
    wrong = RefusedError(422, "label_config must be XML with RectangleLabels that point to an Image")
    if len(text) > MOST_CONFIG or "<!" in text:  # no entities that grow
        raise wrong
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        raise wrong from None
    images = {tag.get("name"): tag.get("value", "") for tag in root.iter("Image")}
    for tag in root.iter("RectangleLabels"):
        to_name = tag.get("toName")
        if to_name in images and tag.get("name"):
            labels = tuple(label.get("value", "") for label in tag.iter("Label"))
            return Control(tag.get("name", ""), to_name or "", images[to_name].lstrip("$"), labels)
    raise wrong
