"""Names from elsewhere as files and as keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_cloc.data import names
from open_cloc.data.names import make_keys, resolve, root_of
from open_cloc.errors import SampleError

PARTS = st.lists(
    st.sampled_from(["a", "b", "..", ".", "", "x.jpg", "x.png", "v1.0", "\\", "C:", "\udcff", "é"])
)


@given(st.lists(PARTS.map("/".join)))
def test_keys_differ_and_fit_into_a_tar(names: list[str]) -> None:
    keys = make_keys(names)
    assert len(set(keys)) == len(names)
    for key in keys:
        assert key
        assert "." not in key
        assert not key.startswith("/")
        key.encode()


def test_keys_are_paths_without_suffix() -> None:
    names = ["a.jpg", "sub/b.v2.jpg", "./c.png", "../up/d.webp", "e\\f.JPG", "C:\\g.png", "v1.0/0001"]
    assert make_keys(names) == ["a", "sub/b_v2", "c", "up/d", "e/f", "g", "v1_0/0001"]
    assert make_keys(["a.jpg", "a.png", "b.c.jpg", "b_c.jpg"]) == ["a_jpg", "a_png", "b_c_jpg", "b_c_jpg-2"]


def test_keys_of_one_name_take_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """ODVG may name a picture in 20,000 lines, which took half a minute."""

    class Counted(set[str]):
        asked = 0

        def __contains__(self, key: object) -> bool:
            Counted.asked += 1
            return super().__contains__(key)

    monkeypatch.setattr(names, "set", Counted, raising=False)
    keys = make_keys(["a.jpg"] * 3000 + ["b-7.jpg"] + ["b.jpg"] * 3000)
    assert keys[:3] == ["a_jpg", "a_jpg-2", "a_jpg-3"]
    assert len(set(keys)) == 6001
    assert 0 < Counted.asked < 4 * len(keys)
    assert make_keys(["a", "a", "a-2", "a", "a-4"]) == ["a", "a-3", "a-2", "a-5", "a-4"]


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/hostname", "in/../../x.jpg"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "set" / "in").mkdir(parents=True)
    (tmp_path / "x.jpg").touch()
    with pytest.raises(SampleError, match="leads out of the data set"):
        resolve(tmp_path / "set", name)
    assert resolve(tmp_path / "set", name, outside=True) == tmp_path / "set" / name


def test_urls_and_nul_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"URL, which is not fetched here: https://x/a\.jpg"):
        resolve(tmp_path, "https://x/a.jpg")
    with pytest.raises(SampleError, match="no file can have this name"):
        resolve(tmp_path, "a\0.jpg")


def test_another_form_of_unicode_is_found(tmp_path: Path) -> None:
    (tmp_path / "\u00e9.jpg").touch()
    assert resolve(tmp_path, "e\u0301.jpg") == tmp_path / "\u00e9.jpg"


def test_a_folder_of_annotations_belongs_to_the_one_above(tmp_path: Path) -> None:
    assert root_of(tmp_path / "annotations" / "x.json") == tmp_path
    assert root_of(tmp_path / "x.json") == tmp_path


@pytest.mark.parametrize("name", ["a\0.jpg", "\ud83d.jpg"])
def test_names_that_no_file_can_have_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SampleError, match="no file can have this name"):
        resolve(tmp_path, name)


def test_names_of_label_studio_are_found(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a b.jpg").touch()
    for name in ("/data/local-files/?d=in/a%20b.jpg", "data/local-files/?d=in/a b.jpg"):
        assert resolve(tmp_path, name) == tmp_path / "in" / "a b.jpg"
    (tmp_path / "b.jpg").touch()
    with pytest.raises(SampleError, match=r"leads out of the data set"):
        resolve(tmp_path / "in", "/data/local-files/?d=../b.jpg")
    with pytest.raises(SampleError, match="an absolute path; name pictures by their path below") as caught:
        resolve(tmp_path, "/data/upload/1/a.jpg")
    assert caught.value.cause == "missing picture"
