"""Captioners: each gives every picture of a batch a text."""

from __future__ import annotations

from open_cloc.config import lookup
from open_cloc.labelling.checks import check_caption
from open_cloc.labelling.recipe import CaptionConfig
from open_cloc.labelling.types import Captioner

__all__ = ["CAPTIONERS", "open_captioner"]

# kind -> `module:class` of a captioner made from (config, device).
CAPTIONERS = {
    "given": "open_cloc.labelling.captioners.given:GivenCaptioner",
    "local": "open_cloc.labelling.captioners.local:LocalCaptioner",
    "server": "open_cloc.labelling.captioners.server:ServerCaptioner",
}


def open_captioner(config: CaptionConfig, device: str = "cpu") -> Captioner:
    """Open a captioner; a local one loads its model, a server is asked for its list.

    Args:
        config: Which one; its `kind` is a key of `CAPTIONERS`, or `package.module:Name` of a callable of the
            same two arguments.
        device: Where a local model runs.

    Raises:
        UserError: On an unknown kind, a setting that cannot be, or a model or server that refuses them.
        MissingFileError: If a local model is not there.
        NoServerError: If a server is not there.
    """
    check_caption(config)
    return lookup(CAPTIONERS, config.kind, "caption.kind")(config, device)
