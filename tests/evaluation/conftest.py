"""A tiny CLOC and a tiny data set for it."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_data import Samples, make_samples

from open_cloc.canvas import CanvasConfig
from open_cloc.model.cloc import CLOC
from open_cloc.model.prompter import PrompterConfig


@pytest.fixture
def model(tiny_model_cfg: dict[str, Any]) -> CLOC:
    prompter = PrompterConfig(readout="prompt", box_prior=True, box_content="none", pooled_residual=True)
    return CLOC(tiny_model_cfg, prompter, CanvasConfig((64, 64))).eval()


@pytest.fixture
def samples() -> Samples:
    return make_samples()
