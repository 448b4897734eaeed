"""A folder with a sub-folder of pictures for each class: ImageNet's `val`, torchvision's `ImageFolder`."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from open_cloc.data.annotations import RawSample, finish
from open_cloc.data.names import make_keys, printable, resolve
from open_cloc.data.readers import SPLITS
from open_cloc.data.readers.files import OF_SYSTEMS, list_files, subfolders
from open_cloc.data.readers.folder import no_pictures
from open_cloc.data.readers.unread import count_unread
from open_cloc.errors import MissingFileError, UserError
from open_cloc.files import read_text
from open_cloc.pictures import is_picture
from open_cloc.samples import RegionSample
from open_cloc.texts import PackedTexts, sound_text

LOOSE = "pictures beside the folders of classes, which have no class"


def recognises(text: str) -> bool:
    """Never: whether a folder's name is a class or a place to keep pictures has to be told."""
    return False


def open_class_folders(path: str, names: Path | None = None, outside: bool = False) -> ClassFolders:
    """Open the pictures of each class, sorted by path.

    Args:
        path: The folder of the classes' folders; pictures may lie in folders of these.
        names: File of what the folders' names stand for, `n01440764 tench, Tinca tinca` a line, parted by a
            tab or else by the first blank; of several names, the one before the comma is taken.
        outside: Follow links to files and folders that do not lie in the folder.

    Raises:
        MissingFileError: If the folder or the file does not exist.
        UserError: If no folder holds a picture, two are of one class, the file does not name one, or all of
            them are splits.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise MissingFileError(f"no such folder: {folder}")
    return ClassFolders(folder, names, outside)


class ClassFolders:
    """The pictures below a folder of classes, each with its class as `metadata["label"]`.

    Attributes:
        folder: Where the classes' folders lie.
        file_names: Paths of the pictures below the folder, sorted.
        keys: A name for each picture.
        class_names: The class of each folder, in the folders' order, those without a picture too.
        problems: Folders that cannot be read, or lead out of the data set.
        left_out: What was seen and is not used, with counts.
    """

    def __init__(self, folder: Path, names: Path | None = None, outside: bool = False) -> None:
        """List the pictures, and name the classes.

        Args:
            folder: Where the classes' folders lie.
            names: File of what the folders' names stand for.
            outside: Follow links that lead out of the folder.

        Raises:
            UserError: As `open_class_folders`.
        """
        self.folder, self.outside = folder, outside
        listing = list_files(folder, outside)
        files = [name for name in listing.files if is_picture(name)]
        found = [name for name in files if "/" in name]
        if not found:
            raise _no_classes(folder, len(files)) if files else no_pictures(folder, listing)
        folders = _folders(folder)
        if names is None:
            _refuse_splits(folder, folders)
        self.class_names = _classes(folder, folders, names)
        numbers = {name: number for number, name in enumerate(folders)}
        self._labels = np.array([numbers[name.partition("/")[0]] for name in found], np.int32)
        self.file_names, self.keys = PackedTexts(found), PackedTexts(make_keys(found))
        self.problems = listing.problems
        self.left_out: Counter[str] = Counter(listing.skipped)
        self.left_out += Counter({LOOSE: len(files) - len(found)})
        self.left_out.update(count_unread(folder, (name for name in listing.files if not is_picture(name))))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> RegionSample:
        """A sample with its class; its picture is not decoded.

        Raises:
            SampleError: If the picture leads out of the folder.
        """
        return finish(self.raw(index))

    def raw(self, index: int) -> RawSample:
        """The same as other readers have it before boxes are looked at; there are none.

        Raises:
            SampleError: If the picture leads out of the folder.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} ({self.folder})")
        image = resolve(self.folder, self.file_names[index], outside=self.outside)
        label = self.class_names[self._labels[index]]
        return RawSample(self.keys[index], image, None, str(image), metadata={"label": label})


def _folders(folder: Path) -> list[str]:
    """Names of the classes' folders, sorted as torchvision does; a link back to the whole is none of them."""
    own = [place for place in subfolders(folder) if place.name.lower() not in OF_SYSTEMS]
    return [place.name for place in own if not (place.is_symlink() and place.samefile(folder))]


def _refuse_splits(folder: Path, folders: Sequence[str]) -> None:
    """Whoever gives the folder above the splits does not mean that `train` and `val` are classes."""
    if all(name.lower() in SPLITS for name in folders):
        each = ", ".join(f"class_folders:{folder / name}" for name in folders)
        raise UserError(f"{str(folder)!r} holds splits instead of classes; give one of {each}")


def _classes(folder: Path, folders: Sequence[str], names: Path | None) -> tuple[str, ...]:
    """The class of each folder.

    Raises:
        UserError: If the file does not name a folder, or two are of one class.
    """
    own = list(map(_as_written, folders))
    known = {name: name for name in own} if names is None else _read_names(names)
    unnamed = [name for name in own if name not in known]
    if unnamed:
        more = f" and {len(unnamed) - 1} more folders" if len(unnamed) > 1 else ""
        raise UserError(f"{names} does not name {unnamed[0]!r}{more} of {folder}: add what each is called")
    classes = tuple(_one_line(known[name]) for name in own)
    if "" in classes:
        raise UserError(f"folder {own[classes.index('')]!r} in {folder} has no name to be a class: rename it")
    by_class: defaultdict[str, list[str]] = defaultdict(list)
    for name, one in zip(own, classes):
        by_class[one].append(name)
    shared = [f"{one!r} ({', '.join(same)})" for one, same in by_class.items() if len(same) > 1]
    if shared:
        where = "rename them or give names=FILE" if names is None else f"give each its own in {names}"
        raise UserError(f"folders of {folder} share the names {', '.join(shared)}: {where}")
    return classes


def _read_names(file: Path) -> Mapping[str, str]:
    """What each folder of a file is called.

    Raises:
        UserError: If a line is not of that form, or names a folder again.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, read_text(file).splitlines()), 1):
        if not line:
            continue
        own, *rest = line.split("\t" if "\t" in line else None, 1)
        name, folder = "".join(rest).partition(",")[0].strip(), _as_written(own.strip())
        if not name:
            raise UserError(f"a line must be FOLDER NAME; got {line!r:.80} ({file}, line {number})")
        if folder in found:
            raise UserError(
                f"folder {folder!r} is named again ({file}, line {number}): keep one of its lines"
            )
        found[folder] = name
    return found


def _as_written(name: str) -> str:
    """A folder's name as text, the same whatever system wrote it."""
    return unicodedata.normalize("NFC", printable(name))


def _one_line(name: str) -> str:
    """A class's name as samples of every reader are cleaned, so that both stay equal."""
    return " ".join(sound_text(name).split())


def _no_classes(folder: Path, loose: int) -> UserError:
    """The error where all pictures lie beside each other, as ImageNet's archive of `val` unpacks."""
    return UserError(
        f"no picture lies in a sub-folder of {folder}, and {loose} beside them: class_folders takes a folder "
        "of pictures for each class; folder:PATH reads them without classes"
    )
