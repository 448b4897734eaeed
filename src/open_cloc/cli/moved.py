"""Options of version 0.1 that are called otherwise now; `CHANGELOG.md` has the whole table."""

from __future__ import annotations

from collections.abc import Sequence

from open_cloc.errors import UserError

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
