"""The names that a picture or a region may have, and the groups that metrics are split into.

Shapes: X things to recognise, C classes, D shared embedding.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import UserError
from open_cloc.evaluation.checked import CheckedMethod
from open_cloc.evaluation.method import Method, cleaning_of
from open_cloc.evaluation.options import EvaluationConfig

logger = logging.getLogger(__name__)

# Of the cosine of a text with itself. Two different texts of a trained tower are thousands of times as far
# apart; of one that has hardly begun, or has collapsed, they may not be.
ROUNDING = 1e-6
ROWS = 1024  # of the table of all pairs, at a time


class Classes(NamedTuple):
    """The names to choose from, and who said so."""

    names: list[str]
    source: str

    @property
    def digest(self) -> str:
        """What equal names in equal order share, however a model reads capitals: 16 hexadecimal digits."""
        return digest_of(self.names)

    def targets(self, texts: Sequence[str]) -> Tensor:
        """Each text's class, (X,).

        Raises:
            UserError: If a text is not a class name.
        """
        index = {name: i for i, name in enumerate(self.names)}
        unknown = [text for text in texts if text not in index]
        if unknown:
            raise UserError(
                f"{unknown[0]!r} is none of the {len(index)} classes ({self.source}); expected every text of "
                "the data set among them"
            )
        return torch.tensor([index[text] for text in texts])


def digest_of(names: Iterable[str]) -> str:
    """What equal names in equal order share, capitals aside: 16 hexadecimal digits."""
    joined = "\0".join(name.lower() for name in names).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=8).hexdigest()


def class_names(
    method: Method, dataset: SampleDataset, texts: Sequence[str], config: EvaluationConfig
) -> Classes:
    """What a region may be: the config's classes, else the data set's, else its distinct texts."""
    given = config.classes or getattr(dataset, "class_names", ())
    if given:
        names = list(dict.fromkeys(map(cleaning_of(method), given)))
        return Classes(names, "given" if config.classes else "categories of the data set")
    return Classes(sorted(set(texts)), "distinct texts of the data set")


def embed_classes(
    method: Method, names: Sequence[str], config: EvaluationConfig, must_differ: bool = True
) -> Tensor:
    """Class names in their templates, each the mean of its features -> (C, D) of unit length, on the CPU.

    Args:
        method: Whose texts they are.
        names: Class names.
        config: Their templates.
        must_differ: Refuse names that are the same to the model; else say so, and they share its answers.

    Raises:
        UserError: If two of them are the same to the method's model: it may read only the beginning of each.
    """
    if not names:
        raise UserError("there are no classes to choose from: the data set is empty, or has no region")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"class {twice[0]!r:.80} is given more than once: an answer could be either")
    features = embed_in_templates(method, names, config)
    alike = _first_alike(features)
    if alike is not None:
        one, other = (names[row] for row in alike)
        message = f"classes {one!r:.80} and {other!r:.80} are the same to this model"
        if must_differ and tells_texts_apart(method):
            raise UserError(
                f"{message}: either it reads only their beginnings, then give shorter names or templates, or "
                "its text tower has not learned to tell texts apart, which eval region-health shows"
            )
        logger.warning("%s: they share its answers", message)
    return features


def embed_in_templates(method: Method, texts: Sequence[str], config: EvaluationConfig) -> Tensor:
    """Texts in the config's templates, each the mean of its features -> (X, D) of unit length, on the CPU."""
    written = [config.rules.texts_of(text) for text in texts]
    features = method.embed_texts([text for own in written for text in own]).cpu()  # (X * templates, D)
    return F.normalize(features.unflatten(0, (len(texts), -1)).mean(1), dim=-1)


def tells_texts_apart(method: Method) -> bool:
    """Whether a method means to: one that goes by a rule of its own says `tells_texts_apart = False`."""
    own = method.method if isinstance(method, CheckedMethod) else method
    return getattr(own, "tells_texts_apart", True)


def _first_alike(features: Tensor) -> tuple[int, int] | None:
    """The first two rows (C, D) that are the same but for rounding."""
    for start in range(0, len(features), ROWS):
        alike = features[start : start + ROWS] @ features.T > 1 - ROUNDING  # (rows, C)
        for row, other in alike.tril(start - 1).nonzero()[:1].tolist():
            return other, start + row
    return None


def class_groups(method: Method, dataset: SampleDataset, names: Sequence[str]) -> dict[str, list[int]]:
    """The numbers of the classes in each group that the data set knows, such as LVIS's frequencies."""
    numbers = {name: number for number, name in enumerate(names)}
    clean = cleaning_of(method)
    groups = getattr(dataset, "class_groups", {})
    found = {
        group: [numbers[clean(name)] for name in members if clean(name) in numbers]
        for group, members in groups.items()
    }
    return {group: members for group, members in found.items() if members}


def group_numbers(method: Method, classes: Classes, config: EvaluationConfig) -> dict[str, list[int]]:
    """The numbers of the classes in each group of the config.

    Raises:
        UserError: If a member is no class.
    """
    clean = cleaning_of(method)
    return {
        name: classes.targets([clean(member) for member in members]).tolist()
        for name, members in config.groups.items()
    }


def group_masks(method: Method, texts: Sequence[str], config: EvaluationConfig) -> dict[str, Tensor]:
    """Which regions each group of the config holds, by their texts: name -> (X,) bool.

    Raises:
        UserError: If a group holds none.
    """
    masks = {}
    for name, members in config.groups.items():
        cleaned = set(map(cleaning_of(method), members))
        masks[name] = torch.tensor([text in cleaned for text in texts])
        if not masks[name].any():
            raise UserError(f"group {name!r} holds no region of the data set; expected at least one")
    return masks
