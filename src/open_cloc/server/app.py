"""The server's routes, and what stands before each of them: a token, limits, a log, words for errors."""

from __future__ import annotations

import hmac
import json
import logging
import time
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib import resources
from typing import TYPE_CHECKING, Any

from open_cloc.config import require
from open_cloc.errors import RunError, UserError
from open_cloc.files import version_of
from open_cloc.inference.predictor import Predictor
from open_cloc.server import forms
from open_cloc.server.label_studio import add_label_studio
from open_cloc.server.limits import Limits, RefusedError
from open_cloc.server.requests import FILE, REST, Asked, read_request
from open_cloc.server.service import Service, as_base64

if TYPE_CHECKING:
    from open_cloc.index.region_index import RegionIndex

fastapi = require("fastapi", "serve")
responses = require("fastapi.responses", "serve")
middleware = require("starlette.middleware.trustedhost", "serve")
exceptions = require("starlette.exceptions", "serve")

OPEN = ("/health", "/ready", "/", "/app.js", "/style.css", "/icon.svg")  # need no token
PAGE = {"/": "index.html", "/app.js": "app.js", "/style.css": "style.css", "/icon.svg": "icon.svg"}
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
STATUSES = {
    400: "The request cannot be read.",
    401: "A token is needed.",
    404: "There is no such thing.",
    413: "The request is too large.",
    415: "The body is of another type.",
    422: "The request is understood, and wrong.",
    503: "Too much waits, or the server stops.",
}
FAILURES = {code: {"model": forms.Failure, "description": text} for code, text in STATUSES.items()}

logger = logging.getLogger("open_cloc.server")


def create_app(
    predictor: Predictor,
    *,
    name: str = "",
    limits: Limits | None = None,
    index: RegionIndex | None = None,
    token: str = "",
    allowed_urls: Sequence[str] = (),
    hosts: Sequence[str] = ("*",),
    label_studio: Sequence[str] = (),
) -> Any:
    """A server as a FastAPI application.

    Args:
        predictor: The model.
        name: What the model is called; never a path.
        limits: What is taken.
        index: What is searched.
        token: What clients must send as `Authorization: Bearer`; none where it is empty.
        allowed_urls: Beginnings of URLs from which pictures are fetched; none unless given.
        hosts: Names by which the server may be called; against pages that call it by a name of theirs.
        label_studio: Labels for Label Studio's routes, which are there if any are given.

    Raises:
        UserError: If the extra is not installed, or an allowed URL is none.
    """
    service = Service(predictor, limits or Limits(), index, allowed_urls)

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        app.state.is_ready = True
        yield
        app.state.is_ready = False
        await service.close()

    app = fastapi.FastAPI(
        title="open-cloc",
        version=version_of("open-cloc"),
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    app.state.is_ready, app.state.service = False, service
    _add_answers_to_errors(app)
    _add_guard(app, service, token)
    app.add_middleware(middleware.TrustedHostMiddleware, allowed_hosts=list(hosts))
    _add_state(app, service, name)
    _add_questions(app, service)
    _add_search(app, service)
    _add_page(app)
    if label_studio:
        add_label_studio(app, service, label_studio, name, FAILURES)
    return app


def _add_answers_to_errors(app: Any) -> None:
    """One form for all errors, which says nothing of the machine."""

    def failure(status: int, text: str) -> Any:
        headers = {"Retry-After": "1"} if status == 503 else {}
        headers |= {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        return responses.JSONResponse({"error": text}, status, {**headers, **HEADERS})

    @app.exception_handler(RefusedError)
    async def refused(request: Any, error: RefusedError) -> Any:
        return failure(error.status, str(error))

    @app.exception_handler(UserError)
    async def wrong(request: Any, error: UserError) -> Any:
        return failure(422, str(error))

    @app.exception_handler(RunError)
    async def cannot(request: Any, error: RunError) -> Any:
        logger.error("%s", error)
        return failure(503, "the model or the index cannot answer this now; the server's log says why")

    @app.exception_handler(exceptions.HTTPException)
    async def of_the_framework(request: Any, error: Any) -> Any:
        return failure(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def defect(request: Any, error: Exception) -> Any:
        logger.exception("a defect", exc_info=error)
        return failure(500, "a defect of the server; its log says more")


def _add_guard(app: Any, service: Service, token: str) -> None:
    """A token before all routes but the page and the health checks, and a log line behind each."""

    @app.middleware("http")
    async def guard(request: Any, go_on: Callable[[Any], Awaitable[Any]]) -> Any:
        began = time.perf_counter()
        path = request.url.path
        if token and path not in OPEN and not _has_token(request.headers.get("authorization", ""), token):
            answer = responses.JSONResponse(
                {"error": "send the token as Authorization: Bearer ..."},
                401,
                {"WWW-Authenticate": "Bearer", **HEADERS},
            )
        else:
            answer = await go_on(request)
        seconds = time.perf_counter() - began
        route = request.scope.get("route")
        known = route.path if route is not None else "other"
        service.metrics.requests.labels(known, answer.status_code).inc()
        service.metrics.seconds.labels(known).observe(seconds)
        line = {"method": request.method, "route": known, "status": answer.status_code}
        logger.info("request", extra={"fields": {**line, "ms": round(1000 * seconds, 1)}})
        for header, value in HEADERS.items():
            answer.headers.setdefault(header, value)
        return answer


def _has_token(header: str, token: str) -> bool:
    """Whether a client has the token: as a bearer, or as the password of basic authentication."""
    kind, _, given = header.partition(" ")
    if kind.lower() == "basic":
        try:
            given = b64decode(given, validate=True).decode().partition(":")[2]
        except (Base64Error, UnicodeDecodeError):
            return False
    elif kind.lower() != "bearer":
        return False
    return hmac.compare_digest(given.strip().encode(), token.encode())


def _add_state(app: Any, service: Service, name: str) -> None:
    @app.get("/health", tags=["state"])
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "UP", "model_class": "OpenCLOC"}

    @app.get("/ready", tags=["state"], responses={503: FAILURES[503]})
    async def ready() -> dict[str, str]:
        """Whether requests are taken."""
        if not app.state.is_ready or service.images.waiting >= service.limits.waiting:
            raise RefusedError(503, "not ready")
        return {"status": "READY"}

    @app.get("/metrics", tags=["state"], response_class=responses.PlainTextResponse)
    async def metrics() -> Any:
        """Counters for Prometheus."""
        return responses.PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/info", response_model=forms.Info, responses=_of(401), tags=["state"])
    async def info() -> Any:
        """What this server is and takes."""
        index = None
        if service.index is not None:
            from open_cloc.index.rows import PICTURES, REGIONS  # of an extra of its own

            store = service.index.store
            index = {
                "pictures": await service.beside(store.count, PICTURES),
                "regions": await service.beside(store.count, REGIONS),
                "columns": dict(store.about.columns),
                "thumbnails": bool(store.about.thumbnail),
            }
        model = service.predictor.model
        return forms.Info(
            version=version_of("open-cloc"),
            model=name,
            embed_dim=model.embed_dim,
            image_size=list(model.preprocess.image_size),
            limits=asdict(service.limits),
            index=index,
            urls=service.fetch.is_open,
        )


def _of(*codes: int) -> dict[int, Any]:
    return {code: FAILURES[code] for code in codes}


def _body(form: Any) -> dict[str, Any]:
    """How OpenAPI describes a request that is JSON, or a file and JSON."""
    schema = forms.schema_of(form)
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if FILE in form.model_fields:
        properties = {
            FILE: {"type": "string", "format": "binary"},
            REST: {"type": "string", "description": "JSON of everything else."},
        }
        content["multipart/form-data"] = {
            "schema": {"type": "object", "properties": properties, "required": [FILE]}
        }
    return {"requestBody": {"required": True, "content": content}}


def _post(app: Any, path: str, form: Any, answer: Any, tag: str) -> Callable[[Any], Any]:
    """Add a route that reads a form; the function below it takes what was read."""

    def add(function: Callable[[Asked], Awaitable[Any]]) -> Callable[[Asked], Awaitable[Any]]:
        async def route(request: fastapi.Request) -> Any:  # type: ignore[name-defined]
            asked = await read_request(request, form, app.state.service.limits)
            return _json(await function(asked))

        # FastAPI reads annotations by their names.
        route.__annotations__["request"] = fastapi.Request
        route.__name__, route.__doc__ = function.__name__, form.__doc__
        app.post(
            path,
            responses={200: {"model": answer, "description": "Answered."}, **FAILURES},
            openapi_extra=_body(form),
            tags=[tag],
        )(route)
        return function

    return add


def _json(document: Any) -> Any:
    """An answer as it is: FastAPI's own way looks at each number."""
    return responses.Response(json.dumps(document, allow_nan=False), media_type="application/json")


def _add_questions(app: Any, service: Service) -> None:
    limits, compute = service.limits, service.compute

    @_post(app, "/v1/embed/image", forms.EmbedImage, forms.Embedding, "embed")
    async def embed_image(asked: Asked) -> Any:
        image = await service.image(asked)
        vector = await compute(image.embed)
        own = as_base64(vector) if asked.form.encoding == "base64" else vector.tolist()
        return {"size": _size(image), "embedding": own}

    @_post(app, "/v1/embed/text", forms.EmbedTexts, forms.Embeddings, "embed")
    async def embed_text(asked: Asked) -> Any:
        limits.check_texts(asked.form.texts, "texts")
        rows = await compute(service.predictor.encode_text, asked.form.texts)
        return {"embeddings": _rows(rows, asked.form.encoding)}

    @_post(app, "/v1/embed/regions", forms.EmbedRegions, forms.Embeddings, "embed")
    async def embed_regions(asked: Asked) -> Any:
        form = asked.form
        limits.check_count(len(form.boxes), limits.boxes, "boxes")
        image = await service.image(asked)
        regions = await service.regions(image, form)
        return {"embeddings": _rows(regions.features.float().cpu().numpy(), form.encoding)}

    @_post(app, "/v1/classify", forms.Classify, forms.Names, "ask")
    async def classify(asked: Asked) -> Any:
        form = asked.form
        limits.check_texts(form.labels, "labels")
        limits.check_count(len(form.boxes or ()), limits.boxes, "boxes")
        image = await service.image(asked)
        if form.boxes is None:
            named = await compute(image.classify, form.labels, top_k=form.top_k)
        else:
            regions = await service.regions(image, form)
            named = await compute(image.name, regions, form.labels, top_k=form.top_k)
        return {"size": _size(image), "regions": [region.as_json() for region in named]}

    @_post(app, "/v1/ground", forms.Ground, forms.Phrases, "ask")
    async def ground(asked: Asked) -> Any:
        limits.check_texts(asked.form.phrases, "phrases")
        image = await service.image(asked)
        found = await compute(image.find, asked.form.phrases, min_score=asked.form.min_score)
        return {"size": _size(image), "phrases": [phrase.as_json() for phrase in found]}


def _size(image: Any) -> list[int]:
    """(width, height) of a picture."""
    return [image.size_hw[1], image.size_hw[0]]


def _rows(rows: Any, encoding: str) -> list[Any]:
    return [as_base64(row) for row in rows] if encoding == "base64" else rows.tolist()


def _add_search(app: Any, service: Service) -> None:
    @_post(app, "/v1/search", forms.Search, forms.Hits, "search")
    async def search(asked: Asked) -> Any:
        return {"hits": await service.search(asked)}

    @app.get(
        "/v1/index/pictures/{picture}",
        response_class=responses.Response,
        responses={200: {"content": {"image/jpeg": {}}, "description": "A JPEG."}, **_of(401, 404, 422)},
        tags=["search"],
    )
    async def thumbnail(picture: str) -> Any:
        """The small picture of a hit."""
        index = service.index
        found = None if index is None else await service.beside(index.thumbnail, picture[:40])
        if found is None:
            raise RefusedError(404, "the index has no small picture of that name")
        headers = {"Cache-Control": "private, max-age=3600"}
        return responses.Response(found, media_type="image/jpeg", headers=headers)


def _add_page(app: Any) -> None:
    folder = resources.files("open_cloc.server") / "web"
    for path, file in PAGE.items():
        kind = TYPES[file.rpartition(".")[2]]
        app.add_api_route(path, _route_to((folder / file).read_bytes(), kind), include_in_schema=False)


def _route_to(content: bytes, kind: str) -> Callable[[], Awaitable[Any]]:
    """What answers with a file of the page."""

    async def answer() -> Any:
        return responses.Response(content, media_type=kind)

    return answer
