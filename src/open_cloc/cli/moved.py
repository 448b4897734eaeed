"""Options and fields that are called otherwise now; `CHANGELOG.md` has the whole table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from open_cloc.errors import UserError

LOWER_CASE = "--model.lower-case or --model.no-lower-case, and saved with the model"
TOLD_BY_MODEL = "part of the model, which is asked as it was trained"

# Beginning of an old option -> what to write now.
MOVED = {
    "--loss": "--objectives image_text region_text grounding, with options behind a comma",
    "--model.architecture": "--model.towers open_clip:NAME,pretrained=TAG",
    "--model.pretrained": "--model.towers open_clip:NAME,pretrained=TAG, or folder:PATH",
    "--model.timm": "--model.towers timm:NAME,text=FOLDER",
    "--model.text": "--model.towers timm:NAME,text=FOLDER",
    "--model.image-weights": "--model.towers timm:NAME,text=FOLDER,weights=FILE",
    "--model.embed": "--model.towers timm:NAME,text=FOLDER,embed_dim=N",
    "--model.context": "--model.towers timm:NAME,text=FOLDER,context_length=N",
    "--data.loader.lower-case": LOWER_CASE,
    "--data.loader.no-lower-case": LOWER_CASE,
    "--lower-case": TOLD_BY_MODEL,
    "--no-lower-case": TOLD_BY_MODEL,
    "--data.loader.batch": "--run.global-batch-size N, which is that of all ranks",
    "--detect.dtype": "--detect.precision fp32 or bf16",
    "--caption.model": "--caption.weights",
}


def check_options(args: Sequence[str]) -> None:
    """Say what an option of 0.1 is now.

    Raises:
        UserError: If one is among the arguments.
    """
    for arg in args:
        option = arg.replace("_", "-")
        now = next((new for old, new in MOVED.items() if option.startswith(old)), "")
        if now:
            raise UserError(f"{arg.split('=')[0]} is now {now} (CHANGELOG.md: Moving from 0.1)")
        if arg == "amp_bf16":
            raise UserError("precision amp_bf16 is now bf16 (CHANGELOG.md: Moving from 0.1)")


# Field of a recipe's dataclass in earlier versions -> what it is now.
FIELDS = {"lower_case": "ModelConfig.lower_case (model.lower_case of a table), and saved with the model"}


@contextmanager
def explain_fields() -> Iterator[None]:
    """Say where a field of an older recipe is now, while the recipe is made.

    Raises:
        UserError: If it names one of `FIELDS` where that is no longer.
    """
    try:
        yield
    except (TypeError, UserError) as error:
        said = str(error)
        found = next((name for name in FIELDS if f"argument {name!r}" in said or f"key {name!r}" in said), "")
        if not found:
            raise
        raise UserError(f"{said}: {found} is now {FIELDS[found]} (CHANGELOG.md: Moving from 0.1)") from error
