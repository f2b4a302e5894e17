"""The verb that runs the table of the documents' numbers."""

import csv
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from tiny import TINY_ROW, edit_json

import jaxvit.cli.reproduce as verb
from jaxvit.errors import UsageError
from jaxvit.reproduce.rows import read_rows, rows_file
from jaxvit.reproduce.table import keep, known_results, metrics_name, results_of, writing

ROOT = Path(__file__).parents[2]
ROWS = read_rows(ROOT / "results" / "rows.toml")
TESTS = str(Path(__file__).parents[1])


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def make_project(folder):
    """Writes a project with one row that trains in seconds; returns the flags that name its folders."""
    (folder / "tiny_row.py").write_text(
        f"import sys; sys.path.insert(0, {TESTS!r})\nfrom tiny import tiny_config\n"
        "def get_config(): return tiny_config(log__writers=('jsonl',))\n"
    )
    (folder / "rows.toml").write_text(TINY_ROW.format(weights="latest", target=0.01))
    return [f"--{name}={folder / part}" for name, part in (("results", ""), ("configs", ""), ("runs", "runs"))]


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_run")
    with jax.numpy_dtype_promotion("standard"):
        assert verb.main([*make_project(folder), "tiny", "--seeds=1"]) == 0
    return folder


@pytest.fixture
def project_with_a_run(one_run, tmp_path):
    """The project after `reproduce tiny --seeds=1`."""
    shutil.copytree(one_run, tmp_path, dirs_exist_ok=True)
    return make_project(tmp_path)


def test_a_row_is_run_kept_compared_and_not_run_again(project, tmp_path, capsys, monkeypatch):
    assert verb.main([*project, "--list"]) == 0
    assert "not run" in capsys.readouterr().out and not (tmp_path / "results.csv").exists()
    assert verb.main([*project, "tiny", "--seeds=1"]) == 0
    assert "tiny, n = 25, 1 of 2 seeds: top1 " in capsys.readouterr().out
    assert verb.main([*project, "tiny"]) == 0
    assert "tiny, n = 25, 2 of 2 seeds: top1 " in capsys.readouterr().out
    lines = results_of(tmp_path / "results.csv")
    assert [(one["row"], one["seed"], one["form"], one["n"]) for one in lines] == [
        ("tiny", "0", "full", "25"),
        ("tiny", "1", "full", "25"),
    ]
    assert all(one[name] for one in lines for name in ("config_hash", "hardware", "versions", "data", "date", "loss"))
    metrics = (tmp_path / "runs" / "tiny" / "seed_1" / "metrics.jsonl").read_text()
    kept = (tmp_path / "metrics" / lines[1]["metrics"]).read_text()
    assert lines[1]["metrics"].startswith("tiny_seed_1_") and lines[1]["metrics"] != lines[0]["metrics"]
    last = json.loads(kept.removeprefix(metrics))
    assert last["split"] == "test_latest" and last["top1"] == float(lines[1]["top1"])
    page = (tmp_path / "README.md").read_text()
    assert (tmp_path / "curves" / "tiny_row_2_epochs.png").stat().st_size > 10_000
    assert "](curves/tiny_row_2_epochs.png)" in page
    assert "| `tiny` | `tiny_row.py` | top1 5.00% | top1 1.00% | 2 of 2, n = 25 | top1 " in page and ": passes" in page

    def trained(*_, **__):
        raise AssertionError("a finished run was trained again")

    capsys.readouterr()
    monkeypatch.setattr("jaxvit.run.train.execute", trained)
    assert verb.main([*project, "--all"]) == 0
    assert results_of(tmp_path / "results.csv") == lines


def test_seeds_of_a_row_in_one_run(project, tmp_path):
    assert verb.main([*project, "--all", "--together"]) == 0
    lines = results_of(tmp_path / "results.csv")
    assert [line["seed"] for line in lines] == ["0", "1"] and lines[0]["loss"] != lines[1]["loss"]
    assert (tmp_path / "runs" / "tiny" / "seeds_0_1" / "seed_1" / "result.json").exists()
    before = (tmp_path / "results.csv").read_text()
    assert verb.main([*project, "--all", "--together"]) == 0
    assert (tmp_path / "results.csv").read_text() == before


def test_a_missed_target_and_a_short_form(project, tmp_path, capsys):
    (tmp_path / "rows.toml").write_text(TINY_ROW.format(weights="best", target=1.1))
    assert verb.main([*project, "--all", "--epochs=1", "--seeds=1"]) == 0
    assert "tiny, 1 of 2 epochs, n = 25, 1 of 2 seeds: top1 " in capsys.readouterr().out
    assert (tmp_path / "runs" / "tiny" / "1_epochs" / "seed_0" / "result.json").exists()
    assert "not run<br>a short form, 1 of 2 epochs, 1 run: top1 " in (tmp_path / "README.md").read_text()
    (metrics,) = (tmp_path / "metrics").iterdir()
    assert metrics.name.startswith("tiny_1_of_2_epochs_seed_0_") and not (tmp_path / "curves").exists()
    assert verb.main([*project, "--all", "--seeds=1", "--epochs=5"]) == 1  # it has no more than 2, which is all of it
    assert "missed by" in (out := capsys.readouterr().out) and "tiny, n = 25, 1 of 2 seeds: top1 " in out
    with (tmp_path / "results.csv").open() as file:
        assert [row["form"] for row in csv.DictReader(file)] == ["1 of 2 epochs", "full"]


def test_a_row_whose_data_is_missing_is_named_and_the_others_run(project, tmp_path, capsys):
    (tmp_path / "rows.toml").write_text(
        TINY_ROW.format(weights="best", target=0.01).replace("tiny_row", "other").replace('"tiny"', '"other"')
        + TINY_ROW.format(weights="best", target=0.01)
    )
    text = (tmp_path / "tiny_row.py").read_text()
    (tmp_path / "other.py").write_text(
        text.replace("tiny_config(", "tiny_config(data__name='mnist', data__dir='/no', ")
    )
    assert verb.main([*project, "--all", "--seeds=1"]) == 1
    out = capsys.readouterr().out
    assert "other: not run: " in out and "tiny, n = 25, 1 of 2 seeds: top1 " in out


def test_a_damaged_table_is_one_line(project, tmp_path):
    good = dict(results_of(ROOT / "results" / "results.csv")[0])
    file = tmp_path / "results.csv"

    def write(lines):
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, good)
            writer.writeheader()
            writer.writerows(lines)

    bad = {
        "metrics": "../x",
        "form": "../x",
        "top1": "2",
        "top5": "",
        "loss": "nan",
        "n": "0",
        "params": "-1",
        "seed": "a",
    }
    for name, value in bad.items():
        write([good | {name: value}])
        with pytest.raises(UsageError, match="a line is damaged"):
            results_of(file)
    write([good])
    assert results_of(file) == [good]
    whole = file.read_text()
    file.write_text(whole.rsplit(",", 3)[0] + "\n")
    with pytest.raises(UsageError, match="a line is damaged"):
        verb.main([*project, "--list"])
    file.write_text(whole, encoding="utf-16")
    with pytest.raises(UsageError, match=r"cannot be read .*put a copy of it back"):
        verb.main([*project, "--list"])


def test_a_recipe_takes_its_step_and_is_counted(project, tmp_path, capsys):
    text = (tmp_path / "tiny_row.py").read_text()
    (tmp_path / "tiny_row.py").write_text(text.replace("tiny_config(", "tiny_config(data__name='imagenet2012', "))
    rows = TINY_ROW.format(weights="latest", target=0.01).replace("top1 = 0.01", "")
    (tmp_path / "rows.toml").write_text(f"{rows}steps = 2\nparams = 1\n")
    assert verb.main([*project, "--all"]) == 1
    assert "2 steps on random images, loss " in (out := capsys.readouterr().out) and ", not 1" in out
    (line,) = results_of(tmp_path / "results.csv")
    assert (line["n"], line["top1"], line["epochs"]) == ("0", "", "") and float(line["loss"]) > 0
    (tmp_path / "rows.toml").write_text(f"{rows}steps = 2\nparams = {line['params']}\n")
    assert verb.main([*project, "--all"]) == 0 and "parameters, as expected" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["fashion_vitt"], "there is no row 'fashion_vitt' .did you mean 'fashion_vit'"),
        (["--seeds=-1"], "--seeds=-1: must be 1 or more"),
        (["--seeds=0"], "--seeds=0: must be 1 or more"),
        (["tiny", "--epochs=0"], "--epochs=0: must be 1 or more"),
        ([], "name rows, or use --all"),
        (["cct", "--epochs=31"], "--epochs=31: cct has only 30"),
        (["--take=/no"], "--take=/no: it has no results.csv"),
        (["cct", "--take=/no"], "cct: it does not go with --take"),
        (["--take=/no", "--dry_run"], "--dry_run: it does not go with --take"),
        ([f"--take={ROOT}/tests/../results"], "results: this is the same folder"),
        (["cct", "shiftvit_best", "--seeds=6"], "--seeds=6: cct has 5"),
        (["imagenet_vit_s16", "--epochs=1"], "imagenet_vit_s16 runs single steps"),
        (["--all", "cct"], "--all includes every row"),
        (["--seed=1"], "did you mean '--seeds'"),
    ],
)
def test_mistakes_are_one_line(words, says):
    with pytest.raises(UsageError, match=says):
        verb.main([f"--results={ROOT / 'results'}", *words])


def on_gpu(folder, *words):
    """benchmarks/gpu_rows.sh, as a dry run."""
    variables = {**os.environ, "DRY_RUN": "1", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    command = ["bash", str(ROOT / "benchmarks" / "gpu_rows.sh"), *words]
    return subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_what_a_gpu_is_given_is_valid(tmp_path):
    assert on_gpu(tmp_path, "out", "300").returncode == 0
    log = (tmp_path / "out" / "results" / "log.txt").read_text()
    assert all(f"{name} ended with 0" in log for name in ROWS if "cct" in name and ROWS[name].epochs in (30, 100))
    assert "cct.py:document" in log and on_gpu(tmp_path, "out", "300", "no_such_row").returncode == 2
    assert "no_such_row ended with 2" in (tmp_path / "out" / "results" / "log.txt").read_text()


@pytest.mark.parametrize(("words", "says"), [((), "name a folder"), (("out", "soon"), "SECONDS=soon: must be a whole")])
def test_a_gpu_is_not_taken_by_mistake(tmp_path, words, says):
    done = on_gpu(tmp_path, *words)
    assert done.returncode == 2 and done.stderr.startswith(f"gpu_rows.sh: {says}") and not (tmp_path / "out").exists()


def test_a_row_that_cannot_be_run_is_a_mistake_and_its_partner_decides_nothing(project, tmp_path, capsys):
    text = (tmp_path / "tiny_row.py").read_text()
    (tmp_path / "none.py").write_text(text.replace("tiny_config(", "tiny_config(data__name='mnist', data__dir='/no', "))
    partner = TINY_ROW.format(weights="best", target=0.99).replace('"tiny"', '"partner"')
    row = TINY_ROW.format(weights="best", target=0.01) + 'pair = { row = "partner", ratio = 0.001 }\n'
    lost = TINY_ROW.format(weights="best", target=0.01).replace('"tiny"', '"lost"').replace("tiny_row", "none")
    (tmp_path / "rows.toml").write_text(partner + row + lost)
    with pytest.raises(UsageError, match="mnist"):
        verb.main([*project, "lost", "--seeds=1"])
    assert not (tmp_path / "results.csv").exists()
    assert verb.main([*project, "tiny", "--seeds=1"]) == 0
    said = capsys.readouterr().out
    assert "partner, n = 25, 1 of 2 seeds: top1 " in said and "missed by" in said and "(target 0.001: passes)" in said
    assert verb.main([*project, "partner", "--seeds=1"]) == 1


def test_where_and_by_what_a_run_was_trained_is_that_of_its_training(project, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxvit.run.environment.source_commit", lambda: "abc-dirty")
    assert verb.main([*project, "tiny", "--seeds=1"]) == 0
    monkeypatch.setattr("jaxvit.run.environment.source_commit", lambda: "def")
    monkeypatch.setattr("jaxvit.devices.hardware.device_name", lambda: "another machine")
    assert verb.main([*project, "tiny", "--seeds=1"]) == 0
    (line,) = results_of(tmp_path / "results.csv")
    assert line["commit"] == "abc-dirty" and not line["hardware"].startswith("another machine")
    assert (line["epochs"], line["data"].count("/")) == ("2.0", 2) and line["recipe"] != ""


def test_results_of_another_machine_are_taken(project_with_a_run, tmp_path, capsys):
    project = project_with_a_run
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "rows.toml").write_text((tmp_path / "rows.toml").read_text())
    words = [f"--results={tmp_path / 'here'}", f"--take={tmp_path}", project[1]]
    assert verb.main(words) == 0 and "1 lines taken" in capsys.readouterr().out
    (line,) = results_of(tmp_path / "results.csv")
    metrics = f"metrics/{line['metrics']}"
    for name in ("results.csv", "README.md", metrics, "curves/tiny_row_2_epochs.png"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / name).read_bytes()
    before = (tmp_path / "here" / "results.csv").read_text()
    (tmp_path / metrics).rename(tmp_path / "away")
    (tmp_path / metrics).symlink_to(tmp_path / "away")
    with pytest.raises(UsageError, match=r"tiny_seed_0_.* is missing; copy the whole folder"):
        verb.main(words)
    (tmp_path / metrics).unlink()
    (tmp_path / metrics).write_text('{"split": "validation", "step": 1, "epoch": 1.0}\n')
    with pytest.raises(UsageError, match="a validation in it has no epoch or no top1"):
        verb.main(words)
    assert (tmp_path / "here" / "results.csv").read_text() == before
    (tmp_path / "away").rename(tmp_path / metrics)
    (tmp_path / "here" / "rows.toml").write_text((tmp_path / "rows.toml").read_text().replace('"tiny"', '"other"'))
    with pytest.raises(UsageError, match="there is no row 'tiny' here"):
        verb.main(words)


def test_a_dtype_is_marked(project, tmp_path):
    assert verb.main([*project, "tiny", "--seeds=1", "--dtype=bfloat16"]) == 0
    (line,) = results_of(tmp_path / "results.csv")
    assert line["form"] == "full, bfloat16" and (tmp_path / "runs" / "tiny" / "bfloat16" / "seed_0").exists()
    assert "not run<br>full, bfloat16, 1 run: top1 " in (tmp_path / "README.md").read_text()


def test_judged_are_the_runs_that_were_asked_for_not_what_the_table_has(project, tmp_path, capsys):
    assert verb.main([*project, "tiny"]) == 0
    table = tmp_path / "results.csv"
    lines = results_of(table)
    top1 = [line["top1"] for line in lines]
    table.unlink()
    with writing(tmp_path):
        for line in lines:
            line |= {"hardware": "elsewhere", "top1": "0.99"}
            keep(line | {"metrics": metrics_name(line)}, table)
    (tmp_path / "rows.toml").write_text(TINY_ROW.format(weights="latest", target=0.98))
    assert verb.main([*project, "--list"]) == 0 and "99.00%" in capsys.readouterr().out
    assert verb.main([*project, "tiny", "--seeds=1"]) == 1
    said = capsys.readouterr().out
    assert f"top1 {float(top1[0]):.2%} " in said and "so far" in said and "99.00%" not in said
    assert "99.00%" in (tmp_path / "README.md").read_text()  # of more seeds


def test_runs_of_another_recipe_are_neither_gone_on_with_nor_shown(project_with_a_run, tmp_path, capsys):
    project = project_with_a_run
    rows = (tmp_path / "rows.toml").read_text()
    (tmp_path / "rows.toml").write_text(rows.replace("epochs = 2", "epochs = 3"))
    with pytest.raises(
        UsageError,
        match=r"seed_0: contains a run with another config .train.duration: '2 epochs' there, '3 epochs' here",
    ):
        verb.main([*project, "tiny", "--seeds=1"])
    assert verb.main([*project, "--list"]) == 0 and "not run" in capsys.readouterr().out
    config = tmp_path / "runs" / "tiny" / "seed_0" / "config.json"
    edit_json(config, '"extensions": []', '"extensions": [{"step": 4}]')
    (tmp_path / "rows.toml").write_text(rows)
    with pytest.raises(UsageError, match=r"another config .it was extended"):
        verb.main([*project, "tiny", "--seeds=1"])
    (tmp_path / "rows.toml").write_text(rows.replace("epochs = 2", "epochs = 3"))
    next((tmp_path / "metrics").iterdir()).write_text("no\nmetrics\n")  # of a line that is not shown
    assert verb.main([*project, "tiny", "--seeds=1", f"--runs={tmp_path / 'others'}"]) == 0
    page = (tmp_path / "README.md").read_text()
    assert len(results_of(tmp_path / "results.csv")) == 2 and len(list((tmp_path / "metrics").iterdir())) == 2
    assert page.count("passes so far") == 1 and "has changed since: `tiny`." in page


def test_a_config_that_cannot_be_read_is_told_and_the_page_stays(project_with_a_run, tmp_path):
    project = project_with_a_run
    page = (tmp_path / "README.md").read_text()
    with pytest.raises(UsageError, match="tiny_row"):
        verb.main([project[0], "--list"])
    (tmp_path / "there").mkdir()
    (tmp_path / "results.csv").rename(tmp_path / "there" / "results.csv")
    (tmp_path / "metrics").rename(tmp_path / "there" / "metrics")
    with pytest.raises(UsageError, match="tiny_row"):
        verb.main([project[0], f"--take={tmp_path / 'there'}"])
    assert (tmp_path / "README.md").read_text() == page and not (tmp_path / "results.csv").exists()


def test_a_run_counts_wherever_it_was_trained(project_with_a_run, tmp_path, capsys, monkeypatch):
    project = project_with_a_run
    environment = tmp_path / "runs" / "tiny" / "seed_0" / "environment.json"
    edit_json(environment, '"cores": ', '"cores": "9 of ", "cores_": ')
    (environment.parent / "line.json").unlink()  # it has the hardware that the run really had
    assert verb.main([*project, "tiny"]) == 0
    assert "tiny, n = 25, 2 of 2 seeds: top1 " in capsys.readouterr().out
    assert len({line["hardware"] for line in results_of(tmp_path / "results.csv")}) == 2


def test_a_damaged_file_of_metrics_stops_nothing(project_with_a_run, tmp_path, capsys):
    project = project_with_a_run
    next((tmp_path / "metrics").iterdir()).write_text("no\nmetrics\n")
    (tmp_path / "rows.toml").write_text(
        TINY_ROW.format(weights="latest", target=0.01)
        + TINY_ROW.format(weights="best", target=0.01).replace('"tiny"', '"b"')
    )
    assert verb.main([*project, "b"]) == 0
    assert "curve left out: " in (out := capsys.readouterr().out) and "b, n = 25, 2 of 2 seeds: top1 " in out


def test_one_process_at_a_time_writes(tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    with writing(tmp_path), pytest.raises(BlockingIOError):
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(folder)


def test_in_any_folder_the_rows_come_with_jaxvit_and_results_are_made_there(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet.py").write_text("raise AssertionError('it ran')")
    assert verb.main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ROWS) and "top1 84.90%" in said  # what came with them was measured so
    assert list(tmp_path.iterdir()) == [tmp_path / "imagenet.py"]
    assert verb.main(["imagenet_cct_14", "--dry_run"]) == 0 and not (tmp_path / "results").exists()


def test_results_of_ones_own_are_shown_beside_those_that_came_with_jaxvit(tmp_path):
    shipped = results_of(ROOT / "results" / "results.csv")
    mine = shipped[0] | {"hardware": "a machine of my own", "top1": "0.5"}
    with writing(tmp_path):
        keep(mine | {"metrics": metrics_name(mine)}, tmp_path / "results.csv")
    own = results_of(tmp_path / "results.csv")
    assert known_results(tmp_path) == shipped + own and known_results(tmp_path / "none") == shipped
    (tmp_path / "rows.toml").write_text(TINY_ROW.format(weights="best", target=0.5))
    assert known_results(tmp_path) == own and list(read_rows(rows_file(tmp_path))) == ["tiny"]
    assert rows_file(ROOT / "results") == ROOT / "results" / "rows.toml"
    assert known_results(ROOT / "results") == shipped


def test_a_page_of_somebody_elses_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "README.md").write_text("my own")
    with pytest.raises(UsageError, match=r"results has a README\.md that is not a page of results; name another"):
        verb.main(["imagenet_cct_14"])
    assert (tmp_path / "results" / "README.md").read_text() == "my own"
