"""launch.sh --on=k8s: its manifests against a schema of the JobSet API, and the words of a command through YAML."""

import copy
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")
jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: pip install 'jaxvit[test]'")

ROOT = Path(__file__).parents[1]
HARD = ["a b", "it's", '"two"', "$HOME", "$(JOB_COMPLETION_INDEX)", "$$", "$", "back\\slash", "new\nline", "\t", "\r"]
HARD += ["*", "", "~", "yes", "1e3", "null", "- x", "a: b", "# c", "{d}", "é", "日本", "\x01\x1b\x7f", "%"]
BASE = ["--name=vit", "--image=registry/jaxvit:1"]
GPU = [*BASE, "--nodes=2", "--gpus_per_node=8", "--volume=runs:/runs", "--volume=data:/data", "--cpus=96"]
GPU += ["--memory=512Gi", "--node_label=cloud.google.com/gke-accelerator=nvidia-h100-80gb", "--namespace=vision"]
TPU = [*BASE, "--tpu=tpu-v5-lite-podslice", "--topology=4x4", "--volume=runs:/runs"]


def launch(*words, code=0, **variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAXVIT_")}
    done = subprocess.run(
        [ROOT / "launch.sh", "--on=k8s", *words],
        env={**kept, "JAXVIT_ACCELERATOR": "cpu", **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def manifest(*words):
    return yaml.safe_load(launch("--dry_run", *words).stdout)


def schema():
    return json.loads((ROOT / "launch" / "jobset.schema.json").read_text())


def parts(found):
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    return job, pod, pod["containers"][0]


def expand(word, variables):
    """Expands a word of `args` as the reference of this field says: $(NAME) becomes the variable if it exists, and $$
    becomes $."""
    return re.sub(
        r"\$(?:\$|\(([^)]*)\))",
        lambda found: "$" if found[1] is None else variables.get(found[1], found[0]),
        word,
    )


@pytest.mark.parametrize("flags", [BASE, GPU, TPU, [*BASE, "--tpu=tpu-v6e-slice", "--topology=2x2x1"]])
def test_manifests_fit_the_schema(flags):
    found = manifest(*flags, "train", "--config=digits")
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(found, schema(), cls=jsonschema.Draft202012Validator)


def changed(found, path, value):
    """The manifest with one value replaced, or removed for None."""
    found = copy.deepcopy(found)
    *before, last = path
    inner = found
    for key in before:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return found


JOB = ("spec", "replicatedJobs", 0, "template", "spec")
POD = (*JOB, "template", "spec")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("apiVersion",), "jobset.x-k8s.io/v1"),
        (("spec", "failurePolicy", "rules", 0, "action"), "Restart"),
        (("spec", "failurePolicy", "rules", 0, "name"), None),
        (("spec", "podFailurePolicy"), {}),
        ((*JOB, "parallelism"), "2"),
        ((*JOB, "backofLimit"), 0),
        ((*JOB, "podFailurePolicy", "rules", 0, "onExitCodes", "values"), []),
        ((*POD, "restartPolicy"), "OnFailure"),
        ((*POD, "containers", 0, "args", 0), 1),
        ((*POD, "containers", 0, "resources", "limits", "nvidia.com/gpu"), -1),
        ((*POD, "volumes", 0), {"name": "empty"}),
    ],
)
def test_the_schema_refuses_a_wrong_manifest(path, value):
    wrong = changed(manifest(*GPU, "train", "--config=digits"), path, value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema(), cls=jsonschema.Draft202012Validator)


def test_words_arrive_unchanged():
    _, _, container = parts(manifest(*GPU, "train", *HARD))
    variables = {"JOB_COMPLETION_INDEX": "1", "HOME": "/root"}
    said = [expand(word, variables) for word in container["args"]]
    distributed = ["--coordinator=vit-workers-0-0.vit:9755", "--num_processes=2", "--process_id=1"]
    assert said == ["train", *HARD, *distributed]


def test_a_gpu_pool():
    found = manifest(*GPU, "train", "--config=digits")
    job, pod, container = parts(found)
    assert found["metadata"] == {"name": "vit", "namespace": "vision"}
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (2, 2, "Indexed")
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8, "cpu": 96, "memory": "512Gi"}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "emptyDir" not in v}
    assert {claims[name]: mounts[name] for name in claims} == {"runs": "/runs", "data": "/data"}
    assert mounts["shared-memory"] == "/dev/shm"
    # A stopped or evicted pod starts all again, as often as needed.
    (rule,) = found["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    saved, evicted = job["podFailurePolicy"]["rules"]
    assert saved["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [75]}
    assert evicted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


@pytest.mark.parametrize(
    ("topology", "more", "nodes", "chips"),
    [
        ("4x4", [], 4, 4),
        ("4x4x4", [], 16, 4),
        ("2x2", [], 1, 4),
        ("1x1", [], 1, 1),
        ("2x4", ["--chips_per_node=8"], 1, 8),
    ],
)
def test_a_tpu_pool(topology, more, nodes, chips):
    words = ["--tpu=tpu-v5-lite-podslice", f"--topology={topology}", *more]
    job, pod, container = parts(manifest(*BASE, *words, "train", "--config=digits"))
    assert job["parallelism"] == job["completions"] == nodes
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    assert container["args"] == ["train", "--config=digits", *(["--distributed"] if nodes > 1 else [])]


def test_it_is_created_with_kubectl(tmp_path):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@" >"{tmp_path}/called"; cat >"{tmp_path}/manifest"; exit "${{CODE:-0}}"\n')
    kubectl.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = launch(*BASE, "evaluate", "--workdir=/runs/x", PATH=path)
    assert (tmp_path / "called").read_text() == "create -f -\n" and "kubectl logs" in done.stdout
    assert parts(yaml.safe_load((tmp_path / "manifest").read_text()))[2]["args"] == ["evaluate", "--workdir=/runs/x"]
    done = launch(*BASE, "evaluate", code=2, PATH=path, CODE="1")
    assert "kubectl could not create the JobSet vit" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--name=vit", "train"], "--image is missing"),
        (["--image=x", "train"], "--name is missing"),
        (["--image=x", "--name=a_b", "train"], "--name=a_b: at most 40 lower-case letters"),
        ([*BASE, "--tpu=tpu-v6e-slice", "train"], "--topology=: write the chips"),
        ([*BASE, "--topology=4x4", "train"], "--topology=4x4 needs --tpu=KIND"),
        ([*BASE, "--tpu=t", "--topology=4x4", "--gpus_per_node=1", "train"], "a node has one of the two"),
        ([*BASE, "--tpu=t", "--topology=3x3", "train"], "has 9 chips, which --chips_per_node=4 does not divide"),
        ([*BASE, "--tpu=t", "--topology=4x4", "--nodes=2", "train"], "has 4 nodes of 4 chips; leave --nodes out"),
        ([*BASE, "--volume=runs", "train"], "--volume=runs: write it as CLAIM:/FOLDER"),
        ([*BASE, "--node_label=x", "train"], "--node_label=x: write it as KEY=VALUE"),
        ([*BASE, "--memory=much", "train"], "--memory=much: write it as 64Gi"),
        ([*BASE, "--nodes=2", "sweep"], "only train runs on several nodes"),
        ([*BASE, "train", "--workdir=gs://b/x"], "gs://b/x is a bucket"),
    ],
)
def test_a_wrong_flag_is_one_line(words, says):
    done = launch("--dry_run", *words, code=2)
    assert says in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""


def test_a_wrong_accelerator_of_the_image_is_refused():
    """The shell command of the Dockerfile, with a stand-in for pip."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    command = re.search(r"^RUN (case.*esac)", text, re.M)[1]

    def install(accelerator):
        script = f'pip() {{ echo "pip $*"; }}; {command}'
        variables = {**os.environ, "ACCELERATOR": accelerator}
        return subprocess.run(["sh", "-c", script], env=variables, capture_output=True, text=True)

    assert [install(name).stdout for name in ("cpu", "cuda13", "tpu")] == [
        "pip install --no-cache-dir .\n",
        "pip install --no-cache-dir .[cuda13]\n",
        "pip install --no-cache-dir .[tpu]\n",
    ]
    wrong = install("gpu")
    assert wrong.returncode == 2 and "must be cpu, cuda13 or tpu" in wrong.stderr
    copied = re.findall(r"^COPY (.*) \S+$", text, re.M)
    assert all((ROOT / name).exists() for line in copied for name in line.split())
