"""The scripts of onnxruntime-web, which run an ONNX graph in a browser: found or fetched with npm, checked by hash.

They are kept in the user's cache folder, `jaxvit/onnxruntime-web-VERSION` in XDG_CACHE_HOME or ~/.cache. Licence: MIT.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from jaxvit.errors import UsageError, first_line
from jaxvit.files import make_folder, replaced, user_cache

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
FOLDER = "JAXVIT_ORT_WEB"  # environment variable: a folder with the two files
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
SHA256 = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
# The package, as npm fetches it: the SHA-512 that its registry publishes, in base64.
_TARBALL = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
_LARGEST = 1 << 29  # bytes of the package; it has 27 MB
_PATIENCE = 600  # seconds for npm


@dataclass(frozen=True)
class BrowserRuntime:
    """The files of onnxruntime-web, each compressed with gzip.

    Attributes:
      script: the module.
      wasm: the program in WebAssembly.
    """

    script: bytes
    wasm: bytes


def browser_runtime() -> BrowserRuntime:
    """Returns the scripts: from the folder that `JAXVIT_ORT_WEB` names, else from the cache, else fetched with npm.

    npm reads its own settings, such as the registry.

    Raises:
      UsageError: a file of the folder is missing or is not the expected one, or there is neither folder nor npm, or npm
        fails.
    """
    if named := os.environ.get(FOLDER, ""):
        return BrowserRuntime(*(_compressed(_from_folder(Path(named), name)) for name in (SCRIPT, WASM)))
    kept = user_cache() / "jaxvit" / f"{PACKAGE}-{VERSION}"
    found = [_from_cache(kept / f"{name}.gz", SHA256[name]) for name in (SCRIPT, WASM)]
    if all(found):
        return BrowserRuntime(*found)
    files = _fetched()
    found = [_compressed(files[name]) for name in (SCRIPT, WASM)]
    make_folder(kept)
    for name, data in zip((SCRIPT, WASM), found, strict=True):
        with replaced(kept / f"{name}.gz", unique=True) as beside:
            beside.write_bytes(data)
    return BrowserRuntime(*found)


def _compressed(data: bytes) -> bytes:
    return gzip.compress(data, 9, mtime=0)


def _from_folder(folder: Path, name: str) -> bytes:
    path = next((place for place in (folder / name, folder / "dist" / name) if place.is_file()), None)
    if path is None:
        raise UsageError(f"{FOLDER}={folder}: there is no {name}; name the folder dist of {PACKAGE} {VERSION}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256[name]:
        raise UsageError(f"{path}: this is not the file of {PACKAGE} {VERSION} (its SHA-256 differs)")
    return data


def _from_cache(path: Path, wanted: str) -> bytes:
    """A compressed file of the cache; b'' if it is missing or damaged."""
    try:
        data = path.read_bytes()
        return data if hashlib.sha256(gzip.decompress(data)).hexdigest() == wanted else b""
    except (OSError, EOFError, ValueError, zlib.error):
        return b""


def _fetched() -> dict[str, bytes]:
    """Fetches the package with npm, and checks it before anything of it is read."""
    npm = shutil.which("npm")
    without = f"--to=page needs {PACKAGE} {VERSION}"
    remedy = f"install npm, or set {FOLDER} to a folder with {SCRIPT} and {WASM}"
    if npm is None:
        raise UsageError(f"{without}, which npm fetches, and npm is not installed: {remedy}")
    with tempfile.TemporaryDirectory(prefix="jaxvit-npm-") as name:
        words = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--silent", f"--pack-destination={name}"]
        try:
            done = subprocess.run(words, cwd=name, capture_output=True, text=True, timeout=_PATIENCE)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UsageError(f"{without}, and npm cannot fetch it ({first_line(error)[:200]}): {remedy}") from None
        tarballs = list(Path(name).glob("*.tgz"))
        if done.returncode or len(tarballs) != 1:
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            reason = said[0][:200] if said else f"npm pack ended with code {done.returncode}"
            raise UsageError(f"{without}, and npm cannot fetch it ({reason}): {remedy}")
        if tarballs[0].stat().st_size > _LARGEST:
            raise UsageError(f"{without}, and npm fetched something larger: {remedy}")
        data = tarballs[0].read_bytes()
        if base64.b64encode(hashlib.sha512(data).digest()).decode() != _TARBALL:
            raise UsageError(f"{without}, and npm fetched another package (its SHA-512 differs): {remedy}")
        files = {}
        with tarfile.open(tarballs[0]) as archive:
            for wanted, digest in SHA256.items():
                member = archive.extractfile(f"package/dist/{wanted}")
                files[wanted] = member.read() if member else b""
                if hashlib.sha256(files[wanted]).hexdigest() != digest:
                    raise UsageError(f"{without}, and {wanted} in it has another SHA-256: {remedy}")
        return files
