import errno

import pytest

from glassformer import durable
from glassformer.durable import clean_leftovers, new_file, new_folder, remove_folder, write_file
from tests.unit.training.faulty_os import FaultyOs


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def put(path, text):
    with new_folder(path) as folder:
        durable.write_new_file(folder / "a", text.encode())
        durable.write_new_file(folder / "b", text.encode() * 2)


def content(path):
    return [(path / name).read_text() for name in names(path)]


def test_folder_appears_whole_and_replaces_whole(tmp_path):
    path = tmp_path / "deep" / "x"
    put(path, "one")
    assert content(path) == ["one", "oneone"]
    put(path, "two")
    assert content(path) == ["two", "twotwo"]
    assert names(path.parent) == ["x"]


def test_file_written_piece_by_piece_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x"
    for text in (b"one", b"two"):
        with new_file(path) as file:
            file.write(text)
            file.write(text)
            assert not path.exists() if text == b"one" else path.read_bytes() == b"oneone"
    assert path.read_bytes() == b"twotwo"
    with pytest.raises(KeyError), new_file(path) as file:
        file.write(b"new")
        raise KeyError
    assert path.read_bytes() == b"twotwo" and names(tmp_path) == ["x"]


def test_error_in_the_body_changes_nothing(tmp_path):
    put(tmp_path / "x", "old")
    with pytest.raises(KeyError), new_folder(tmp_path / "x") as folder:
        durable.write_new_file(folder / "a", b"new")
        raise KeyError
    assert content(tmp_path / "x") == ["old", "oldold"]
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("exists", [False, True])
def test_failure_of_any_call_leaves_old_or_new(tmp_path, monkeypatch, code, exists):
    counter = FaultyOs()
    with monkeypatch.context() as patch:
        patch.setattr(durable, "os", counter)
        put(tmp_path / "dry", "run")
        if exists:
            put(tmp_path / "dry", "again")
    assert counter.calls.count("write") >= 2 and counter.calls.count("fsync") >= 4
    for index in range(len(counter.calls)):
        home = tmp_path / str(index)
        if exists:
            put(home / "x", "old")
        else:
            home.mkdir()
        faulty = FaultyOs(index, code)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "os", faulty)
            try:
                put(home / "x", "new")
                raised = False
            except OSError as error:
                assert error.errno == code
                raised = True
        assert raised == (index < len(faulty.calls))
        clean_leftovers(home)
        if (home / "x").exists():
            assert content(home / "x") in (["old", "oldold"], ["new", "newnew"])
        else:
            assert not exists
        assert names(home) in (["x"], [])


def test_short_writes_are_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "os", FaultyOs(short_writes=True))
    put(tmp_path / "x", "0123456789")
    assert content(tmp_path / "x") == ["0123456789", "0123456789" * 2]


def test_every_file_and_folder_is_flushed_before_the_rename(tmp_path, monkeypatch):
    counter = FaultyOs()
    monkeypatch.setattr(durable, "os", counter)
    put(tmp_path / "x", "text")
    rename = counter.calls.index("rename")
    assert counter.calls[:rename].count("fsync") == 3  # two files and their folder
    assert counter.calls[rename:].count("fsync") == 1  # the folder above


def test_file_is_replaced_or_kept(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_file(path, b"old")
    counter = FaultyOs()
    with monkeypatch.context() as patch:
        patch.setattr(durable, "os", counter)
        write_file(path, b"old")
    for index in range(len(counter.calls)):
        with monkeypatch.context() as patch:
            patch.setattr(durable, "os", FaultyOs(index))
            with pytest.raises(OSError, match="No space left"):
                write_file(path, b"new")
        assert path.read_bytes() in (b"old", b"new")
        assert names(tmp_path) == ["f"]
        write_file(path, b"old")


def test_leftovers_are_removed_and_what_was_moved_away_comes_back(tmp_path):
    put(tmp_path / "kept", "k")
    put(tmp_path / "replaced", "new")
    for leftover in (".x.gf-saving", ".y.gf-deleting", ".replaced.gf-replaced"):
        put(tmp_path / leftover, "left")
    put(tmp_path / ".moved.gf-replaced", "old")
    (tmp_path / ".f.gf-saving").write_text("half")
    (tmp_path / ".config").write_text("not ours")
    clean_leftovers(tmp_path)
    assert names(tmp_path) == [".config", "kept", "moved", "replaced"]
    assert content(tmp_path / "moved") == ["old", "oldold"]
    assert content(tmp_path / "replaced") == ["new", "newnew"]
    clean_leftovers(tmp_path / "missing")


def test_removed_folder_is_gone(tmp_path):
    put(tmp_path / "x", "x")
    remove_folder(tmp_path / "x")
    assert names(tmp_path) == []
