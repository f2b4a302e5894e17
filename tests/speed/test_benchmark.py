"""The benchmark verb. The tests do not check times, only the quantities computed from them."""

import contextlib
import csv
import json
import os
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import tiny_config

from jaxvit.cli.benchmark import main
from jaxvit.devices.runtime import fresh_program_cache
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.models import create_model, list_models
from jaxvit.models.count import count_macs
from jaxvit.models.registry import input_shape
from jaxvit.run import program as run_program
from jaxvit.speed import models
from jaxvit.speed import steps as measurement
from jaxvit.speed.page import show
from jaxvit.speed.steps import Bench, Effort
from jaxvit.speed.subject import document_config, make_subject
from jaxvit.speed.timing import spread, time_in_turns
from jaxvit.speed.workloads import DOCUMENTS, workload_of

TINY = ["--config.model.dim=8", "--config.model.depth=1", "--config.model.heads=2", "--config.model.patch=8"]
QUICK = ["--rounds=2", "--seconds=0.005"]
PROMISED = {
    *("model", "batch", "dtype", "device", "train_ms_per_step", "infer_ms_per_batch", "images_per_s", "compile_s"),
    *("tflops", "peak_share", "memory_mb"),
}


@pytest.fixture(autouse=True)
def usual_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The JSON output of a quick run of the verb, and its output folder."""
    folder = tmp_path_factory.mktemp("measured")
    cache = jax.config.jax_compilation_cache_dir
    words = ["--model=vit", "--batch=4", *TINY, *QUICK, f"--out={folder}", f"--trace={folder / 'trace'}", "--json"]
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        said = []
        patch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
        assert main(words) == 0
    assert jax.config.jax_compilation_cache_dir == cache
    (line,) = said
    return json.loads(line), folder


def test_every_promised_key_is_there_and_follows_from_the_times(measured):
    found, _ = measured
    assert set(found) >= PROMISED
    assert (found["model"], found["batch"], found["dtype"]) == ("vit", 4, "float32")
    assert set(found["infer_ms_per_batch"]) == {"1", "4"}
    macs = count_macs(create_model("vit", dim=8, depth=1, heads=2, patch=8), (32, 32, 3))["all"]
    step = found["train_ms_per_step"] / 1e3
    assert found["images_per_s"] == pytest.approx(4 / step, rel=1e-2)
    assert found["tflops"] == pytest.approx(6 * macs * 4 / step / 1e12, rel=1e-2)
    assert found["infer_tflops"] == pytest.approx(2 * macs * 4 / found["infer_ms_per_batch"]["4"] / 1e9, rel=1e-2)
    assert found["peak_share"] == pytest.approx(found["tflops"] / found["peak_tflops"], rel=1e-2)
    assert found["compile_s"] > found["trace_s"] > 0 and found["compile_cached_s"] > 0
    assert (found["data"], found["feed"]) == ("synthetic", "resident") and found["input_share"] < 1
    assert found["overrides"]["train.batch_size"] == 4 and found["versions"]["jax"] == jax.__version__
    for name in ("train", "fed", "loop", "infer_1", "infer_4", "infer_latency", "products", "input_device"):
        times = found["spread"][name]
        assert 0 < times["q1"] <= times["median"] <= times["q3"] and times["count"] >= 2, name


def test_memory_is_what_the_program_holds(measured):
    """On a CPU: includes parameters and both moments, four bytes per number; a donated state counts once."""
    found, _ = measured
    assert found["memory_of"] == "program"
    state = 3 * 4 * found["params"] / 1e6
    assert state < found["memory_mb"] < found["process_mb"]


def test_tables_hold_hardware_versions_and_the_figures(measured):
    found, folder = measured
    page = (folder / "benchmark.md").read_text()
    assert f"| device | {found['device']}" in page and f"jax {jax.__version__}" in page
    (row,) = [line for line in page.splitlines() if line.startswith("| `vit` | 4 | float32 | ")]
    heading = next(line for line in page.splitlines() if line.startswith("| model | batch"))
    assert row.count("|") == heading.count("|")
    (line,) = csv.DictReader((folder / "benchmark.csv").open())
    assert float(line["train_ms_per_step"]) == found["train_ms_per_step"]
    assert float(line["infer_batch_ms"]) == found["infer_ms_per_batch"]["4"] and line["input_shape"] == "32x32x3"
    assert {p.name for p in folder.iterdir()} == {"benchmark.md", "benchmark.csv", "trace"}


def test_a_profile_is_written(measured):
    _, folder = measured
    assert list((folder / "trace").rglob("*.xplane.pb"))


def test_people_are_told_the_same(measured, capsys):
    found, _ = measured
    show(found)
    out = capsys.readouterr().out
    assert f"{found['train_ms_per_step']:,.4g} ms" in out and "waiting for input " in out


def test_several_models_one_table(tmp_path, capsys, monkeypatch):
    """Each model runs in its own process with all flags; if one fails, the others still run."""

    def process(command, **options):
        assert command[1:5] == ["-P", "-m", "jaxvit", "benchmark"]
        model = next(word for word in command if word.startswith("--model=")).removeprefix("--model=")
        commands.append(command)
        if model == "cct":
            return subprocess.CompletedProcess(command, 70, "", "noise\njaxvit: out of device memory\n")
        return subprocess.CompletedProcess(command, 0, json.dumps(one | {"model": model}) + "\n", "")

    commands, one = [], _example()
    monkeypatch.setattr(subprocess, "run", process)
    words = ["--model=vit,cct", "--model=shiftvit", "--batch=4", "--dtype=bfloat16", f"--out={tmp_path}", "--seconds=1"]
    assert main([*words, "--config.optim.peak_lr=0.1"]) == 1
    out, err = capsys.readouterr()
    assert "jaxvit: cct: out of device memory" in err
    rows = [line.split(" | ")[0] for line in out.splitlines() if line.startswith("| `")]
    assert rows == ["| `vit`", "| `shiftvit`"] and out == (tmp_path / "benchmark.md").read_text()
    assert [row["model"] for row in csv.DictReader((tmp_path / "benchmark.csv").open())] == ["vit", "shiftvit"]
    assert len(commands) == 3
    for command in commands:
        assert {"--batch=4", "--dtype=bfloat16", "--seconds=1.0", "--config.optim.peak_lr=0.1"} <= set(command)


def _example():
    times = {"median": 2.0, "q1": 1.0, "q3": 3.0, "count": 3}
    return {
        **{"model": "", "batch": 4, "dtype": "float32", "device": "cpu", "devices": 1, "input_shape": [8, 8, 1]},
        **{
            "data": "synthetic",
            "feed": "resident",
            "train_ms_per_step": 2.0,
            "infer_ms_per_batch": {"1": 2.0, "4": 2.0},
        },
        **dict.fromkeys(("images_per_s", "compile_s", "compile_cached_s", "tflops", "memory_mb", "peak_share"), 0.5),
        **{"memory_of": "program", "input_share": 0.01, "loop_overhead": 0.5, "rounds": 1, "seconds": 1.0},
        **{"spread": dict.fromkeys(("train", "infer_1", "infer_4"), times)},
        **{"machine": {"cores": "2"}, "versions": {"jax": "1"}, "date": "2026-01-01"},
    }


def test_a_mistake_that_only_a_process_sees_ends_it_all(capsys, monkeypatch):
    failed = subprocess.CompletedProcess([], 2, "", "jaxvit: --config.optim.momentum: nothing reads this\n")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: failed)
    with pytest.raises(UsageError, match=r"^vit: --config\.optim\.momentum"):
        main(["--model=vit,cct", "--config.optim.momentum=0.5"])
    assert capsys.readouterr().out == ""


def test_one_real_process_on_two_devices(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2")
    monkeypatch.chdir(tmp_path)
    each = models.measure_each(["vit", "cct"], ["--batch=2", *QUICK, *TINY])
    name, found = next(each)
    assert name == "vit" and set(found) >= PROMISED and (found["batch"], found["devices"]) == (2, 2)
    with pytest.raises(UsageError, match=r"^cct: --config\.model\.patch: this key has no effect"):
        next(each)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "--model=NAME, --config=NAME or --file=FILE"),
        (["--model=vit", "--config=configs/digits.py"], "--model=NAME, --config=NAME or --file=FILE"),
        (["--model=tutorial_cctt"], "did you mean 'tutorial_cct'"),
        (["--model=vit,,cct"], "a name is missing"),
        (["--model=vit", "--batch=0"], "--batch=0: must be 1 or more"),
        (["--model=vit", "--rounds=0"], "--rounds=0: must be 1 or more"),
        (["--model=vit", "--seconds=0"], "--seconds=0: must be above 0"),
        (["--model=vit", "--seconds=inf"], "--seconds=inf"),
        (["--model=vit", "--dtype=float8"], "--dtype: invalid choice"),
        (["--model=vit", "--batch=2", "--config.train.batch_size=4"], "--batch and --config.train.batch_size"),
        (["--model=vit", "--dtype=bfloat16", "--config.model.dtype=float32"], "--dtype and --config.model.dtype"),
        (["--model=vit", "--config.model.name=cct"], "set the model with --model"),
        (["--model=vit", "--config.model.detph=2"], "did you mean 'model.depth'"),
        (["--model=vit", "--bacth=2"], "did you mean '--batch'"),
        (["--model=vit", "--config.train.duration=2 epochs", "--dry_run"], "train.duration: this key has no effect"),
        (["--model=vit", "--config.data.train=train[:9]", "--dry_run"], "the images are synthetic"),
        (["--model=vit", "--config.optim.momentum=0.5", "--dry_run"], "config.optim.name='adamw' has no such setting"),
        (["--model=vit", "--config.model.patch=5", "--dry_run"], "patch=5 does not divide"),
        (["--model=vit", "--config.data.name=cifar10", "--dry_run"], "jaxvit data prepare cifar10"),
    ],
)
def test_mistakes_are_one_line(words, sentence, capsys):
    with pytest.raises(UsageError) as error:
        main(words)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    for flag in ("--out", "--trace"):
        with pytest.raises(UsageError, match="file/x cannot be written"):
            main(["--model=vit", f"{flag}={tmp_path / 'file' / 'x'}"])


def test_a_dry_run_says_the_sizes_and_measures_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "measure", None)
    assert main(["--model=tutorial_cct,vit", "--dry_run", f"--out={tmp_path / 'out'}"]) == 0
    out = capsys.readouterr().out
    assert "416,331 parameters, 41,189,376 multiply-adds" in out and "batch 128, adamw: as in its document" in out
    assert "32×32×3, 10 classes, feed resident" in out and out.endswith("nothing was measured\n")
    assert not (tmp_path / "out").exists()


def test_documents_models_are_trained_as_their_documents_say():
    config = document_config("tutorial_fashion_vit")
    assert (config.train.batch_size, config.optim.name) == (32, "adam")
    plan = make_subject(config, origin="document").plan
    assert (plan.optim.schedule, plan.optim.peak_lr, plan.optim.eps) == ("constant", 1e-3, 1e-7)
    assert len(plan.data.class_names) == 4 and plan.input_shape == (28, 28, 1)
    assert plan.optim.warmup_steps == 0


def test_workloads_are_the_models_own():
    assert set(DOCUMENTS) == {name for name in list_models() if name.startswith("tutorial_")}
    for name, workload in DOCUMENTS.items():
        assert (workload.model, workload.input) == (name, input_shape(name))
        assert workload.classes == create_model(name).num_classes
    other = workload_of("vit_s16_224")
    assert (other.batch, other.input, other.classes) == (128, (224, 224, 3), 1000)


def test_a_config_is_measured_with_its_own_data(capsys):
    subject = make_subject(tiny_config(train__patience="2 epochs", seeds=(1, 2)))
    assert not subject.synthetic and subject.plan.train.feed == "resident"
    assert subject.plan.data.train == "train[:60]" and subject.plan.data.name == "digits"
    assert capsys.readouterr().err == ""
    assert make_subject(tiny_config(), synthetic=True).synthetic


def test_data_that_is_not_there_is_replaced_and_that_is_said(capsys, tmp_path):
    config = tiny_config(data__name="cifar10", data__dir=str(tmp_path), data__train="train[:45000]")
    subject = make_subject(config)
    assert subject.synthetic and subject.plan.input_shape == (32, 32, 3)
    assert "using synthetic images instead of cifar10" in capsys.readouterr().err
    config = tiny_config(data__name="cifar10", data__dir=str(tmp_path))
    with pytest.raises(UsageError, match="jaxvit data prepare cifar10"):
        make_subject(config, overrides=["data.name"])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A Bench of the tiny run, with the programs and cache events recorded during its construction."""
    programs, events = [], []
    make, lower, compile_ = run_program.jit_train_step, run_program.JittedStep.lower, Bench._compile

    def noting_programs(*arguments, **options):
        programs.append(make(*arguments, **options))
        return programs[-1]

    def noting_lowering(self, *arguments):
        lowered = lower(self, *arguments)
        events.append("began")  # after the small programs that tracing may need
        return lowered

    def noting_compiling(self):
        found = compile_(self)
        events.append("ended")
        return found

    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"), fresh_program_cache():
        patch.setattr(run_program, "jit_train_step", noting_programs)
        patch.setattr(measurement, "jit_train_step", noting_programs)
        patch.setattr(run_program.JittedStep, "lower", noting_lowering)
        patch.setattr(Bench, "_compile", noting_compiling)
        jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rpartition("/")[2]))
        bench = Bench(make_subject(tiny_config()), tmp_path_factory.mktemp("bench"))
        with contextlib.closing(bench):
            yield bench, programs, events


def test_the_step_is_the_trainers_own(made):
    """The timed program is identical to the one that `train` compiles."""
    bench, programs, _ = made
    texts = {program.lower(bench._state, bench._feed, bench._call).as_text() for program in programs}
    assert len(programs) == 3 and len(texts) == 1


def test_compiling_is_measured_without_and_with_kept_programs(made):
    """The cache is empty the first time, and has the step the second time."""
    _, _, events = made
    first = events[events.index("began") : events.index("ended")]
    rest = events[events.index("ended") + 1 :]
    second = rest[rest.index("began") : rest.index("ended")]
    assert "cache_misses" in first and "cache_hits" not in first
    assert "cache_hits" in second and "cache_misses" not in second


def test_a_model_is_measured_with_an_empty_cache_of_its_own(monkeypatch):
    before = jax.config.jax_compilation_cache_dir

    def looking(subject, folder):
        cache = Path(jax.config.jax_compilation_cache_dir)
        assert cache != Path(before) and not list(cache.iterdir())
        raise InterruptedError

    monkeypatch.setattr(measurement, "Bench", looking)
    with pytest.raises(InterruptedError):
        measurement.measure(make_subject(tiny_config()), measurement.Effort())
    assert jax.config.jax_compilation_cache_dir == before


def test_each_step_is_given_the_state_of_the_one_before(made):
    bench, _, _ = made
    start, before = int(bench._state.step), jax.tree.leaves(bench._state.params)[0]
    bench.train(3)
    assert int(bench._state.step) == start + 3 and before.is_deleted()


def test_steps_are_counted_in_calls_and_batches_follow_each_other(tmp_path):
    subject = make_subject(tiny_config(data__feed="stream", train__steps_per_call=2))
    with fresh_program_cache(), contextlib.closing(Bench(subject, tmp_path)) as bench:
        bench.train(3)
        assert int(bench._state.step) == 6
        bench.fed(2)
        assert int(bench._state.step) == 10
        assert bench.loop(2) > 0
        assert int(bench._state.step) == 14
        bench.fed(1)  # goes on where the loop's input has ended
        drained = -(-bench._feed.ahead // 2) * 2  # each time, what was made ahead
        assert drained >= 4 and bench._next == 10 + 3 * drained


def test_inference_takes_any_number_of_images(made):
    bench, _, _ = made
    for size in (1, 100):  # more than the data set has, too
        bench.inference(size)(2)
    repeated = bench.inference(1)
    bench.train(1)
    repeated(1)  # the state's own variables have been given away by then


def test_a_product_is_doubled_until_it_takes_its_time(made):
    repeated, operations = made[0].products(0.0)
    repeated(1)
    assert operations == 2 * 512**3


def test_things_are_timed_in_turns():
    calls = []

    def runner(name):
        def run(count):
            calls.append(name)
            return 0.5 * count

        return run

    times = time_in_turns({"a": runner("a"), "b": runner("b")}, rounds=2, seconds=1e-9)
    assert times == {"a": [0.5, 0.5], "b": [0.5, 0.5]}
    settled_and_timed = ["a", "a"], ["b", "b"]
    turns = [settled_and_timed[i] for i in (0, 1, 1, 0)]
    assert calls == ["a", "a", "b", "b", *(name for turn in turns for name in turn)]


def test_quick_things_are_waited_for_in_groups():
    counts = []

    def run(count):
        counts.append(count)
        return 0.001 * count

    (times,) = time_in_turns({"quick": run}, rounds=1, seconds=0.04).values()
    assert counts[:3] == [1, 1, 2] and set(counts[3:]) == {10}
    assert times[0] == pytest.approx(0.001)


def test_spread():
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0], 1e3) == {"median": 3000, "q1": 2000, "q3": 4000, "count": 5}
    assert spread([0.5]) == {"median": 0.5, "q1": 0.5, "q3": 0.5, "count": 1}


def test_an_exhausted_device_is_one_line(monkeypatch):
    def exhausted(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1073741824 bytes.")

    monkeypatch.setattr(models, "measure", exhausted)
    with pytest.raises(
        RunFailedError, match=r"1\.00 GiB could not be allocated.*a smaller --batch, now=4, .*dtype=bfloat16"
    ):
        models.measure_one(tiny_config(train__batch_size=4), Effort(), synthetic=True)


def test_synthetic_images_are_noise_of_every_class():
    subject = make_subject(document_config("tutorial_cct"))
    source = subject.dataset.read("train")
    assert len(source) == 256 and set(np.unique(source.labels)) == set(range(10))
    assert source.images.dtype == np.uint8 and source.images.std() > 70
