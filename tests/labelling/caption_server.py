"""A chat-completions server on loopback, for tests of captioning."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes]


def answer(text: Any) -> Reply:
    return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def error(status: int, said: str = "no", **headers: str) -> Reply:
    return status, headers, json.dumps({"error": {"message": said}}).encode()


def picture_in(body: dict[str, Any]) -> bytes:
    (message,) = body["messages"]
    url = next(part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url")
    return base64.b64decode(url.partition(",")[2])


class Server:
    """A chat-completions server on loopback whose answers a test decides."""

    def __init__(self, reply: Callable[[int, dict[str, Any]], Reply]) -> None:
        self.reply = reply
        self.models: Reply = (200, {}, json.dumps({"data": [{"id": "m", "root": "org/m"}]}).encode())
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.running = self.most = 0
        self.trickle = 0.0  # seconds between two bytes of an answer
        self.stopping = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send(*(owner.models if self.path == "/v1/models" else error(404)))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner.lock:
                    number = len(owner.requests)
                    owner.requests.append(body)
                    owner.headers.append(dict(self.headers))
                    owner.running += 1
                    owner.most = max(owner.most, owner.running)
                reply = owner.reply(number, body) if self.path == "/v1/chat/completions" else error(404)
                with owner.lock:
                    owner.running -= 1
                if reply[0] == 0:
                    self.close_connection = True  # hangs up without a word
                    return
                self._send(*reply)

            def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                try:
                    for byte in [body] if not owner.trickle else [body[i : i + 1] for i in range(len(body))]:
                        self.wfile.write(byte)
                        self.wfile.flush()
                        if owner.stopping.wait(owner.trickle) and owner.trickle:
                            return
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client has lost its patience

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64  # of 5, connections that come all at once wait a second

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Clients that hang up are part of the tests."""

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stall(self, seconds: float = 30) -> None:
        self.stopping.wait(seconds)

    def close(self) -> None:
        self.stopping.set()
        self.http.shutdown()
        self.http.server_close()
