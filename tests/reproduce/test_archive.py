"""Archives of runs: content, merging with existing runs, and refused files."""

import io
import json
import shutil
import tarfile

import jax
import pytest
from tiny import tiny_config

import jaxvit
from jaxvit.errors import UsageError
from jaxvit.files import Lock, read_json
from jaxvit.reproduce.archive import archived, folder_for, opened, pack, reached, unpack


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of two epochs, and a copy without its result."""
    folder = tmp_path_factory.mktemp("runs")
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(tiny_config(train__duration="2 epochs"), folder / "a" / "seed_0")
    shutil.copytree(folder / "a" / "seed_0", folder / "b" / "seed_1")
    (folder / "a" / "seed_0" / "line.json").write_text("{}")
    (folder / "b" / "seed_1" / "result.json").unlink()
    (folder / "b" / "seed_1" / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
    (folder / "b" / "seed_1" / "checkpoints" / "9.orbax-checkpoint-tmp" / "half").write_text("")
    (folder / "b" / "seed_1" / "away").symlink_to("/etc/hostname")
    return folder


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_archive_holds_what_it_takes_to_go_on(runs, tmp_path):
    assert pack(runs, tmp_path / "x.tar") == 2
    at = archived(tmp_path / "x.tar")
    assert at == {name: reached(runs / name) for name in ("a/seed_0", "b/seed_1")}
    assert at["a/seed_0"].finished and (at["b/seed_1"].step, at["b/seed_1"].epochs) == (8, 2.0)
    assert unpack(tmp_path / "x.tar", tmp_path / "x") == ["a/seed_0", "b/seed_1"]
    before, after = files_of(runs), files_of(tmp_path / "x")
    assert all(before[name] == text for name, text in after.items())
    left_out = {name.partition("/")[2] for name in set(before) - set(after)}
    assert not any(name.startswith("seed_1/checkpoints/8") for name in left_out)
    gone = ("seed_0/checkpoints/", "seed_1/checkpoints/", "seed_0/figures", "seed_1/figures", "seed_1/away")
    assert all(name.startswith(gone) or name.endswith(".lock") for name in left_out)
    assert not list((tmp_path / "x" / "a").rglob("checkpoints")) and not list((tmp_path / "x").glob(".unpacked*"))
    with jax.numpy_dtype_promotion("standard"):
        result = jaxvit.train(tiny_config(train__duration="2 epochs"), tmp_path / "x" / "b" / "seed_1")
    assert result["steps"] == 8


def test_of_two_the_one_that_is_further_stays(runs, tmp_path):
    pack(runs, tmp_path / "x.tar")
    shutil.copytree(runs, tmp_path / "x", symlinks=True)
    assert unpack(tmp_path / "x.tar", tmp_path / "x") == []
    run = tmp_path / "x" / "b" / "seed_1"
    shutil.rmtree(run / "checkpoints" / "8")  # now it is an epoch behind
    (run / "metrics.jsonl").write_text("")
    assert unpack(tmp_path / "x.tar", tmp_path / "x") == ["b/seed_1"] and reached(run).step == 8
    assert (run / "metrics.jsonl").read_bytes() == (runs / "b" / "seed_1" / "metrics.jsonl").read_bytes()
    config = read_json(run / "config.json")  # without its checksum
    (run / "config.json").write_text(json.dumps(config | {"config_hash": "0" * 16}))
    with pytest.raises(UsageError, match=r"b/seed_1 has another config than .*; move one of them away"):
        unpack(tmp_path / "x.tar", tmp_path / "x")


def test_a_run_that_is_being_trained_is_not_packed(runs, tmp_path):
    (tmp_path / "x.tar").write_text("as it was")
    with Lock(runs / "b" / "seed_1" / ".lock"), pytest.raises(UsageError, match="b/seed_1: it is being trained"):
        pack(runs, tmp_path / "x.tar")
    assert (tmp_path / "x.tar").read_text() == "as it was"


def test_runs_are_opened_as_a_folder_or_as_an_archive(runs, tmp_path, capsys):
    with opened(runs) as folder:
        assert folder == runs and archived(runs) == {}
    pack(runs, tmp_path / "x.tar")
    with opened(tmp_path / "x.tar") as folder:
        assert folder == folder_for(tmp_path / "x.tar") == tmp_path / "x"
        shutil.rmtree(folder / "a")
    assert list(archived(tmp_path / "x.tar")) == ["b/seed_1"]
    with pytest.raises(KeyError), opened(tmp_path / "x.tar") as folder:
        shutil.copytree(runs / "a", folder / "a")
        raise KeyError
    assert list(archived(tmp_path / "x.tar")) == ["a/seed_0", "b/seed_1"] and capsys.readouterr().err == ""


def rewritten(source, target, change):
    """A copy of an archive with members changed by `change(name, bytes)`: new bytes, a TarInfo, or None to drop it."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            text = change(member.name, old.extractfile(member).read())
            if isinstance(text, tarfile.TarInfo):
                new.addfile(text)
            elif text is not None:
                member.size = len(text)
                new.addfile(member, io.BytesIO(text))


def in_contents(old, new):
    return lambda name, text: text.replace(old, new) if name == "contents.json" else text


def as_link(name, text):
    if not name.endswith("b/seed_1/model.json"):
        return text
    link = tarfile.TarInfo(name)
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    return link


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (in_contents(b'"jaxvit_runs": 1', b'"jaxvit_runs": 2'), "it was written by a newer version"),
        (in_contents(b'"a/seed_0"', b'"../seed_0"'), "run '../seed_0'"),
        (in_contents(b'"a/seed_0"', b'"/tmp/seed_0"'), "run '/tmp/seed_0'"),
        (in_contents(b'"model.json"', b'"../../model.json"'), "file '../../model.json'"),
        (in_contents(b'"model.json"', b'".lock"'), "file '.lock'"),
        (in_contents(b'"config.json"', b'"config.yaml"'), "has no config.json"),
        (in_contents(b'"step": 8', b'"step": "8"'), "run 'a/seed_0'"),
        (in_contents(b'"runs": {', b'"runs": [{'), "damaged"),
        (lambda name, text: b"[]" if name == "contents.json" else text, "damaged"),
        (lambda name, text: None if name == "contents.json" else text, "it does not begin with contents.json"),
        (lambda name, text: None if name.endswith("seed_1/model.json") else text, "b/seed_1/model.json is missing"),
        (lambda name, text: text + b" " if name.endswith("model.json") else text, "model.json has another size"),
        (lambda name, text: text[:-1] + b" " if name.endswith("metrics.jsonl") else text, "is not what was packed"),
        (as_link, "model.json"),
    ],
)
def test_what_is_not_as_it_was_packed_is_named_and_nothing_of_it_kept(runs, tmp_path, change, says):
    pack(runs, tmp_path / "good.tar")
    rewritten(tmp_path / "good.tar", tmp_path / "x.tar", change)
    with pytest.raises(UsageError, match=says) as error:
        unpack(tmp_path / "x.tar", tmp_path / "x")
    assert str(error.value).startswith(f"{tmp_path / 'x.tar'}: not an archive of runs, or damaged (")
    assert files_of(tmp_path / "x") == {} and files_of(tmp_path).keys() == {"good.tar", "x.tar"}


def test_half_an_archive_and_no_archive_are_one_line(runs, tmp_path):
    pack(runs, tmp_path / "x.tar")
    whole = (tmp_path / "x.tar").read_bytes()
    for part in (b"", b"no tar", whole[:600], whole[: len(whole) // 2], whole[:-20000]):
        (tmp_path / "x.tar").write_bytes(part)
        with pytest.raises(UsageError, match="not an archive of runs, or damaged"):
            unpack(tmp_path / "x.tar", tmp_path / "x")
    with pytest.raises(UsageError, match=r"no\.tar: cannot be unpacked .No such file"):
        unpack(tmp_path / "no.tar", tmp_path / "x")
    assert files_of(tmp_path / "x") == {}
