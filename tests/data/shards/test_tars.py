"""What a tar holds, sample by sample: members anywhere, what is left out, what is wrong and what it costs."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_cloc.data.bad_samples import read_usable, tell_opening
from open_cloc.data.readers import guess_spec
from open_cloc.data.shards.read import ShardDataset
from open_cloc.data.shards.tars import scan_tar
from open_cloc.data.shards.write import write_shards
from open_cloc.errors import UserError
from open_cloc.pictures import SUFFIXES
from tests.data.shards.tars import encoded, keys_of, samples, shard_of, tar_of

PICTURE = encoded("JPEG")


def causes(dataset: ShardDataset) -> list[str]:
    return [problem.cause for problem in dataset.problems]


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **changes: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in changes.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(content))


def test_members_belong_together_wherever_they_stand(tmp_path: Path) -> None:
    """As in a tar of `*.jpg *.txt`."""
    pictures = [(f"{i:04d}.jpg", PICTURE) for i in range(4)]
    texts = [(f"./{i:04d}.txt", b"caption %d" % i) for i in range(4)]
    dataset = ShardDataset(str(tar_of(tmp_path / "t.tar", [*pictures, *texts])))
    assert [dataset[i].captions for i in range(4)] == [(f"caption {i}",) for i in range(4)]
    assert (dataset.problems, dataset.left_out) == ([], {})


def test_a_broken_tar_costs_what_stands_behind_the_break(tmp_path: Path) -> None:
    write_shards(samples(), tmp_path / "out", 3)
    tar = tmp_path / "out/00000.tar"
    whole = tar.read_bytes()
    boundary = -(-len(whole.rstrip(b"\0")) // 512) * 512  # after the last member: only the end mark is gone
    with tarfile.open(tar) as opened:
        middle = opened.getmembers()[3].offset
    damaged = whole[:middle] + b"\x55" * 512 + whole[middle + 512 :]
    cases = ((whole[:1300], 3), (damaged, 3), (whole[:boundary], 5), (b"", 2), (b"no tar" * 200, 2))
    for content, left in cases:
        tar.write_bytes(content)
        (tmp_path / "out/00000_index.npz").unlink(missing_ok=True)  # with it, more would be left
        dataset = ShardDataset(str(tmp_path / "out"))
        assert len(dataset) == left, content[:20]
        assert [dataset[i].key for i in range(len(dataset))] == keys_of(dataset)
        (problem,) = dataset.problems
        assert problem.cause == "broken tar"
        assert problem.message.startswith("broken tar file: ")
        assert str(tar) in problem.message


def test_what_a_broken_tar_has_cost_decides_as_samples_do(tmp_path: Path) -> None:
    tars = [tar_of(tmp_path / f"{i}.tar", [(f"{i}{j}.jpg", PICTURE) for j in range(50)]) for i in range(3)]
    tars[1].write_bytes(tars[1].read_bytes()[:20_000])
    dataset = ShardDataset(str(tmp_path))
    assert causes(dataset) == ["broken tar"]
    assert len(dataset) + dataset.lost == pytest.approx(150, abs=3)
    tell_opening(dataset, "set", 0.35)
    with pytest.raises(UserError, match=r"about \d+ samples"):
        tell_opening(dataset, "set", 0.15)


@pytest.mark.parametrize(
    ("pack", "kind"),
    [
        (gzip.compress, "gzip"),
        (bz2.compress, "bzip2"),
        (lzma.compress, "xz"),
        (lambda content: b"\x28\xb5\x2f\xfd" + content, "zstd"),
        (lambda content: b"PK\x03\x04" + content, "zip"),
        (lambda content: b"version https://git-lfs.github.com/spec/v1\n", "a pointer of git LFS"),
        (lambda content: b"<!DOCTYPE html><html>no such bucket", "a web page"),
    ],
)
def test_what_is_no_tar_is_named_as_what_it_is(tmp_path: Path, pack: object, kind: str) -> None:
    tar = tar_of(tmp_path / "0.tar", [("a.jpg", PICTURE)])
    tar.write_bytes(pack(tar.read_bytes()))  # type: ignore[operator]
    with pytest.raises(UserError, match=rf"this is {kind}, no tar: .*\(.*0\.tar\)"):
        ShardDataset(str(tar))
    tar_of(tmp_path / "1.tar", [("b.jpg", PICTURE)])
    dataset = ShardDataset(str(tmp_path))
    assert (keys_of(dataset), causes(dataset)) == (["b"], ["not a tar"])


@pytest.mark.parametrize("name", ["0.tar.gz", "0.tgz", "0.TAR.ZST", "0.tar.xz", "0.tar.bz2"])
def test_compressed_tars_are_named_or_counted(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    for path in (tmp_path, tmp_path / name):
        assert guess_spec(str(path)) == f"shards:{path}"
        with pytest.raises(UserError, match=rf"tars are compressed, such as {name}: .* unpack them"):
            ShardDataset(str(path))
    tar_of(tmp_path / "1.tar", [("b.jpg", PICTURE)])
    (tmp_path / "._1.tar").write_bytes(b"left behind")
    assert ShardDataset(str(tmp_path)).left_out == {"compressed tars": 1, "hidden tars, such as ._NAME": 1}


def test_nothing_in_a_tar_is_left_out_in_silence(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("folder"))  # a member without a suffix
        for name in (
            "a.jpg",
            "a.png",
            "a.txt",
            "a.caption",
            "a.cls",
            "a.seg.png",
            "b.txt",
            "c.npy",
            "README",
        ):
            add(tar, name, PICTURE)
        for name in (
            "._a.jpg",
            "__MACOSX/._a.jpg",
            "__MACOSX/x/b.jpg",
            "x/.DS_Store",
            "Thumbs.db",
            ".hidden",
        ):
            add(tar, name, b"x")
        add(tar, "d.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "e.jpg", type=tarfile.LNKTYPE, linkname="a.jpg")
        add(tar, "f.jpg", type=tarfile.FIFOTYPE)
    dataset = ShardDataset(str(tmp_path / "t.tar"))
    assert keys_of(dataset) == ["a"]
    assert dataset.problems == []
    assert dataset.left_out == {
        "members without a suffix": 2,
        "second pictures of a key": 1,
        "second captions of a key": 1,
        "members .cls": 1,
        "members .seg.png": 1,
        "members .npy": 1,
        "keys without a picture": 2,
        "files that other systems leave behind, such as ._NAME": 5,
        "members without a name": 1,
        "links in tars": 2,
        "devices in tars": 1,
    }


def test_suffixes_without_end_are_counted_together(tmp_path: Path) -> None:
    dataset = ShardDataset(
        str(tar_of(tmp_path / "t.tar", [("a.jpg", PICTURE), *((f"a.x{i}", b"") for i in range(500))]))
    )
    assert len(dataset.left_out) < 30
    assert dataset.left_out["members of other suffixes"] > 400
    assert sum(dataset.left_out.values()) == 500


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".JPG", ".Png"])
def test_every_suffix_of_pictures_is_a_picture(tmp_path: Path, suffix: str) -> None:
    dataset = ShardDataset(str(tar_of(tmp_path / "t.tar", [(f"a{suffix}", PICTURE), ("a.TXT", b"hi")])))
    assert (len(dataset), dataset[0].captions) == (1, ("hi",))


@pytest.mark.parametrize("suffix", ["text", "caption"])
def test_captions_in_other_sidecars_are_read(tmp_path: Path, suffix: str) -> None:
    dataset = ShardDataset(str(tar_of(tmp_path / "t.tar", [("a.jpg", PICTURE), (f"a.{suffix}", b"hi")])))
    assert dataset[0].captions == ("hi",)


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["./0001.jpg", "./0002.jpg"], ["0001", "0002"]),
        (["v1.0/0001.jpg"], ["v1_0/0001"]),
        (["v1.0/a.jpg", "v1_0/a.jpg"], ["v1_0/a", "v1_0/a-2"]),
        (["/abs/a.jpg", "../../up/b.jpg"], ["abs/a", "up/b"]),
        (["dir\\a.jpg"], ["dir/a"]),
        (["e\u0301.jpg"], ["\u00e9"]),
        (["\udcff.jpg"], ["_"]),
        ([f"{'x' * 200}/{'y' * 150}.jpg"], [f"{'x' * 200}/{'y' * 150}"]),
        (["a.b.jpg", "c.jpg"], ["c"]),  # as webdataset has it: the key of the first is `a`
    ],
)
def test_keys_are_such_as_can_be_written_again(tmp_path: Path, names: list[str], keys: list[str]) -> None:
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "t.tar", "w", format=form, errors="surrogateescape") as tar:
            for name in names:
                add(tar, name, PICTURE)
        dataset = ShardDataset(str(tmp_path / "t.tar"))
        assert keys_of(dataset) == keys
        write_shards((dataset[i] for i in range(len(dataset))), tmp_path / f"out{form}")
        assert keys_of(ShardDataset(str(tmp_path / f"out{form}"))) == keys


def test_a_member_that_comes_twice_is_told_and_the_first_is_read(tmp_path: Path) -> None:
    other = encoded("JPEG", (30, 30))
    members = [("a.jpg", PICTURE), ("a.txt", b"1"), ("b.jpg", PICTURE), ("a.jpg", other), ("a.txt", b"2")]
    dataset = ShardDataset(str(tar_of(tmp_path / "t.tar", members)))
    assert causes(dataset) == ["member twice"]
    assert "key 'a' has two members .jpg; the first is read" in dataset.problems[0].message
    assert (dataset[0].image, dataset[0].captions) == (PICTURE, ("1",))


def test_a_key_of_two_tars_is_told_and_the_first_is_read(tmp_path: Path) -> None:
    tar_of(tmp_path / "00000.tar", [("a.jpg", PICTURE), ("b.jpg", PICTURE)])
    tar_of(tmp_path / "00001.tar", [("b.jpg", encoded("JPEG", (9, 9))), ("c.jpg", PICTURE)])
    dataset = ShardDataset(str(tmp_path))
    assert keys_of(dataset) == ["a", "b", "c"]
    assert [dataset[i].key for i in range(3)] == ["a", "b", "c"]
    assert dataset[1].image == PICTURE
    assert dataset.shard_sizes.tolist() == [2, 1]
    assert causes(dataset) == ["repeated key"]
    message = dataset.problems[0].message
    assert message.startswith("key 'b' occurs twice; the second is left out (")
    assert "00000.tar and" in message
    assert "00001.tar)" in message


def test_links_are_not_followed_and_sparse_members_not_read(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"")
    os.truncate(tmp_path / "big", 1 << 20)
    packed = os.system(
        f"cd {tmp_path} && cp big a.jpg && truncate -s 1M a.jpg && tar --sparse -cf s.tar a.jpg"
    )
    if packed:
        pytest.skip("needs GNU tar")
    with tarfile.open(tmp_path / "s.tar") as tar:
        assert tar.getmembers()[0].sparse is not None
    with pytest.raises(UserError, match=r"member 'a\.jpg' is sparse"):
        ShardDataset(str(tmp_path / "s.tar"))


@pytest.mark.parametrize("size", [-1, -512, -(2**40), 2**40, 2**62])
def test_sizes_that_lead_out_of_the_file_are_damage(tmp_path: Path, size: int) -> None:
    """In Python 3.11 a negative one makes tarfile read the same headers again and again."""
    blocks = []
    for number, own in enumerate((0, size)):
        info = tarfile.TarInfo(f"{number}.jpg")
        info.size = own
        blocks.append(info.tobuf(tarfile.GNU_FORMAT))
    (tmp_path / "t.tar").write_bytes(b"".join(blocks) + bytes(1024))
    scan = scan_tar(tmp_path / "t.tar")
    assert scan.keys == ["0"]
    assert [problem.cause for problem in scan.problems] == ["broken tar"]


@pytest.mark.parametrize("size", [-512, 1 << 20, 1 << 40])
def test_headers_without_end_take_no_memory(tmp_path: Path, size: int) -> None:
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        info = tarfile.TarInfo("x")
        info.size, info.type = size, kind
        (tmp_path / "t.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
        (problem,) = scan_tar(tmp_path / "t.tar").problems
        assert problem.message.startswith("broken tar file: ")
    chain = tarfile.TarInfo("x")
    chain.type = tarfile.XHDTYPE  # a header of a header of a header ...
    (tmp_path / "t.tar").write_bytes(chain.tobuf(tarfile.GNU_FORMAT) * 3000)
    (problem,) = scan_tar(tmp_path / "t.tar").problems
    assert "headers without end" in problem.message


def test_tars_that_were_joined_by_cat_are_told(tmp_path: Path) -> None:
    one, two = (tar_of(tmp_path / f"{name}.tar", [(f"{name}.jpg", PICTURE)]) for name in "ab")
    one.write_bytes(one.read_bytes() + two.read_bytes())
    dataset = ShardDataset(str(one))
    assert (keys_of(dataset), causes(dataset)) == (["a"], ["tar behind a tar"])


def test_a_tar_that_may_not_be_read_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar_of(tmp_path / "0.tar", [("a.jpg", PICTURE)])
    tar_of(tmp_path / "1.tar", [("b.jpg", PICTURE)])
    opened = Path.open

    def refuse(path: Path, *args: object, **options: object) -> object:
        if path.name == "1.tar":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        dataset = ShardDataset(str(tmp_path))
        assert (keys_of(dataset), causes(dataset)) == (["a"], ["unreadable tar"])
        assert "Permission denied" in dataset.problems[0].message
    assert keys_of(ShardDataset(str(tmp_path))) == ["a", "b"]


def test_what_is_read_equals_what_tarfile_extracts(tmp_path: Path) -> None:
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        with tarfile.open(tmp_path / "t.tar", "w", format=form) as tar:
            for number in range(5):
                add(tar, f"{'deep/' * 15}{number}.txt", b"caption %d" % number)
                add(tar, f"{'deep/' * 15}{number}.png", encoded("PNG", (9 + number, 7)))
        dataset = ShardDataset(str(tmp_path / "t.tar"))
        with tarfile.open(tmp_path / "t.tar") as tar:
            for index in range(5):
                sample = dataset[index]
                extracted = tar.extractfile(f"{sample.key}.png")
                assert extracted is not None
                assert sample.image == extracted.read()
                assert sample.captions == (f"caption {index}",)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_of_any_kind_is_told_and_never_raised(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of a sound tar overwritten, cut, repeated, every sample that is left reads or is a bad sample."""
    folder = tmp_path_factory.mktemp("fuzz")
    tar = shard_of(folder / "0.tar", {"caption": "x"}).paths[0]
    content = bytearray(tar.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(("bytes", "cut", "again"))):
            case "bytes":
                new = data.draw(st.binary(min_size=1, max_size=40))
                content[start : start + len(new)] = new
            case "cut":
                del content[start:]
            case "again":
                content[start:start] = content[start : start + 1024]
        if not content:
            break
    tar.write_bytes(content)
    scan = scan_tar(tar)
    assert scan.problems or scan.keys or scan.left_out or not content.strip(b"\0")
    try:
        dataset = ShardDataset(str(tar))
    except UserError:
        return
    for index in range(len(dataset)):
        read_usable(dataset, index)


@pytest.mark.parametrize("start", ["BZh", "%PDF", "Rar!"])
def test_names_that_begin_as_other_kinds_do_no_harm(tmp_path: Path, start: str) -> None:
    tar_of(tmp_path / "0.tar", [(f"{start}a.jpg", PICTURE)])
    assert len(ShardDataset(str(tmp_path / "0.tar"))) == 1
