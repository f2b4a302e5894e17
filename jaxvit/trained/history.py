"""`jaxvit.History`: the metrics of a run as arrays, for notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvit.errors import UsageError
from jaxvit.training.journal import read_jsonl


class History(Mapping[str, dict[str, np.ndarray]]):
    """The metrics of a run: ``History(workdir)['validation']['loss']`` is an array, in the order of the steps.

    The splits are those in metrics.jsonl: 'steps', 'train', 'validation', 'validation_ema', 'test'. Every split has the
    arrays 'step' and 'epoch'. Values that were not finite are nan. The run may still be training; then this contains
    the metrics written so far.

    Args:
      workdir: a run's folder.

    Raises:
      UsageError: the folder has no metrics, or they cannot be read.
    """

    def __init__(self, workdir: str | Path):
        file = Path(workdir) / "metrics.jsonl"
        records = read_jsonl(file)
        if not records:
            from jaxvit.run.folder import refuse_seeds  # imported here, because reading metrics does not need jax

            refuse_seeds(Path(workdir))
            raise UsageError(f"{file}: there are no metrics here; is this a run's folder, and has it trained yet?")
        # metrics.jsonl has null for numbers that are not finite, which JSON lacks.
        self._records = [{k: np.nan if v is None else v for k, v in record.items()} for record in records]
        splits: dict[str, list[dict[str, Any]]] = {}
        for record in self._records:
            splits.setdefault(record["split"], []).append(record)
        self._splits = {split: _columns(records) for split, records in splits.items()}

    def __getitem__(self, split: str) -> dict[str, np.ndarray]:
        if split not in self._splits:
            raise KeyError(f"there is no '{split}' in this run's metrics; there are {', '.join(self)}")
        return self._splits[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._splits)

    def __len__(self) -> int:
        return len(self._splits)

    def __repr__(self) -> str:
        lengths = [f"{split}: {len(arrays['step'])}" for split, arrays in self.items()]
        return f"History({', '.join(lengths)})"

    def frame(self) -> Any:
        """Returns all metrics as a pandas DataFrame with a row for each line of metrics.jsonl.

        Raises:
          UsageError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UsageError(
                "History.frame() needs pandas: pip install pandas; History(workdir) alone does not"
            ) from None
        return pandas.DataFrame(self._records)


def _columns(records: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for record in records for name in record if name != "split")
    return {name: np.array([record.get(name, np.nan) for record in records]) for name in names}
