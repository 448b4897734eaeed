"""FiftyOne's database without a server: mongomock in its place, and the two operators that this one lacks.

FiftyOne brings a mongod of its own on most machines, but downloads it, which tests may not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def mongo_in_memory() -> Iterator[None]:
    """Within it, FiftyOne keeps its datasets in this process."""
    import fiftyone.core.odm.database as database
    import mongoengine
    import mongomock.aggregate
    import mongomock.gridfs
    import mongomock.store

    store = mongomock.store.ServerStore()

    class Client(mongomock.MongoClient):
        _closed = False  # mongomock takes each other name for a database

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(_store=store)

        def server_info(self) -> dict[str, Any]:
            return {"version": "7.0.0", "versionArray": [7, 0, 0, 0]}

    connect, parse = mongoengine.connect, mongomock.aggregate._Parser.parse

    def connect_here(name: str, **options: Any) -> Any:
        return connect(name, mongo_client_class=Client, uuidRepresentation="standard")

    def parse_more(self: Any, expression: Any) -> Any:
        if isinstance(expression, dict) and "$rand" in expression:
            return random.random()
        if isinstance(expression, dict) and "$indexOfArray" in expression:
            values, wanted = (self.parse(part) for part in expression["$indexOfArray"])
            return values.index(wanted) if wanted in values else -1
        return parse(self, expression)

    mongomock.gridfs.enable_gridfs_integration()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database.pymongo, "MongoClient", Client)
        patch.setattr(database.mongoengine, "connect", connect_here)
        patch.setattr(mongomock.aggregate._Parser, "parse", parse_more)
        patch.setattr(database.fo.config, "database_uri", "mongodb://nowhere")  # or it would start one
        yield
        database._disconnect()
