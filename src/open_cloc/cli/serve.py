"""`open-cloc serve --weights MODEL`: a model behind HTTP, and a page to try it at /."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from open_cloc.cli.parse import parse
from open_cloc.cli.screen import as_shown, say
from open_cloc.config import require
from open_cloc.errors import UserError
from open_cloc.files import read_text
from open_cloc.inference.predictor import Predictor, load
from open_cloc.model.load import Dtype
from open_cloc.server.limits import Limits

if TYPE_CHECKING:
    from open_cloc.index.region_index import RegionIndex

TOKEN = "OPEN_CLOC_TOKEN"
LOCAL = ("localhost", "127.0.0.1", "[::1]", "::1")


@dataclass(frozen=True)
class Options:
    """Serve a model: embed, classify, ground and search by HTTP, and a page at /.

    Attributes:
        weights: Model folder or hub id.
        index: Index of `open-cloc index` to search.
        host: Address to listen at; other machines reach it only at another than this one's own.
        port: Port to listen at; 0 takes a free one.
        token_file: File whose first line clients must send as a bearer token; else OPEN_CLOC_TOKEN is taken.
        allow_urls: Beginnings of URLs from which pictures may be fetched, such as https://host/photos/.
        hosts: Names by which the server may be called; at this machine's own address, only its own names.
        label_studio: Labels, or LABEL=PHRASE, for Label Studio's routes /setup and /predict.
        limits: What is taken.
        device: cpu, cuda, ...; a GPU if there is one.
        dtype: Type of the towers' weights, that of the index unless given; bf16 is several times as fast
            where the processor has it.
    """

    weights: str
    index: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    allow_urls: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    label_studio: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    device: str | None = None
    dtype: Dtype | None = None


def main(argv: Sequence[str]) -> int:
    """Run the verb until a signal comes; what was asked by then is answered."""
    options = parse(Options, argv, "open-cloc serve", config=(tyro.conf.FlagConversionOff,))
    uvicorn = require("uvicorn", "serve")
    require("fastapi", "serve")
    if not 0 <= options.port <= 65535:
        raise UserError(f"--port must be in 0..65535; got {options.port}")
    app = make_app(options)
    _log_as_json()
    config = uvicorn.Config(
        app,
        options.host,
        options.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=30,
        timeout_keep_alive=30,
    )
    server = _Server(uvicorn, config)
    server.run()
    return 0


def make_app(options: Options) -> Any:
    """The application that the options describe, and a warning where strangers could reach it."""
    from open_cloc.server.app import create_app

    token = read_token(options.token_file)
    if not token and not _is_local(options.host):
        say("anybody who reaches this address may ask: give --token-file or OPEN_CLOC_TOKEN", to_errors=True)
    predictor, index = load_both(options)
    hosts = options.hosts or (LOCAL if _is_local(options.host) else ("*",))
    return create_app(
        predictor,
        name=Path(options.weights).name if Path(options.weights).exists() else options.weights,
        limits=options.limits,
        index=index,
        token=token,
        allowed_urls=options.allow_urls,
        hosts=hosts,
        label_studio=options.label_studio,
    )


def load_both(options: Options) -> tuple[Predictor, RegionIndex | None]:
    """The model, in the type of the index that it shall search, and the index."""
    if not options.index:
        return load(options.weights, options.device, dtype=options.dtype), None
    from open_cloc.index.region_index import RegionIndex
    from open_cloc.index.store import Store

    store = Store.open(options.index)
    predictor = load(options.weights, options.device, dtype=options.dtype or store.about.dtype or None)
    return predictor, RegionIndex(store, predictor)


def read_token(file: Path | None) -> str:
    """The token that clients must send; empty for none.

    Raises:
        UserError: If the file's first line is empty.
    """
    if file is None:
        return os.environ.get(TOKEN, "").strip()
    token = read_text(file).partition("\n")[0].strip()
    if not token:
        raise UserError(f"--token-file must have a token in its first line; got {file}")
    return token


def _is_local(host: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server:
    """uvicorn's server, which says where it listens once it does."""

    def __init__(self, uvicorn: Any, config: Any) -> None:
        class Server(uvicorn.Server):
            async def startup(self, sockets: Any = None) -> None:
                await super().startup(sockets)
                for listening in self.servers:
                    for socket in listening.sockets:
                        host, port = socket.getsockname()[:2]
                        say(
                            f"serving at http://{f'[{host}]' if ':' in host else host}:{port}/",
                            to_errors=True,
                        )

        self._server = Server(config)

    def run(self) -> None:
        """Serve until a signal comes.

        Raises:
            UserError: If the address cannot be listened at.
        """
        try:
            self._server.run()
        except SystemExit:
            config = self._server.config
            place = f"{config.host}:{config.port}"
            raise UserError(f"cannot listen at {place}: it is in use, or not this machine's") from None


class JsonLines(logging.Formatter):
    """A log line as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        document = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + "Z",
            "level": record.levelname.lower(),
            "message": as_shown(record.getMessage()),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document)


def _log_as_json() -> None:
    """One JSON line for each request and each warning, to the standard error output."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("open_cloc").setLevel(logging.INFO)
