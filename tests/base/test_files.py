"""Files that are written whole or not at all."""

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.base.files import slug, whole, write_text


def test_readers_see_the_old_file_until_the_end(tmp_path):
    path = tmp_path / "answer.txt"
    path.write_text("old")
    with whole(path) as temporary:
        assert temporary.parent == path.parent, "another file system could not replace it in one step"
        temporary.write_text("half")
        assert path.read_text() == "old"
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_behind(tmp_path, error):
    path = tmp_path / "answer.txt"

    def fail():
        with whole(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_replaced_is_kept(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "inside").write_text("old")
    with pytest.raises(OSError, match="directory"):
        write_text(path, "new")
    assert (path / "inside").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_block_may_take_its_file_away(tmp_path):
    path = tmp_path / "answer.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), whole(path) as temporary:
        temporary.unlink()
    assert path.read_text() == "old"


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "answer.txt"
    with whole(path) as first, whole(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first", "the last to finish"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made_and_rights_are_the_usual_ones(tmp_path):
    path = tmp_path / "a" / "b" / "answer.txt"
    before = os.umask(0o027)
    try:
        assert write_text(str(path), "Ångström\n") == path
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert path.read_bytes() == "Ångström\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_the_content_reaches_the_disk_before_the_name(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(os, "fsync", lambda handle: order.append("sync"))
    monkeypatch.setattr("pathlib.Path.replace", lambda self, target: order.append("rename"))
    with whole(tmp_path / "answer.txt"):
        order.append("write")
    assert order == ["write", "sync", "rename"]


def test_slug():
    assert slug("none") == "none"
    assert slug("se-16,b=1.5") == "se-16,b=1.5"
    assert slug("cbam[squeeze=max]").startswith("cbam_squeeze=max_-")


@given(st.text(), st.text())
def test_slugs_are_safe_and_keep_texts_apart(one, other):
    assert "/" not in slug(one)
    assert "\0" not in slug(one)
    assert slug(one).isascii()
    assert (slug(one) == slug(other)) == (one == other)
