"""`hf://` through huggingface_hub against a local server that answers as the hub does."""

import hashlib
import http.server
import json
import socket
import threading

import numpy as np
import pytest
import safetensors.numpy

from jaxvit.errors import UsageError
from jaxvit.files import local_path
from jaxvit.weights.arrays import read_arrays
from jaxvit.weights.hugging_face import fetch, parse_address, weights_path
from jaxvit.weights.pretrained import load_weights, read_pretrained

pytest.importorskip("huggingface_hub")
SHA = "a" * 40
ARRAY = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
SAFE = safetensors.numpy.save(ARRAY)
INDEX = json.dumps({"weight_map": {"a.weight": "model-00001-of-00001.safetensors"}}).encode()

# {repository: {file: content}}; all at one commit.
REPOSITORIES = {
    "me/one": {"model.safetensors": SAFE, "config.json": b"{}", "evil.py": b"1 / 0", "README.md": b"# one"},
    "me/several": {"model.safetensors": SAFE, "pytorch_model.bin": b"x", "tf_model.h5": b"x"},
    "me/sizes": {"B_16.npz": b"x", "L_16.npz": b"x"},
    "me/shards": {"model.safetensors.index.json": INDEX, "model-00001-of-00001.safetensors": SAFE},
    "me/nothing": {"README.md": b"# nothing"},
}


class Hub(http.server.BaseHTTPRequestHandler):
    """The few requests that huggingface_hub makes to read a model."""

    asked: list = []

    def log_message(self, *words):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        Hub.asked.append((self.command, self.path))
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repo, revision = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main"
            if not self.known(repo, revision):
                return
            siblings = [{"rfilename": name} for name in REPOSITORIES[repo]]
            about = {"id": repo, "modelId": repo, "sha": SHA, "siblings": siblings, "tags": [], "private": False}
            self.send(json.dumps(about).encode(), body)
            return
        if parts[2:3] != ["resolve"]:
            self.fail(404, "no such request")
            return
        repo, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        if self.known(repo, revision):
            if name in REPOSITORIES[repo]:
                self.send(REPOSITORIES[repo][name], body)
            else:
                self.fail(404, "EntryNotFound")

    def known(self, repo, revision):
        if repo == "me/gated":
            self.fail(403, "GatedRepo")
        elif repo not in REPOSITORIES:
            self.fail(401, "RepoNotFound")
        elif revision not in ("main", "v1", SHA):
            self.fail(404, "RevisionNotFound")
        else:
            return True
        return False

    def fail(self, code, why):
        self.send_response(code)
        self.send_header("X-Error-Code", why)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, data, body):
        self.send_response(200)
        self.send_header("X-Repo-Commit", SHA)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture(scope="module")
def endpoint():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def hub(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Hub.asked.clear()
    return tmp_path / "cache"


def names(cache):
    return sorted(path.name for path in (cache / "models--me--one" / "snapshots" / SHA).iterdir())


@pytest.mark.parametrize("address", ["hf://me/one", "hf:/me/one", "hf://me/one@v1", "hf://me/one/model.safetensors"])
def test_a_file_is_fetched_with_what_lies_beside_it(hub, address, capsys):
    assert np.array_equal(read_arrays(fetch(address))["a.weight"], ARRAY["a.weight"])
    assert names(hub) == ["config.json", "model.safetensors"] and not capsys.readouterr().err


def test_a_second_time_nothing_is_downloaded(hub):
    fetch("hf://me/one")
    asked = len(Hub.asked)
    fetch("hf://me/one")
    assert [path for command, path in Hub.asked[asked:] if command == "GET" and "/resolve/" in path] == []


def test_a_choice_is_said(hub, capsys):
    assert fetch("hf://me/several").name == "model.safetensors"
    assert capsys.readouterr().err == "note: hf://me/several: takes model.safetensors, not pytorch_model.bin\n"


def test_an_index_comes_with_its_files(hub):
    assert np.array_equal(read_arrays(fetch("hf://me/shards"))["a.weight"], ARRAY["a.weight"])


def test_an_address_is_read_like_a_file(hub):
    for read in (read_pretrained, lambda address: load_weights(address, None)):
        with pytest.raises(UsageError, match=r"model\.safetensors has names of no project that is known"):
            read("hf://me/one")


WRONG = {
    "hf://me/none": "hf://me/none: there is no such repository, or it is private: log in",
    "hf://me/gated": "its owner grants access on request",
    "hf://me/one@v2": "hf://me/one@v2: there is no revision 'v2'",
    "hf://me/one/other.npz": "hf://me/one has no file other.npz; it has model.safetensors",
    "hf://me/one/evil.py": "only weights are fetched",
    "hf://me/one/../../model.safetensors": "is not a path of a file in a repository",
    "hf://me/sizes": "several files of weights (B_16.npz, L_16.npz); name one: hf://me/sizes/B_16.npz",
    "hf://me/nothing": "hf://me/nothing has no weights",
    "hf://me": "write hf://owner/name[@revision][/file]",
    "hf://me/o ne": "write hf://owner/name",
    "hf://../one": "write hf://owner/name",
}


@pytest.mark.parametrize("address", WRONG)
def test_what_is_not_there_is_one_line(hub, address):
    with pytest.raises(UsageError) as caught:
        fetch(address)
    assert WRONG[address] in str(caught.value) and "\n" not in str(caught.value)


def test_without_a_network_the_cache_is_read(hub, monkeypatch, capsys):
    file = fetch("hf://me/one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    asked = len(Hub.asked)
    assert fetch("hf://me/one") == file
    assert capsys.readouterr().err == "note: hf://me/one: no network, so the cached copy is taken\n"
    for address in ("hf://me/several", "hf://me/one@v1"):
        with pytest.raises(UsageError, match="cannot be reached, and the cache does not hold it"):
            fetch(address)
    assert len(Hub.asked) == asked


def test_a_name_that_cannot_be_looked_up_is_no_network(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://nowhere.invalid")
    with pytest.raises(UsageError, match=r"https://nowhere\.invalid cannot be reached"):
        fetch("hf://me/one")


def test_without_the_extra_its_name_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'jaxvit\[hub\]'"):
        fetch("hf://me/one")


def test_where_an_address_may_stand():
    assert weights_path("hf://me/one") == "hf://me/one" and weights_path("runs/a") == "runs/a"
    assert parse_address("hf://me/one@v1/sub/a.npz") == ("me/one", "v1", "sub/a.npz")
    with pytest.raises(UsageError, match="jaxvit convert hf://… --workdir=DIR` makes a folder"):
        local_path("hf://me/one")
    with pytest.raises(UsageError, match="is a URL"):
        weights_path("https://example.org/model.pth")
