"""The speed comparison, without the other frameworks: workloads, arithmetic, and the protocol of workers."""

import importlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxvit.models import create_model
from jaxvit.models.registry import input_shape

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_workloads_are_the_models_own():
    for name, workload in importlib.import_module("peers.workloads").WORKLOADS.items():
        assert workload.model == name
        assert workload.input == input_shape(name)
        assert workload.classes == create_model(name).num_classes


class Constant:
    name = "constant"

    def train_step(self):
        return 0.5

    def infer(self, batch):
        if batch > 2:
            raise ValueError("too\nmuch")


def test_a_worker_answers_line_by_line():
    timing = importlib.import_module("peers.timing")
    answers = io.StringIO()
    timing.serve(Constant(), io.StringIO("train 3\ninfer 1 2\ninfer 9 1\nsing\nquit\ntrain 1\n"), answers)
    train, one, much, unknown = map(json.loads, answers.getvalue().splitlines())
    assert len(train["ms"]) == 3 and train["loss"] == 0.5
    assert len(one["ms"]) == 2
    assert much == {"error": "ValueError: too"}
    assert "sing" in unknown["error"]


def test_a_worker_finds_no_compiled_programs(monkeypatch):
    timing = importlib.import_module("peers.timing")
    started, popen = [], subprocess.Popen

    def start(command, **options):
        started.append(options["env"])
        assert not list(Path(options["env"]["TORCHINDUCTOR_CACHE_DIR"]).iterdir())
        return popen([sys.executable, "-c", "print('{}')"], **options)

    monkeypatch.setattr(timing.subprocess, "Popen", start)
    with timing.Worker("torch-compile", "tutorial_cct"), timing.Worker("jaxvit", "tutorial_cct"):
        pass
    assert not any("JAX_COMPILATION_CACHE_DIR" in environment for environment in started)
    folders = {environment["TORCHINDUCTOR_CACHE_DIR"] for environment in started}
    assert len(folders) == 2 and not any(Path(folder).exists() for folder in folders)


def test_a_worker_that_ends_says_why(monkeypatch):
    timing, popen = importlib.import_module("peers.timing"), subprocess.Popen
    broken = [sys.executable, "-c", "import sys; sys.exit('noise\\nit broke')"]
    monkeypatch.setattr(timing.subprocess, "Popen", lambda command, **options: popen(broken, **options))
    with pytest.raises(timing.WorkerError, match=r"^ended with code 1: it broke$"):
        timing.Worker("jaxvit", "tutorial_cct")


def times(median):
    return {"median": median, "q1": median, "q3": median, "count": 1}


def known():
    said = {"parameters": 1, "device": "cpu", "versions": {"jax": "1"}, "first_step_s": 1.0}
    measured = {
        "jaxvit": {"train": 2.0, "infer_one": 1.0, "infer_batch": 1.0},
        "torch-eager": {"train": 4.0, "infer_one": 1.0, "infer_batch": 0.5},
        "torch-compile": {"train": 3.0, "infer_one": 2.0, "infer_batch": 4.0},
    }
    peers = {p: said | {name: times(ms) for name, ms in row.items()} for p, row in measured.items()}
    peers["keras-jax"] = {"none": "keras is not installed"}
    settings = {"rounds": 1, "seconds": 1.0, "amp": False, "compile_mode": "default", "machine": {"cores": "2"}}
    return {"settings": settings, "models": {"tutorial_cct": {"date": "2026-01-01", "load_before": 0, "peers": peers}}}


def two_models():
    models = known()["models"]
    other = json.loads(json.dumps(models["tutorial_cct"]))
    other["peers"]["torch-eager"]["train"] = times(1.0)
    del other["peers"]["torch-compile"]["train"]  # it has failed
    return models | {"tutorial_shiftvit": other}


def test_ratios_are_against_the_fastest():
    driver = importlib.import_module("against_peers")
    row = driver.ratios(known()["models"], "train")["tutorial_cct"]
    assert row == {"torch-eager": 0.5, "torch-compile": pytest.approx(2 / 3)}
    assert driver.fastest(row) == "torch-compile"
    row = driver.ratios(known()["models"], "infer_batch")["tutorial_cct"]
    assert (driver.fastest(row), row["torch-eager"]) == ("torch-eager", 2.0)


def test_means_are_geometric_and_of_those_that_were_timed():
    driver = importlib.import_module("against_peers")
    found = driver.means(driver.ratios(two_models(), "train"))
    assert found["torch-eager"] == (pytest.approx(1.0), 2)  # of 1/2 and 2
    assert found["torch-compile"] == (pytest.approx(2 / 3), 1)
    assert found["fastest"] == (pytest.approx((2 / 3 * 2) ** 0.5), 2)


def test_the_outcome_is_said():
    lines = importlib.import_module("against_peers").said(two_models())
    assert lines[0].startswith("train: geometric mean of jaxvit / peer") and "torch-eager 1.00 (2)" in lines[0]
    assert "  tutorial_shiftvit: fastest other torch-eager, jaxvit / peer 2.00" in lines


def test_the_page_names_the_fastest_and_what_is_missing():
    page = importlib.import_module("against_peers").report(known() | {"models": two_models()})
    assert "- keras-jax (keras is not installed): `tutorial_cct`, `tutorial_shiftvit`" in page
    assert "| `tutorial_cct` | 128 | 2 (2–2) | 4 (4–4) | 3 (3–3) | torch-compile | **0.67** |" in page
    assert "| `tutorial_shiftvit` | 256 | 2 (2–2) | 1 (1–1) | – | torch-eager | **2.00** |" in page
    assert "| | 1 | 1.00 (2) | 0.67 (1) |  | **1.15** (2) |" in page


def test_results_are_kept_and_not_mixed(tmp_path):
    store = importlib.import_module("against_peers").Store
    first = store(tmp_path / "r.json", {"rounds": 1})
    first.put("tutorial_cct", known()["models"]["tutorial_cct"]["peers"], 0.0)
    again = store(tmp_path / "r.json", {"rounds": 1})
    assert again.has("tutorial_cct", ["jaxvit", "keras-jax"])
    assert not again.has("tutorial_cct", ["keras-tensorflow"])
    with pytest.raises(SystemExit, match="rounds"):
        store(tmp_path / "r.json", {"rounds": 2})
