"""The folder of results: adds a run to it, or merges another such folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxvit.errors import UsageError, nearest
from jaxvit.files import make_folder, make_writable, packaged, write_text
from jaxvit.reproduce.cost import costs_of
from jaxvit.reproduce.curves import draw_curves, keep_metrics, validations
from jaxvit.reproduce.headline import read_headlines
from jaxvit.reproduce.page import page
from jaxvit.reproduce.rows import TableRow, read_rows, rows_file
from jaxvit.reproduce.runs import sort_out
from jaxvit.reproduce.table import keep, known_results, results_of, writing


@dataclass(frozen=True)
class Results:
    """A folder with results.csv, its page README.md, metrics/ and curves/.

    Attributes:
      folder: path of the folder.
      configs: folder of the rows' config files.
      rows: rows by name, from rows.toml in the folder or else from the one that comes with jaxvit.
    """

    folder: Path
    configs: Path
    rows: Mapping[str, TableRow]

    @classmethod
    def read(cls, folder: Path, configs: Path | None = None) -> Results:
        """Reads the rows of a folder, which need not exist. `configs` = None: the configs that come with jaxvit.

        Raises:
          UsageError: its rows.toml is not valid.
        """
        return cls(folder, packaged("configs") if configs is None else configs, read_rows(rows_file(folder)))

    @property
    def table(self) -> Path:
        return self.folder / "results.csv"

    @property
    def page(self) -> Path:
        return self.folder / "README.md"

    def lines(self) -> list[dict[str, str]]:
        """The lines of results.csv with the current recipes and seeds of the rows. If the rows come with jaxvit, the
        results that come with it are included.

        Raises:
          UsageError: results.csv is damaged, or a config cannot be read.
        """
        return sort_out(known_results(self.folder), self.rows, self.configs)[0]

    def begin(self) -> None:
        """Creates the folder if it is missing.

        Raises:
          UsageError: the folder cannot be written, or has a README.md that is not our page.
        """
        ours = (self.table, self.folder / "rows.toml")
        if self.page.exists() and not any(file.exists() for file in ours):
            raise UsageError(
                f"{self.folder} has a README.md that is not a page of results; name another folder with --results"
            )
        make_writable(self.folder, "name another folder with --results")

    def add(self, line: Mapping[str, Any], run: Path | None, row: TableRow) -> None:
        """Adds the line and metrics of a run, and updates the curves and the page.

        Args:
          line: from `jaxvit.reproduce.runs.run_row`.
          run: folder of the run; None for a row of steps.
          row: the row that was run.
        """
        with writing(self.folder):
            if run:
                keep_metrics(run, row, line, self.folder)
            keep(line, self.table)
            self._write_page()

    def take(self, other: Path) -> int:
        """Merges the lines and metrics of another folder, either all or none.

        Returns:
          Number of lines.

        Raises:
          UsageError: the other folder is this one, has no lines, has unknown rows, or lacks metrics of its lines.
        """
        if other.resolve() == self.folder.resolve():
            raise UsageError(f"--take={other}: this is the same folder; name another one")
        lines = results_of(other / "results.csv")
        if not lines:
            raise UsageError(f"--take={other}: it has no results.csv, or an empty one")
        metrics: dict[str, str] = {}
        for line in lines:
            if line["row"] not in self.rows:
                raise UsageError(
                    f"--take={other}: there is no row '{line['row']}' here{nearest(line['row'], self.rows)}"
                )
            if line["metrics"]:
                file = other.resolve() / "metrics" / line["metrics"]
                if not file.is_file() or file.resolve() != file:
                    raise UsageError(f"--take={other}: metrics/{line['metrics']} is missing; copy the whole folder")
                validations(file)
                metrics[line["metrics"]] = file.read_text(encoding="utf-8", errors="replace")
        self.begin()
        sort_out(lines, self.rows, self.configs)  # report an unreadable config before writing anything
        with writing(self.folder):
            make_folder(self.folder / "metrics")
            for name, text in metrics.items():
                write_text(self.folder / "metrics" / name, text)
            for line in lines:
                keep(line, self.table)
            self._write_page()
        return len(lines)

    def _write_page(self) -> None:
        lines, outdated = sort_out(results_of(self.table), self.rows, self.configs)
        curves, costs = draw_curves(self.rows, lines, self.folder), costs_of(lines, self.folder)
        headlines = read_headlines(self.folder, self.rows)
        write_text(self.page, page(self.rows, lines, curves, outdated, costs, headlines))
