"""Content hashes: hashes of decoded pixels, by which copies of an image are found under any file name.

Decoding a folder takes time, so the hashes are cached by file name, size and time of change.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from jaxvit.data.decoding import Damage, decode
from jaxvit.files import CHECKSUM, checked_json, checksum, read_regular, replaced

BAD = b""  # content of an image that cannot be decoded
_THREADS = 4  # a photo of 80 million pixels takes 240 MB


def array_content(image_HWC: np.ndarray) -> bytes:
    """16 bytes that identify uint8 pixels and their shape."""
    total = hashlib.blake2b(repr(image_HWC.shape).encode(), digest_size=16)
    total.update(np.ascontiguousarray(image_HWC))
    return total.digest()


def file_contents(files: Sequence[Path], damage: Damage, memo: Path) -> list[bytes]:
    """The content of each file, decoded in full, upright, in RGB; `BAD` if it cannot be decoded.

    Args:
      files: image files.
      damage: records files that cannot be decoded, and raises unless they are skipped.
      memo: file in which the hashes are cached, if it can be written.
    """
    known: dict[str, list] = {}
    with contextlib.suppress(OSError, ValueError):
        known = checked_json(memo.read_bytes())
    states = [_state(file) for file in files]
    names = [os.fsencode(file).hex() for file in files]

    def one(i: int) -> bytes | Exception:
        if states[i] and known.get(names[i], [])[:2] == states[i]:
            with contextlib.suppress(ValueError, IndexError, TypeError):
                return bytes.fromhex(known[names[i]][2])
        try:
            return array_content(
                decode(read_regular(files[i], damage.limits.bytes), 3, None, damage.limits, damage.depth)
            )
        except Exception as error:  # a decoder may raise anything on damaged bytes
            return error

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        results = list(pool.map(one, range(len(files))))
    found = []
    for file, result in zip(files, results, strict=True):
        if isinstance(result, Exception):
            damage.found(str(file), result)
        found.append(BAD if isinstance(result, Exception) else result)
    fresh = {
        name: [*state, content.hex()] for name, state, content in zip(names, states, found, strict=True) if content
    }
    if fresh != known:
        with contextlib.suppress(OSError):
            memo.parent.mkdir(parents=True, exist_ok=True)
            with replaced(memo, unique=True) as beside:
                beside.write_text(json.dumps({**fresh, CHECKSUM: checksum(fresh)}))
    return found


def _state(file: Path) -> list[int]:
    """[size, time of change in ns]; [] where it is gone."""
    try:
        found = file.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]
