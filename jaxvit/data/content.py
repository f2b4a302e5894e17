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

from jaxvit.data.decoding import Damage, Records, Unreadable, decode
from jaxvit.files import CHECKSUM, checked_json, checksum, replaced

BAD = b""  # content of an image that cannot be decoded
_THREADS = 4  # a photo of 80 million pixels takes 240 MB


def array_content(image_HWC: np.ndarray) -> bytes:
    """16 bytes that identify uint8 pixels and their shape."""
    total = hashlib.blake2b(repr(image_HWC.shape).encode(), digest_size=16)
    total.update(np.ascontiguousarray(image_HWC))
    return total.digest()


def stored_contents(
    records: Records, names: Sequence[str], states: Sequence[list[int]], damage: Damage, memo: Path
) -> list[bytes]:
    """The content of each stored image, decoded in full, upright, in RGB; `BAD` if it cannot be decoded.

    Args:
      records: the encoded images.
      names: their names.
      states: numbers for each image that change when it is replaced; [] = it is gone.
      damage: records images that cannot be decoded, and raises unless they are skipped.
      memo: file in which the hashes are cached, if it can be written.
    """
    known: dict[str, list] = {}
    with contextlib.suppress(OSError, ValueError):
        known = checked_json(memo.read_bytes())
    keys = [os.fsencode(name).hex() for name in names]

    def one(i: int) -> bytes | Exception:
        if states[i] and known.get(keys[i], [])[:-1] == states[i]:
            with contextlib.suppress(ValueError, IndexError, TypeError):
                return bytes.fromhex(known[keys[i]][-1])
        [found] = records.read([i])
        if isinstance(found, Unreadable):
            return found.error
        try:
            return array_content(decode(found.image, 3, None, damage.limits, damage.depth))
        except Exception as error:  # a decoder may raise anything on damaged bytes
            return error

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        results = list(pool.map(one, range(len(names))))
    found = []
    for name, result in zip(names, results, strict=True):
        if isinstance(result, Exception):
            damage.found(name, result)
        found.append(BAD if isinstance(result, Exception) else result)
    fresh = {key: [*state, content.hex()] for key, state, content in zip(keys, states, found, strict=True) if content}
    if fresh != known:
        with contextlib.suppress(OSError):
            memo.parent.mkdir(parents=True, exist_ok=True)
            with replaced(memo, unique=True) as beside:
                beside.write_text(json.dumps({**fresh, CHECKSUM: checksum(fresh)}))
    return found
