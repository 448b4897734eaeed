"""A server under many clients: `python -m benchmarks.server [--requests 10000] [--dtype bf16]`.

Three parts, each against a server in a process of its own, with a ViT-B/32 of random weights and the Prompter
of the recipe `finetune`:

- 32 clients with a picture and 20 boxes each, against one client at a time without batches or a cache;
- the same pictures again, which are remembered;
- wrong and right requests by the thousand: none may be answered by 500, and memory may not grow.

Writes runs/bench/server.json.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import torch
import tyro
from PIL import Image

from benchmarks.timing import verdict, write_json
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.training.recipes import finetune

CLIENTS, BOXES = 32, 20
JSON = {"content-type": "application/json"}


@dataclass
class Options:
    """Attributes:
    pictures: Different pictures.
    requests: Wrong and right requests.
    rounds: Of each way to ask.
    dtype: Type of the towers' weights, on both sides of each comparison.
    """

    pictures: int = 64
    requests: int = 10_000
    rounds: int = 3
    dtype: str = "fp32"


class Request(NamedTuple):
    """A request to be sent."""

    path: str
    content: bytes
    headers: dict[str, str]


def photo(seed: int, height: int = 480, width: int = 640) -> bytes:
    """A JPEG of soft noise: as large a file as a photo's."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


def right_requests(picture: bytes, seed: int) -> list[dict[str, Any]]:
    """Bodies by path, each of which is answered by 200."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.5, (BOXES, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.05, 0.5, (BOXES, 2))], 1).round(4).tolist()
    image = base64.b64encode(picture).decode()
    return [
        {
            "path": "/v1/embed/regions",
            "image": image,
            "boxes": boxes,
            "normalized": True,
            "encoding": "base64",
        },
        {"path": "/v1/embed/image", "image": image},
        {"path": "/v1/embed/text", "texts": ["a mug", "a cat"]},
        {"path": "/v1/classify", "image": image, "labels": ["a", "b"], "boxes": boxes, "normalized": True},
        {"path": "/v1/ground", "image": image, "phrases": ["a mug"]},
        {"path": "/v1/search", "text": "a mug"},
    ]


ODD: tuple[Any, ...] = (
    None, "", " ", "x" * 10_000, "\u0000", "\U0001f984", -1, 0, 1e308, 10**30, True, [], {}, [[]], [None],
    [[0, 0, 0, 0]], [[1, 1, 0, 0]], [[-5, 0, 9, 9]], [[0, 0, 1, 1]] * 2000, ["a"] * 3000, ["a", "a"], [""],
    "data:image/png;base64,", "http://127.0.0.1/x.png", "file:///etc/passwd", "../../etc/passwd", {"a": 1},
    "x' OR 1=1 --", [["0", 0, 1, 1]], "xywh", "cxcywh", "nonsense",
)  # fmt: skip


def mutated(seed: int, pictures: Sequence[bytes]) -> Request:
    """A right request with something wrong in it, or several things, or nothing."""
    rng = random.Random(seed)
    body = rng.choice(right_requests(pictures[seed % len(pictures)], seed))
    path = body.pop("path")
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        key = rng.choice(
            [*body, "where", "limit", "box", "like", "top_k", "min_score", "box_format", "other"]
        )
        if rng.random() < 0.15:
            body.pop(key, None)
        else:
            body[key] = rng.choice(ODD)
    content = json.dumps(body).encode()
    headers = dict(JSON)
    kind = rng.random()
    if kind < 0.05:  # cut off
        content = content[: rng.randrange(len(content) + 1)]
    elif kind < 0.10:  # bytes turned
        turned = bytearray(content)
        for _ in range(rng.randrange(1, 20)):
            turned[rng.randrange(len(turned))] = rng.randrange(256)
        content = bytes(turned)
    elif kind < 0.13:
        headers = {
            "content-type": rng.choice(
                ("text/plain", "multipart/form-data; boundary=x", "", "application/xml")
            )
        }
    elif kind < 0.16:  # no number
        content = content.replace(b"0.", b"NaN, 0.", 1)
    return Request(path, content, headers)


def save_model(folder: Path) -> None:
    """A ViT-B/32 of random weights."""
    torch.manual_seed(0)
    config = ModelConfig(towers="ViT-B-32", prompter=finetune().model.prompter)
    build_model(config).eval().save_pretrained(folder)


@contextmanager
def serving(weights: Path, *options: str) -> Iterator[tuple[str, int]]:
    """A server's address and its process number."""
    command = [
        sys.executable,
        "-m",
        "open_cloc.cli",
        "serve",
        "--weights",
        str(weights),
        "--port",
        "0",
        *options,
    ]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=log, text=True)
        address = ""
        while not address and process.poll() is None:
            time.sleep(0.05)
            log.seek(0)
            address = next((line.split()[-1] for line in log if line.startswith("serving at")), "")
        try:
            yield address, process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def memory_of(pid: int) -> float:
    """MiB that a process holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def ask_all(address: str, bodies: Sequence[dict[str, Any]], clients: int) -> float:
    """Seconds until all are answered by so many clients at a time, each of which asks one after the other."""
    opened = [httpx.Client(base_url=address, timeout=300) for _ in range(clients)]  # dear to make
    sent = [
        (body["path"], json.dumps({name: part for name, part in body.items() if name != "path"}).encode())
        for body in bodies
    ]

    def ask(number: int) -> None:
        for path, content in sent[number::clients]:
            opened[number].post(path, content=content, headers=JSON).raise_for_status()

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(clients)))
    seconds = time.perf_counter() - began
    for client in opened:
        client.close()
    return seconds


def measure_speed(weights: Path, options: Options) -> dict[str, Any]:
    """Requests/s one at a time, of many clients, and of many clients that ask again."""
    rows: dict[str, list[float]] = {"one at a time": [], "32 clients": [], "32 clients, again": []}
    count = options.pictures
    for number in range(options.rounds):
        bodies = [right_requests(photo(1000 * number + seed), seed)[0] for seed in range(count)]
        alone = ("--limits.batch", "1", "--limits.cache-megabytes", "0")
        with serving(weights, *alone, "--dtype", options.dtype) as (address, _):
            ask_all(address, bodies[:2], 1)
            rows["one at a time"].append(count / ask_all(address, bodies, 1))
        with serving(weights, "--dtype", options.dtype) as (address, _):
            ask_all(address, [right_requests(photo(999_999), 0)[0]] * 2, 1)
            rows["32 clients"].append(count / ask_all(address, bodies, CLIENTS))
            rows["32 clients, again"].append(count / ask_all(address, bodies, CLIENTS))
    return {name: float(np.median(values)) for name, values in rows.items()}


def measure_requests(weights: Path, options: Options) -> dict[str, Any]:
    """Statuses of wrong and right requests, and what memory does meanwhile."""
    pictures = [photo(seed, 120, 160) for seed in range(24)]
    statuses: Counter[int] = Counter()
    memory = []
    with serving(weights, "--limits.cache-megabytes", "64") as (address, pid):
        clients = [httpx.Client(base_url=address, timeout=300) for _ in range(4)]

        def send(number: int) -> int:
            path, content, headers = mutated(number, pictures)
            answer = clients[number % 4].post(path, content=content, headers=headers)
            if answer.status_code >= 500 and answer.status_code != 503:
                print(number, path, content[:200], answer.text)
            return answer.status_code

        step = max(1, options.requests // 10)
        with ThreadPoolExecutor(4) as pool:
            for start in range(0, options.requests, step):
                statuses.update(pool.map(send, range(start, min(start + step, options.requests))))
                memory.append(memory_of(pid))
        for client in clients:
            client.close()
    return {"statuses": dict(sorted(statuses.items())), "memory_mib": memory}


def main(options: Options) -> int:
    """Measure, print and write; 1 if a request was answered by 500."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "model"
        save_model(weights)
        speed = measure_speed(weights, options)
        found = measure_requests(weights, options)
    one = speed["one at a time"]
    print(json.dumps({"requests/s": speed, **found}, indent=2))
    growth = found["memory_mib"][-1] / found["memory_mib"][1] - 1
    failed = found["statuses"].get(500, 0)
    aims = [
        verdict("32 clients over one at a time", speed["32 clients"] / one, 2, least=True),
        verdict("the same pictures again", speed["32 clients, again"] / one, 8, least=True),
        verdict("growth of memory after the first fifth", growth, 0.02),
        verdict("requests answered by 500", failed, 0),
    ]
    write_json(
        "server",
        {
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "dtype": options.dtype,
            "speed": speed,
            **found,
            "aims": aims,
        },
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
