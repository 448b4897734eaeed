"""A model's name: of its numbers and config, wherever it came from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from open_cloc.model.identity import identity_of
from open_cloc.model.load import load_model
from tests.tiny import PROMPTERS, tiny_model


@pytest.mark.parametrize("prompter", PROMPTERS)
def test_a_saved_model_keeps_its_name(prompter: str, tmp_path: Path) -> None:
    model = tiny_model(prompter)
    name = identity_of(model)
    assert len(name) == 32
    assert int(name, 16) >= 0
    assert identity_of(tiny_model(prompter)) == name
    model.save_pretrained(tmp_path / "a")
    assert identity_of(load_model(tmp_path / "a", "cpu")) == name
    (tmp_path / "a").rename(tmp_path / "b")
    assert identity_of(load_model(tmp_path / "b", "cpu")) == name
    assert identity_of(load_model(tmp_path / "b", "cpu", dtype="bf16")) != name


def test_models_with_other_numbers_have_other_names() -> None:
    names = {identity_of(tiny_model(prompter)) for prompter in PROMPTERS}
    names.add(identity_of(tiny_model().to(torch.bfloat16)))
    model = tiny_model()
    for parameter in list(model.parameters())[::7]:
        with torch.no_grad():  # one number, by the least that its type knows
            first = parameter.view(-1)[:1]
            first.copy_(torch.nextafter(first, torch.full_like(first, 1e9)))
        names.add(identity_of(model))
    assert len(names) == 4 + len(list(model.parameters())[::7])


def test_the_config_counts() -> None:
    """Pictures that are resized in another way have other embeddings, by the same weights."""
    from open_cloc.model.create import ModelConfig, build_model
    from tests.tiny import TOWERS

    names = set()
    for mode in ("longest", "squash"):
        torch.manual_seed(0)
        names.add(identity_of(build_model(ModelConfig(towers=TOWERS, resize_mode=mode))))
    assert len(names) == 2
