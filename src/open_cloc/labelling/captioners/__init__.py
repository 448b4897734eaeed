"""Captioners: each gives every picture of a batch a text; `open_captioner` opens one by its kind."""

from __future__ import annotations

from open_cloc.config import import_object
from open_cloc.errors import UserError
from open_cloc.labelling.recipe import CaptionConfig
from open_cloc.labelling.types import Captioner

__all__ = ["CAPTIONERS", "open_captioner"]

# kind -> `module:class` of a captioner made from (config, device). Imported only when used.
CAPTIONERS = {
    "given": "open_cloc.labelling.captioners.given:GivenCaptioner",
    "local": "open_cloc.labelling.captioners.local:LocalCaptioner",
    "server": "open_cloc.labelling.captioners.server:ServerCaptioner",
}


def open_captioner(config: CaptionConfig, device: str = "cpu") -> Captioner:
    """Open the captioner that a config asks for; a local one loads its model, a server is asked for its list.

    Args:
        config: Its `kind` is a key of `CAPTIONERS`, or `package.module:Name` of a callable of the same two
            arguments.
        device: Where a local model runs.

    Raises:
        UserError: On an unknown kind, a setting that cannot be, or a model or server that refuses them.
        MissingFileError: If a local model is not there.
        ConnectionError: If a server is not there.
    """
    if config.kind not in CAPTIONERS and ":" not in config.kind:
        kinds = ", ".join(CAPTIONERS)
        raise UserError(f"caption.kind must be {kinds} or package.module:Name; got {config.kind!r}")
    for field, least in (("max_new_tokens", 1), ("requests", 1), ("retries", 0)):
        if getattr(config, field) < least:
            raise UserError(f"caption.{field} must be at least {least}; got {getattr(config, field)}")
    if not config.timeout > 0:
        raise UserError(f"caption.timeout must be more than 0 seconds; got {config.timeout}")
    return import_object(CAPTIONERS.get(config.kind, config.kind), "captioner")(config, device)
