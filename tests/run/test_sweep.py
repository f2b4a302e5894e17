"""Sweeps: what a grid means, finished cells are skipped, failed ones reported, and a stopped sweep goes on."""

import csv
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import jax
import pytest
from tiny import tiny_config

import jaxvit
import jaxvit.cli.sweep as sweep_verb
import jaxvit.run.sweep as sweeping
from jaxvit.cli.sweep import main
from jaxvit.errors import StoppedError, UsageError
from jaxvit.figures.sweep import draw_sweep
from jaxvit.files import Lock
from jaxvit.run.sweep import parse_grid, split_values

TESTS = str(Path(__file__).parents[1])
CONFIG = (
    f"import sys; sys.path.insert(0, {TESTS!r})\nfrom tiny import tiny_config\n"
    "def get_config(): return tiny_config(train__duration='1 epochs', log__writers=('jsonl',))\n"
    "def get_grid(): return {'model.heads': (1, 2)}\n"
)


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(CONFIG)
    return file


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("4,8", ["4", "8"]),
        ("(2,),(2, 3)", ["(2,)", "(2, 3)"]),
        ("'a,b', c", ["'a,b'", "c"]),
        ("30 epochs,2000 steps", ["30 epochs", "2000 steps"]),
    ],
)
def test_values_are_split_at_outer_commas(text, values):
    assert split_values(text) == values


@pytest.mark.parametrize(
    ("over", "says"),
    [
        (["model.dim"], "write it as KEY=VALUE,VALUE"),
        (["model.dim=1,"], "write it as KEY=VALUE,VALUE"),
        (["model.dim=1", "config.model.dim=2"], "model.dim is given twice"),
        (["model.dim=1,1"], "a value is given twice"),
    ],
)
def test_a_wrong_grid(over, says):
    with pytest.raises(UsageError, match=says):
        parse_grid(over)


def rows_of(workdir):
    with (workdir / "sweep.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_a_grid_is_trained_skipped_and_shown(file, tmp_path, capsys, monkeypatch):
    workdir = tmp_path / "sweep"
    words = [f"--config={file}", "--over=model.heads=2,3", "--over", "optim.peak_lr=1e-3,1e-2", f"--workdir={workdir}"]
    assert main(words) == 1  # heads=3 does not divide dim=8
    out = capsys.readouterr().out
    assert out.count("failed: config.model: heads=3 does not divide dim=8") == 2 and "2 of 4 cells done" in out
    rows = rows_of(workdir)
    assert [row["cell"] for row in rows] == [
        "heads=2,peak_lr=1e-3",
        "heads=2,peak_lr=1e-2",
        "heads=3,peak_lr=1e-3",
        "heads=3,peak_lr=1e-2",
    ]
    assert [row["status"] for row in rows] == ["done", "done", "failed", "failed"]
    results = [json.loads((workdir / row["cell"] / "result.json").read_text()) for row in rows[:2]]
    assert [float(row["loss"]) for row in rows[:2]] == [r["test"]["loss"] for r in results]
    assert int(rows[0]["params"]) == results[0]["params"] and int(rows[0]["macs"]) > 0
    assert (workdir / "figures" / "sweep.png").stat().st_size > 10_000

    monkeypatch.setattr(sweeping, "train", lambda *_, **__: pytest.fail("a finished cell was trained again"))
    assert main(words) == 1
    assert capsys.readouterr().out.count("finished before") == 2
    assert rows_of(workdir) == rows
    for changed, says in [
        ([*words, "--config.seed=1"], "holds another sweep .seed: 0 there, 1 here"),
        ([words[0], "--over=model.heads=2,4", words[-1]], "it goes over model.heads, optim.peak_lr"),
    ]:
        with pytest.raises(UsageError, match=says):
            main(changed)


def test_the_file_brings_the_grid_and_a_dry_run_lists_it(file, tmp_path, capsys):
    assert main([f"--config={file}", "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "2 cells; dry run: nothing was trained" in out and out.count("not run") == 2
    assert main([f"--config={file}", "--over=model.heads=1,2,3", "--dry_run"]) == 1
    out = capsys.readouterr().out
    assert "3 cells" in out and "heads=3: config.model: heads=3 does not divide dim=8" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--over=model.depht=1,2"], "did you mean 'model.depth'"),
        (["--over=depth=1,2"], "^--over depth=1: there is no key config.depth .did you mean 'model.depth'"),
        (["--over=model.depth=1,two"], "^--over model.depth=two: expected a whole number"),
        (["--over=model.depth=1,2", "--config.model.depth=3"], "^--config.model.depth=3: the grid already varies"),
        ([], "--workdir is missing"),
        (["--wrkdir=x"], "did you mean '--workdir'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(file, words, says):
    with pytest.raises(UsageError, match=says):
        main([f"--config={file}", *words])


def test_other_folders_are_left_alone(file, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="holds other files"):
        main([f"--config={file}", f"--workdir={tmp_path / 'mine'}"])


def test_the_figure_takes_numbers_words_and_seeds(tmp_path):
    rows = [
        {"a": a, "b": b, "top1": 0.5 + 0.1 * i + 0.05 * j, "top1_std": 0.01, "n": 3, "macs": 1e6 * (i + 1)}
        for i, a in enumerate(("1e-4", "1e-2"))
        for j, b in enumerate(("mean", "(2,)"))
    ]
    draw_sweep(rows, ["a", "b"], tmp_path / "one.png")
    draw_sweep(rows, ["b", "a"], tmp_path / "two.png")
    draw_sweep(rows[:1], ["a"], tmp_path / "three.png")
    assert all((tmp_path / f"{name}.png").exists() for name in ("one", "two", "three"))


def test_the_configs_of_the_project_bring_their_grids(data_directory):
    from jaxvit.config.files import load_grid

    configs = Path(TESTS).parent / "configs"
    assert load_grid(f"{configs / 'token_learner.py'}:tokens_digits") == {"model.learner_tokens": (2, 4, 8, 16)}
    # The commands of docs/scale.md make the cells of the other grids.
    for spec, cells in [("token_learner.py:place_digits", 4), ("cct.py:digits", 6)]:
        assert math.prod(len(values) for values in load_grid(f"{configs / spec}").values()) == cells
    spec = f"{configs / 'token_learner.py'}:tokens_digits"
    made = sweep_verb.make_cells(spec, [], parse_grid(["model.learner_tokens=2,4,8,16"]))
    assert len(made) == 4 and not any(cell.problem for cell in made)
    assert len({cell.macs for cell in made}) == 4


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on(file, tmp_path):
    """`kill -9` in the second cell: the first is not trained again, the second goes on, the rest follows."""
    workdir = tmp_path / "sweep"
    command = [sys.executable, "-m", "jaxvit", "sweep", f"--config={file}", f"--workdir={workdir}"]
    command += ["--over=model.heads=1,2", "--over=optim.peak_lr=1e-3,3e-3,1e-2", "--config.train.duration=30 epochs"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    second = workdir / "heads=1,peak_lr=3e-3"
    while not any(p.name.isdigit() for p in second.glob("checkpoints/*")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first = (workdir / "heads=1,peak_lr=1e-3" / "result.json").stat().st_mtime_ns
    assert not (second / "result.json").exists()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished before") == 1 and done.stdout.count("resuming from step") == 1
    assert "6 of 6 cells done" in done.stdout
    assert (workdir / "heads=1,peak_lr=1e-3" / "result.json").stat().st_mtime_ns == first


def test_seeds_make_each_cell_a_mean(file, tmp_path, capsys):
    workdir = tmp_path / "sweep"
    words = [f"--config={file}", f"--workdir={workdir}", "--over=model.heads=1", "--config.seeds=(0, 1)"]
    assert main(words) == 0
    assert "(n = 2)" in capsys.readouterr().out
    assert rows_of(workdir)[0]["n"] == "2"
    assert tiny_config().seeds == ()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(words of the command, its folder) of a finished sweep of two cells."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "config.py").write_text(CONFIG)
    words = [f"--config={folder / 'config.py'}", "--over=model.heads=1,2"]
    with jax.numpy_dtype_promotion("standard"):
        assert main([*words, f"--workdir={folder / 'sweep'}"]) == 0
    return words, folder / "sweep"


@pytest.fixture
def swept(trained, tmp_path):
    words, workdir = trained
    shutil.copytree(workdir, tmp_path / "sweep")
    return [*words, f"--workdir={tmp_path / 'sweep'}"], tmp_path / "sweep"


@pytest.mark.parametrize(
    ("name", "text"),
    [("result.json", '{"test": {'), ("result.json", "{}"), ("config.json", "[]"), ("environment.json", "{")],
)
def test_a_damaged_file_fails_its_cell_only(swept, capsys, name, text):
    words, workdir = swept
    if name == "environment.json":
        (workdir / "heads=1" / "result.json").unlink()
    (workdir / "heads=1" / name).write_text(text)
    assert main(words) == 1
    out = capsys.readouterr().out
    assert f"failed: {workdir}/heads=1/{name} cannot be read" in out and "1 of 2 cells done" in out
    assert [row["status"] for row in rows_of(workdir)] == ["failed", "done"]


def test_a_finished_sweep_is_shown_without_the_data_and_without_tracing(swept, capsys, monkeypatch):
    words, workdir = swept
    before = rows_of(workdir)
    for name in ("resolve", "assemble", "train", "count_macs"):
        monkeypatch.setattr(sweeping, name, lambda *_, **__: pytest.fail("this is not needed"))
    assert main(words) == 0
    assert rows_of(workdir) == before and all(int(row["macs"]) > 0 for row in before)
    out = capsys.readouterr().out
    assert out.startswith("2 cells over model.heads\n") and out.count("finished before") == 2
    monkeypatch.undo()
    (workdir / "sweep.csv").write_text("of another program\n")
    assert main(words) == 0
    assert rows_of(workdir) == before


def test_the_first_word_comes_before_the_cells_are_made(swept, capsys, monkeypatch):
    said = []
    plain = sweep_verb.make_cells
    monkeypatch.setattr(sweep_verb, "make_cells", lambda *a: (said.append(capsys.readouterr().out), plain(*a))[1])
    main(swept[0])
    assert said == ["2 cells over model.heads\n"]


@pytest.mark.parametrize("error", [StoppedError("stopped at step 1; saved", 75), KeyboardInterrupt()])
def test_a_stopped_sweep_shows_what_it_has(swept, capsys, monkeypatch, error):
    """All rows are there from the start: a stop soon after loses none of an earlier start's."""
    words, workdir = swept
    (done,) = (row for row in rows_of(workdir) if row["cell"] == "heads=2")
    shutil.rmtree(workdir / "heads=1")

    def stopped(*_, **__):
        assert [row["status"] for row in rows_of(workdir)] == ["not run", "done"]
        raise error

    monkeypatch.setattr(sweeping, "train", stopped)
    with pytest.raises(type(error)):
        main(words)
    rows = rows_of(workdir)
    assert [row["status"] for row in rows] == ["stopped", "done"] and rows[1] == done
    out = capsys.readouterr().out
    assert "1 of 2 cells done; stopped" in out and f"{float(done['loss']):.4f}" in out and "sweep.csv" in out


@pytest.mark.parametrize("left", [[".lock"], [".lock", ".sweep.json.tmp"]])
def test_killed_before_it_noted_what_it_is(file, tmp_path, left):
    (tmp_path / "sweep").mkdir()
    for name in left:
        (tmp_path / "sweep" / name).touch()
    assert main([f"--config={file}", "--over=model.heads=1", f"--workdir={tmp_path / 'sweep'}"]) == 0
    (tmp_path / "run").mkdir()
    for name in (".lock", "config.json"):
        (tmp_path / "run" / name).touch()
    with pytest.raises(UsageError, match="holds other files"):
        main([f"--config={file}", f"--workdir={tmp_path / 'run'}"])


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"config": {}, "grid": []}', '{"config": {"a.b": 1}, "grid": {}}'])
def test_a_damaged_note_of_what_it_is(swept, text):
    (swept[1] / "sweep.json").write_text(text)
    with pytest.raises(UsageError, match=r"sweep.json cannot be read \(.*\); it is damaged: use a new --workdir"):
        main(swept[0])


def names(*over):
    cells = [dict(zip(grid, values, strict=True)) for grid in [parse_grid(over)] for values in product(*grid.values())]
    return [sweeping.Cell(settings, None, ()).name for settings in cells]


def test_every_cell_has_a_folder_of_its_own():
    """Also where what tells them apart cannot stand in a folder's name, or comes too late."""
    assert names("optim.peak_lr=1e-3,(1, 2)")[0] == "peak_lr=1e-3"
    for over in (
        "data.train=train[:60],train[60:],train60",
        "optim.warmup=10%,10",
        "data.name=a/b,ab,a:b,../ab",
        "data.name=ä,ö,o\u0308",
        f"data.name={'x' * 200}a,{'x' * 200}b",
    ):
        found = names(over)
        assert len(set(found)) == len(found), over
        assert all(name.isascii() and "/" not in name and len(name) < 200 for name in found)
    assert names("data.train=train[:60]") == names("data.train=train[:60]") == ["train=train60,14054271"]


def test_parts_of_one_split_are_different_cells(file, tmp_path):
    words = [
        f"--config={file}",
        "--over=data.train=train[:60],train[60:120]",
        "--config.data.validation=train[120:150]",
    ]
    assert main([*words, f"--workdir={tmp_path / 'sweep'}"]) == 0
    rows = rows_of(tmp_path / "sweep")
    assert len({row["cell"] for row in rows}) == 2 and rows[0]["loss"] != rows[1]["loss"]


@pytest.mark.parametrize("over", ["optim.peak_lr=1e-3,0.001", "augment.scale=(0.1,1.0),(0.1, 1.0)"])
def test_the_same_cell_twice_is_refused(file, over):
    with pytest.raises(UsageError, match=r"=.* and .*=.* are the same run; leave one out"):
        main([f"--config={file}", f"--over={over}", "--dry_run"])


def test_another_grid_over_the_same_keys_keeps_the_lines_of_the_first(swept):
    words, workdir = swept
    before = rows_of(workdir)
    smaller = [word.replace("=1,2", "=2") for word in words]
    assert main(smaller) == 0
    assert rows_of(workdir) == [before[1], before[0]]
    assert main(words) == 0
    assert rows_of(workdir) == before


def test_a_sweeps_folder_is_no_runs_folder(swept):
    _, workdir = swept
    with pytest.raises(UsageError, match="this folder holds a sweep; name a new one"):
        jaxvit.train(tiny_config(), workdir)


def test_parts_of_a_sweep_train_their_own_cells_and_share_one_table(file, tmp_path, capsys):
    """As the jobs of an array do: each command trains its cells, whatever the others have done."""
    command = [f"--config={file}", "--over=model.heads=1,2,4", f"--workdir={tmp_path / 'parts'}"]
    assert main([*command, "--count"]) == 0 and capsys.readouterr().out == "3\n"
    assert not (tmp_path / "parts").exists()
    assert main([*command, "--part=2/2"]) == 0
    said = capsys.readouterr().out
    assert "cell 2/3: heads=2" in said and "1 of 3 cells done" in said and "cell 1/3" not in said
    before = rows_of(tmp_path / "parts")
    assert [row["status"] for row in before] == ["not run", "done", "not run"]
    assert main([*command, "--part=1/2"]) == 0
    assert "3 of 3 cells done" in capsys.readouterr().out
    rows = rows_of(tmp_path / "parts")
    assert [row["cell"] for row in rows] == ["heads=1", "heads=2", "heads=4"] and rows[1] == before[1]
    assert (tmp_path / "parts" / "figures" / "sweep.png").is_file()
    # The table and the runs equal those of one command.
    assert main([*command[:2], f"--workdir={tmp_path / 'whole'}"]) == 0
    timeless = [
        [{k: v for k, v in row.items() if k != "train_seconds"} for row in each]
        for each in (rows, rows_of(tmp_path / "whole"))
    ]
    assert timeless[0] == timeless[1]


def test_a_part_keeps_failures_of_the_others_and_waits_for_the_table(file, tmp_path, capsys):
    command = [f"--config={file}", "--over=model.heads=3,1", f"--workdir={tmp_path / 'sweep'}"]
    assert main([*command, "--part=1/2"]) == 1
    assert main([*command, "--part=2/2"]) == 0
    assert "heads=3: " in capsys.readouterr().out
    failed, done = rows_of(tmp_path / "sweep")
    assert failed["status"] == "failed" and "heads" in failed["error"] and done["status"] == "done"
    with ThreadPoolExecutor() as pool:
        with Lock(tmp_path / "sweep" / ".lock"):
            waiting = pool.submit(sweeping.sweep, [], [], tmp_path / "sweep", (1, 2))
            with pytest.raises(TimeoutError):
                waiting.result(0.3)
        waiting.result(60)
    assert rows_of(tmp_path / "sweep") == [failed, done]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2"])
def test_a_wrong_part_is_one_line(text):
    with pytest.raises(UsageError, match=r"--part=.*write it as I/N"):
        sweeping.parse_part(text)
