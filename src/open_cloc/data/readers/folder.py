"""A folder of pictures, with captions and regions in files beside them or in `metadata.jsonl`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath

from open_cloc.data.annotations import RawSample, finish
from open_cloc.data.bad_samples import listed
from open_cloc.data.names import make_keys, printable, resolve
from open_cloc.data.readers.files import Listing, list_files, walk
from open_cloc.data.readers.metadata import Metadata
from open_cloc.data.readers.sidecars import pair, read_beside
from open_cloc.data.readers.unread import count_unread
from open_cloc.errors import MissingFileError, UserError
from open_cloc.pictures import SUFFIXES, UNREAD_SUFFIXES, is_picture
from open_cloc.samples import RegionSample
from open_cloc.texts import PackedTexts


def recognises(text: str) -> bool:
    """Whether there is a picture anywhere below a folder, be it one that is not read."""
    return Path(text).is_dir() and any(
        is_picture(name) or PurePosixPath(name).suffix.lower() in UNREAD_SUFFIXES for name in walk(Path(text))
    )


def open_folder(path: str, outside: bool = False) -> FolderDataset:
    """Open all pictures below a folder, sorted by path.

    A picture's captions are those of `file_name` in the metadata of its folder or one above, as in Hugging
    Face's image folders, else those of the `.json`, `.txt` or `.caption` beside it; JSON may hold regions.
    Its key is its path without suffix; where two would share one, the suffix is added: `a_jpg` and `a_png`.

    Args:
        path: The folder.
        outside: Follow links to files and folders that do not lie in the folder.

    Raises:
        MissingFileError: If it does not exist.
        UserError: If it holds no pictures.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise MissingFileError(f"no such folder: {folder}")
    return FolderDataset(folder, outside)


class FolderDataset:
    """The pictures below a folder.

    Attributes:
        folder: Where the pictures lie.
        file_names: Paths of the pictures below the folder, sorted.
        keys: A name for each picture.
        problems: Entries that cannot be used and belong to no sample.
        left_out: What was seen and is not used, with counts.
    """

    def __init__(self, folder: Path, outside: bool = False) -> None:
        """List the pictures and find what the metadata say of them.

        Args:
            folder: Where the pictures lie.
            outside: Follow links that lead out of it.

        Raises:
            UserError: If there are no pictures.
        """
        self.folder, self.outside = folder, outside
        listing = list_files(folder, outside)
        names = [name for name in listing.files if is_picture(name)]
        if not names:
            raise no_pictures(folder, listing)
        others = [name for name in listing.files if not is_picture(name)]
        self.file_names = PackedTexts(names)
        self.keys = PackedTexts(make_keys(names))
        self._metadata = Metadata(folder, names, others, outside)
        beside, used = pair(names, others)
        self._beside = PackedTexts(beside)
        self.problems = [*listing.problems, *self._metadata.problems]
        self.left_out: Counter[str] = Counter(listing.skipped) + self._metadata.left_out
        used.update(self._metadata.names)
        self.left_out.update(count_unread(folder, (name for name in others if name not in used)))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> RegionSample:
        """A sample with its boxes checked; its picture is not decoded.

        Raises:
            SampleError: If anything about it is wrong; names the file.
        """
        return finish(self.raw(index))

    def raw(self, index: int) -> RawSample:
        """A sample with its boxes as in the file beside it.

        Raises:
            SampleError: If the picture leads out of the folder.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} ({self.folder})")
        name = self.file_names[index]
        image = resolve(self.folder, name, outside=self.outside)
        suffixes = self._beside[index].split()
        sample = read_beside(self.folder, name, suffixes, self.keys[index], image, self.outside)
        described = self._metadata.add_to(sample, name)
        return replace(described, metadata={**described.metadata, "file_name": printable(name)})


def no_pictures(folder: Path, listing: Listing) -> UserError:
    """The error for a folder without pictures, which says what is there instead."""
    suffixes = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in listing.files)
    there = f"; there are {listed(suffixes)}" if suffixes else ""
    reason = f"; {listing.problems[0].message}" if listing.problems else ""
    return UserError(f"no pictures ({', '.join(SUFFIXES)}) in folder {folder}{there}{reason}")
