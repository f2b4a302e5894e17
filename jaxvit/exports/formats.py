"""The export formats: name, file name, module that writes it, script that runs it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from jaxvit.errors import UsageError, nearest
from jaxvit.exports.model import ExportModel

_LOADERS = Path(__file__).parent / "loaders"


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
      name: value of `--to`.
      stem, suffix: parts of the file name; a format without suffix is a folder.
      module: module in this package with ``write(model, path)``.
      needs: packages required to write the format and to check it.
      remedy: command that installs them.
      below_jax: first release of jax that the converter does not support, such as '0.12'; '' = all are supported.
      runs_on: packages that the loader script needs.
      alone: the file needs no script beside it.
    """

    name: str
    stem: str
    suffix: str
    module: str
    needs: tuple[str, ...] = ()
    remedy: str = ""
    below_jax: str = ""
    runs_on: str = ""
    alone: bool = False

    @property
    def loader(self) -> Path:
        """Path of the standalone script that runs such a file."""
        if self.alone:
            return Path(__file__).parent / f"{self.name}_in_browser.py"
        return _LOADERS / f"run_{self.name}.py"

    def file(self, dtype: str) -> str:
        """File name for weights of this dtype, such as 'model-int8.onnx'."""
        return f"{self.stem}{'' if dtype == 'float32' else f'-{dtype}'}{self.suffix}"

    @staticmethod
    def there(package: str) -> bool:
        """True if a package is installed."""
        return importlib.util.find_spec(package) is not None

    def check(self) -> None:
        """Raises UsageError if a required package is not installed."""
        for package in self.needs:
            if not self.there(package):
                raise UsageError(f"--to={self.name} needs {package}, which is not installed: {self.remedy}")

    def check_converter(self) -> None:
        """Raises UsageError if the converter does not support the installed version of jax."""
        installed = importlib.metadata.version("jax")
        if self.below_jax and _release(installed) >= _release(self.below_jax):
            raise UsageError(
                f"--to={self.name}: its converter does not support jax {installed}; use a jax below "
                f"{self.below_jax} (Python 3.11 has one), or --to=stablehlo"
            )

    def write(self, model: ExportModel, path: Path) -> None:
        importlib.import_module(f"jaxvit.exports.{self.module}").write(model, path)


FORMATS = {
    each.name: each
    for each in (
        Format("stablehlo", "model", ".stablehlo", "stablehlo", runs_on="jax and flatbuffers"),
        Format(
            *("onnx", "model", ".onnx", "onnx_file", ("jax2onnx", "onnx", "onnxruntime")),
            remedy="pip install 'jaxvit[onnx]'",
            below_jax="0.12",
            runs_on="onnxruntime",
        ),
        Format(
            *("savedmodel", "savedmodel", "", "savedmodel", ("tensorflow",)),
            remedy="pip install 'jaxvit[savedmodel]'",
            runs_on="tensorflow",
        ),
        Format("hub", "hub", "", "hub", runs_on="jaxvit"),
        Format(
            *("page", "page", ".html", "page", ("jax2onnx", "onnx", "onnxruntime", "jinja2")),
            remedy="pip install 'jaxvit[onnx,page]'",
            below_jax="0.12",
            runs_on="a browser",
            alone=True,
        ),
    )
}


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def formats_named(words: str) -> list[Format]:
    """Parses the value of `--to`, such as 'onnx,hub'; duplicates are dropped.

    Raises:
      UsageError: unknown format, or a required package is not installed.
    """
    kinds = []
    for name in dict.fromkeys(words.split(",")):
        if name not in FORMATS:
            raise UsageError(
                f"--to={words}: there is no format '{name}'{nearest(name, FORMATS)}; formats: {', '.join(FORMATS)}"
            )
        FORMATS[name].check()
        FORMATS[name].check_converter()
        kinds.append(FORMATS[name])
    return kinds


def format_of(path: Path) -> Format:
    """Detects the format of an exported file by its suffix, or of a folder by its contents.

    Raises:
      UsageError: the path does not exist, or has no known format.
    """
    if not path.exists():
        raise UsageError(f"--file={path}: there is no such file")
    for each in FORMATS.values():
        if path.is_file() and each.suffix and path.suffix == each.suffix:
            return each
    if (path / "model.safetensors").exists():
        return FORMATS["hub"]
    if (path / "saved_model.pb").exists():
        return FORMATS["savedmodel"]
    known = ", ".join(f"*{each.suffix}" if each.suffix else f"{each.stem}/" for each in FORMATS.values())
    raise UsageError(f"--file={path}: not a file that jaxvit export writes: {known}")
