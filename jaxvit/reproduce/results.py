"""The folder of results as a whole: what a run adds to it, and what is taken in of another such folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxvit.errors import UsageError, nearest
from jaxvit.files import make_writable, packaged, write_text
from jaxvit.reproduce.curves import draw_curves, keep_metrics, validations
from jaxvit.reproduce.effort import efforts_of
from jaxvit.reproduce.page import page
from jaxvit.reproduce.rows import Row, read_rows, rows_file
from jaxvit.reproduce.runs import sort_out
from jaxvit.reproduce.table import keep, known_results, results_of, writing


@dataclass(frozen=True)
class Results:
    """results.csv, its page README.md, metrics/ and curves/.

    Attributes:
      folder: that holds them.
      configs: folder of the rows' config files.
      rows: of the rows.toml in the folder, or where it has none of the one that comes with jaxvit, by name.
    """

    folder: Path
    configs: Path
    rows: Mapping[str, Row]

    @classmethod
    def read(cls, folder: Path, configs: Path | None = None) -> Results:
        """The results in a folder; it need not be there. `configs` = None: those that come with jaxvit.

        Raises:
          UsageError: its rows.toml is not such a file.
        """
        return cls(folder, packaged("configs") if configs is None else configs, read_rows(rows_file(folder)))

    @property
    def table(self) -> Path:
        return self.folder / "results.csv"

    @property
    def page(self) -> Path:
        return self.folder / "README.md"

    def lines(self) -> list[dict[str, str]]:
        """The lines of recipes and seeds that the rows have today: of results.csv, and of what comes with jaxvit where
        the rows do.

        Raises:
          UsageError: it is damaged, or a config cannot be read.
        """
        return sort_out(known_results(self.folder), self.rows, self.configs)[0]

    def begin(self) -> None:
        """Makes the folder where it is missing.

        Raises:
          UsageError: it cannot be written, or has a README.md of somebody else's, which the page would replace.
        """
        ours = (self.table, self.folder / "rows.toml")
        if self.page.exists() and not any(file.exists() for file in ours):
            raise UsageError(
                f"{self.folder} has a README.md that is no page of results; name another folder with --results"
            )
        make_writable(self.folder, "name another folder with --results")

    def add(self, line: Mapping[str, Any], run: Path | None, row: Row) -> None:
        """Adds a run's line and metrics; the curves and the page are made anew.

        Args:
          line: as `jaxvit.reproduce.runs.run_row` gives it.
          run: the run's folder; None = there is none, of a row of steps.
          row: that was run.
        """
        with writing(self.folder):
            if run:
                keep_metrics(run, row, line, self.folder)
            keep(line, self.table)
            self._write_page()

    def take(self, other: Path) -> int:
        """Adds another folder's lines, with their metrics; nothing is written unless all of it can be used.

        Returns:
          How many lines.

        Raises:
          UsageError: there are none, it is this folder, it has rows that this one has not, or lacks metrics of its
            lines.
        """
        if other.resolve() == self.folder.resolve():
            raise UsageError(f"--take={other}: this is the table itself; name the folder of another")
        lines = results_of(other / "results.csv")
        if not lines:
            raise UsageError(f"--take={other}: there is no results.csv with lines in it")
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
        sort_out(lines, self.rows, self.configs)  # a config that cannot be read is told before anything is written
        with writing(self.folder):
            (self.folder / "metrics").mkdir(exist_ok=True)
            for name, text in metrics.items():
                write_text(self.folder / "metrics" / name, text)
            for line in lines:
                keep(line, self.table)
            self._write_page()
        return len(lines)

    def _write_page(self) -> None:
        lines, outdated = sort_out(results_of(self.table), self.rows, self.configs)
        curves, efforts = draw_curves(self.rows, lines, self.folder), efforts_of(lines, self.folder)
        write_text(self.page, page(self.rows, lines, curves, outdated, efforts))
