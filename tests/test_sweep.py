"""Sweeps: what a grid means, finished cells are skipped, failed ones reported, and a stopped sweep goes on."""

import csv
import json
import signal
import subprocess
import sys
import time

import jax
import pytest
from tiny import tiny_config

import jaxvit.sweep as sweep_verb
from jaxvit.errors import UsageError
from jaxvit.figures.sweep import draw_sweep
from jaxvit.sweep import main, parse_grid, split_values

TESTS = __file__.rpartition("/")[0]


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        f"import sys; sys.path.insert(0, {TESTS!r})\nfrom tiny import tiny_config\n"
        "def get_config(): return tiny_config(train__duration='1 epochs', log__writers=('jsonl',))\n"
        "def get_grid(): return {'model.heads': (1, 2)}\n"
    )
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

    monkeypatch.setattr(sweep_verb, "train", lambda *_, **__: pytest.fail("a finished cell was trained again"))
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
    assert main([f"--config={file}", "--over=model.heads=1,2,3", "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "3 cells" in out and "heads=3: config.model: heads=3 does not divide dim=8" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--over=model.depht=1,2"], "did you mean 'model.depth'"),
        (["--over=model.depth=1,two"], "expected a whole number"),
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
    from pathlib import Path

    from jaxvit.config import load_grid

    configs = Path(TESTS).parent / "configs"
    assert load_grid(f"{configs / 'token_learner.py'}:tokens_digits") == {"model.learner_tokens": (2, 4, 8, 16)}
    for spec, cells in [
        ("token_learner.py:place_digits", 4),
        ("token_learner.py:tokens_digits", 4),
        ("cct.py:digits", 6),
    ]:
        grid = parse_grid([f"{k}={','.join(map(str, v))}" for k, v in load_grid(f"{configs / spec}").items()])
        made = sweep_verb.make_cells(str(configs / spec), [], grid)
        assert len(made) == cells and not any(cell.problem for cell in made)
        assert len({cell.macs for cell in made}) == cells


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
    assert done.stdout.count("finished before") == 1 and done.stdout.count("going on from step") == 1
    assert "6 of 6 cells done" in done.stdout
    assert (workdir / "heads=1,peak_lr=1e-3" / "result.json").stat().st_mtime_ns == first


def test_seeds_make_each_cell_a_mean(file, tmp_path, capsys):
    workdir = tmp_path / "sweep"
    words = [f"--config={file}", f"--workdir={workdir}", "--over=model.heads=1", "--config.seeds=(0, 1)"]
    assert main(words) == 0
    assert "(n = 2)" in capsys.readouterr().out
    assert rows_of(workdir)[0]["n"] == "2"
    assert tiny_config().seeds == ()
