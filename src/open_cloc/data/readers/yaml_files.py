"""YAML from elsewhere, read strictly: nothing is repeated, nothing refers to something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from open_cloc.errors import UserError
from open_cloc.files import read_text


def read_yaml(path: Path) -> Any:
    """Parse a YAML file.

    Raises:
        MissingFileError: If it is not there.
        UserError: If it is no YAML, names a key twice, holds aliases, or is nested without end.
    """
    text = read_text(path)
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except RecursionError:
        raise UserError(f"{path} is not valid YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # also dates and numbers that are none
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's, without what makes a small file large, and without silently taking the last of two keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.YAMLError(f"alias *{event.anchor} is not read here")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        counts = Counter(key for key in keys if isinstance(key, Hashable))
        for key, count in counts.most_common(1):
            if count > 1:
                raise yaml.YAMLError(f"key {key!r} comes twice in one table")
        return super().construct_mapping(node, deep)
