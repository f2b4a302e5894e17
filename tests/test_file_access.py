"""Files and folders: written whole or not at all, named in errors, and none left by what was refused."""

import errno
import os

import pytest

from jaxvit.errors import UsageError, describe_system_error, find_system_error
from jaxvit.files import (
    make_folder,
    make_writable,
    naming,
    no_empty_folders,
    parse_json,
    read_json,
    replaced,
    write_text,
)


def test_folders_that_a_refused_command_made_are_gone_and_what_was_there_stays(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError), no_empty_folders():
        make_folder(tmp_path / "there" / "a" / "b")
        make_writable(tmp_path / "c" / "d", "")
        make_folder(tmp_path / "kept" / "e")
        write_text(tmp_path / "kept" / "file", "x")
        raise UsageError("no")
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == ["kept", "kept/file", "there"]
    with no_empty_folders():
        make_folder(tmp_path / "done")
    assert (tmp_path / "done").is_dir()


def test_what_lies_where_a_file_is_written_first_is_not_written_through(tmp_path):
    (tmp_path / "other").write_text("mine")
    (tmp_path / ".file.tmp").symlink_to(tmp_path / "other")
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "other").read_text() == "mine" and (tmp_path / "file").read_text() == "new"
    os.mkfifo(tmp_path / ".file.tmp")  # to open it would wait for a reader
    write_text(tmp_path / "file", "newer")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "other"]


def test_errors_of_writing_name_the_file(tmp_path):
    for filename in (None, str(tmp_path / ".file.tmp"), str(tmp_path / "draft" / "deep")):
        with pytest.raises(OSError) as raised, naming(tmp_path / "file", draft=tmp_path / "draft"):
            raise OSError(errno.EIO, "x", filename)
        assert raised.value.filename == str(tmp_path / "file")
    with pytest.raises(OSError) as raised, replaced(tmp_path / "file"):
        raise OSError(errno.EACCES, "x", "/data/of/others")
    assert raised.value.filename == "/data/of/others"


NATIVE = {
    'UNKNOWN: Error writing "/a/b/d": [OS error 5: EIO Input/output error]': (errno.EIO, "/a/b/d"),
    "INVALID_ARGUMENT: … [source locations='x.cc:1'] os_error_code='122'": (errno.EDQUOT, None),
    'I/O error: No space left on device (os error 28) at path "/a/.tmpX"': (errno.ENOSPC, "/a/.tmpX"),
    "write() failed: Read-only file system; writing": (errno.EROFS, None),
}


@pytest.mark.parametrize("text", NATIVE)
def test_errors_of_native_libraries_are_those_of_the_system(text):
    outer = RuntimeError("something failed")
    outer.__cause__ = ValueError(text)
    found = find_system_error(outer)
    assert (found.errno, found.filename) == NATIVE[text]
    assert describe_system_error(found, "; x is kept").count("; x is kept. ") == 1


def test_other_errors_are_not():
    for error in (
        ValueError("No such file"),
        FileNotFoundError(errno.ENOENT, "x", "y"),
        BrokenPipeError(errno.EPIPE, "x"),
    ):
        assert find_system_error(error) is None


@pytest.mark.parametrize(("before", "after"), [("[", "]"), ('{"a":', "}")])
def test_deeply_nested_json_is_refused(before, after):
    assert parse_json(before * 90 + "1" + after * 90)
    for levels in (110, 600, 100_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(before * levels + "1" + after * levels)


def test_a_json_file_beyond_the_limit_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate((1 << 28) + 1)  # holes: nothing is written
    with pytest.raises(UsageError, match=r"config.json cannot be read \(it has 268,435,457 bytes"):
        read_json(tmp_path / "config.json")
