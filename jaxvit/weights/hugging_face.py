"""Weights from a model hub: `hf://owner/name[@revision][/file]`, through `huggingface_hub` (extra `hub`), cached.

Only data is fetched: a file of weights, the files that its index names, and a few files of JSON beside it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import sys
import threading
import urllib.parse
import urllib.request
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jaxvit.errors import UsageError, first_line
from jaxvit.files import local_path
from jaxvit.shown import terminal
from jaxvit.weights.arrays import INDEX, index_files
from jaxvit.weights.beside import CONFIG, PREPROCESSOR
from jaxvit.weights.hub import FILE

ENDINGS = (".safetensors", ".npz", ".pth", ".pt", ".bin", INDEX)
_BESIDE = (CONFIG, PREPROCESSOR, "model.json")
_PREFERRED = (FILE, f"{FILE}{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")  # in this order
_PATIENCE = 3.0  # seconds until the hub counts as out of reach
_ADDRESS = re.compile(
    r"hf:/{1,2}(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>\w[\w.-]{0,99}))?(?:/(?P<file>.+))?"
)


class Address(NamedTuple):
    """The parts of an address.

    Attributes:
      repo: 'owner/name'.
      revision: a branch, tag or commit; '' = main.
      file: a path in the repository; '' = it is chosen.
    """

    repo: str
    revision: str
    file: str


def is_address(text: str | Path) -> bool:
    """Whether a text is an address of a model hub, also after `Path` has taken one of its slashes."""
    return str(text).startswith("hf:/")


def weights_path(text: str) -> str:
    """Checks the name of weights from a flag or a config key: an address, or a path as `jaxvit.files.local_path` does.

    Raises:
      UsageError: it is neither.
    """
    if not is_address(text):
        return local_path(text)
    parse_address(text)
    return text


def parse_address(text: str | Path) -> Address:
    """Parses an address.

    Raises:
      UsageError: the text is not an address, or names a file that cannot hold weights.

    Example:
      >>> parse_address("hf://google/vit-base-patch16-224@main/model.safetensors").file
      'model.safetensors'
    """
    found, shown = _ADDRESS.fullmatch(str(text)), terminal(f"{text!s:.200}")
    if not found:
        raise UsageError(f"{shown} is not an address of weights: write hf://owner/name[@revision][/file]")
    file = found["file"] or ""
    if file and (".." in PurePosixPath(file).parts or file.startswith("/") or not file.isprintable()):
        raise UsageError(f"{shown}: this is not a path of a file in a repository")
    if file and not file.endswith(ENDINGS):
        raise UsageError(f"{shown}: only weights are fetched: {', '.join(f'*{ending}' for ending in ENDINGS)}")
    return Address(found["repo"], found["revision"] or "", file)


def fetch(text: str | Path) -> Path:
    """Fetches weights into the cache of `huggingface_hub`, or finds them there, and returns the file.

    Without a network, a file in the cache is taken; a note on stderr says so.

    Raises:
      UsageError: huggingface_hub is not installed; the repository, revision or file does not exist or is private; the
        repository has several files of weights, or none; or there is no network.
    """
    address = parse_address(text)
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UsageError(f"{text} needs huggingface_hub, which is not installed: pip install 'jaxvit[hub]'")
    import huggingface_hub
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")
    cache = os.environ.get("HF_HUB_CACHE", constants.HF_HUB_CACHE)
    shown = terminal(f"hf://{address.repo}{f'@{address.revision}' * bool(address.revision)}")
    offline = constants.HF_HUB_OFFLINE or not _reachable(endpoint)
    try:
        if offline:
            folder = huggingface_hub.snapshot_download(
                address.repo, revision=address.revision or None, cache_dir=cache, local_files_only=True
            )
            there = sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())
            file = Path(folder) / _choose(there, address, shown, "the cache holds")
            print(f"note: {shown}: no network, so the cached copy is taken", file=sys.stderr, flush=True)
            return file
        api = huggingface_hub.HfApi(endpoint=endpoint)
        info = api.model_info(address.repo, revision=address.revision or None, timeout=2 * _PATIENCE)
        there = sorted(each.rfilename for each in info.siblings or ())
        name = _choose(there, address, shown, "it has")

        def download(wanted: str, revision: str | None) -> Path:
            how = {"cache_dir": cache, "endpoint": endpoint, "etag_timeout": 2 * _PATIENCE}
            return Path(huggingface_hub.hf_hub_download(address.repo, wanted, revision=revision, **how))

        file = download(name, address.revision or None)  # by its name, which the cache then knows
        shards = index_files(file) if name.endswith(INDEX) else []
        for each in (str(PurePosixPath(name).with_name(each)) for each in (*_BESIDE, *shards)):
            if each in there:
                download(each, _commit_of(file, name))
        return file
    except UsageError:
        raise
    except errors.GatedRepoError:
        reason = "its owner grants access on request: ask for it on its page, and log in with `hf auth login`"
    except errors.RevisionNotFoundError:
        reason = f"there is no revision {address.revision!r}"
    except errors.RepositoryNotFoundError:
        reason = "there is no such repository, or it is private: log in with `hf auth login`, or set HF_TOKEN"
    except errors.LocalEntryNotFoundError:
        if offline:
            why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{endpoint} cannot be reached"
            reason = f"{why}, and the cache does not hold it; download it where there is a network, and name the file"
        else:
            reason = f"the download failed; try again, or name another HF_ENDPOINT than {endpoint}"
    except errors.EntryNotFoundError:
        reason = "a file that it lists is missing; try again"
    except Exception as error:  # httpx, the file system and huggingface_hub raise nearly anything
        reason = f"{type(error).__name__}: {first_line(error)[:200]}"
    raise UsageError(terminal(f"{shown}: {reason}"))


def _choose(there: list[str], address: Address, shown: str, has: str) -> str:
    """Chooses the file to read; a note on stderr names the others.

    Raises:
      UsageError: there is none, or none that is preferred among several.
    """
    weights = [name for name in there if name.endswith(ENDINGS) and name.isprintable()]
    few = ", ".join(weights[:5]) + ", …" * (len(weights) > 5)
    if address.file:
        if address.file not in there:
            raise UsageError(terminal(f"{shown} has no file {address.file}; {has} {few or 'no weights'}"))
        return address.file
    whole = [name for name in weights if not re.search(r"-\d{5}-of-\d{5}\.", name)]  # parts are named by their index
    preferred = next((name for name in _PREFERRED if name in whole), whole[0] if len(whole) == 1 else "")
    if not preferred:
        if not weights:
            raise UsageError(f"{shown} has no weights: {', '.join(f'*{ending}' for ending in ENDINGS)}")
        raise UsageError(terminal(f"{shown} has several files of weights ({few}); name one: {shown}/{weights[0]}"))
    if len(whole) > 1:
        others = ", ".join([name for name in whole if name != preferred][:5])
        print(terminal(f"note: {shown}: takes {preferred}, not {others}"), file=sys.stderr, flush=True)
    return preferred


def _commit_of(file: Path, name: str) -> str:
    """The commit in the cache's path of a file, '…/snapshots/COMMIT/NAME': so all files are of one commit."""
    return file.parts[-1 - len(PurePosixPath(name).parts)]


def _reachable(endpoint: str) -> bool:
    """Whether a connection to the hub, or to the proxy on the way, is made in time; names are looked up in time too."""
    url = urllib.parse.urlsplit(endpoint)
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        url = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    host, port = url.hostname or "", url.port or (80 if url.scheme == "http" else 443)
    reached: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_PATIENCE).close()
            reached.append(True)
        except OSError:
            pass

    thread = threading.Thread(target=connect, daemon=True)  # a look-up of names cannot be stopped, only left behind
    thread.start()
    thread.join(_PATIENCE)
    return bool(reached)
