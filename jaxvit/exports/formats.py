"""What can be exported: name, file, what writes it, what runs it."""

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
    """A kind of file.

    Attributes:
      name: for --to.
      stem, suffix: of its file, or of its folder, which has no suffix.
      module: in this package, with ``write(model, path)``.
      needs: packages without which it can be neither written nor read.
      remedy: how to get them.
      below_jax: the release of jax that its converter does not know yet, such as '0.12'; '' = it knows all.
      runs_on: what the loader needs.
    """

    name: str
    stem: str
    suffix: str
    module: str
    needs: tuple[str, ...] = ()
    remedy: str = ""
    below_jax: str = ""
    runs_on: str = ""

    @property
    def loader(self) -> Path:
        """A script that runs such a file, and knows nothing of this package."""
        return _LOADERS / f"run_{self.name}.py"

    def file(self, dtype: str) -> str:
        """Its name for weights of this kind."""
        return f"{self.stem}{'' if dtype == 'float32' else f'-{dtype}'}{self.suffix}"

    @staticmethod
    def there(package: str) -> bool:
        """Whether a package is installed."""
        return importlib.util.find_spec(package) is not None

    def check(self) -> None:
        """Raises UsageError where a package is missing."""
        for package in self.needs:
            if not self.there(package):
                raise UsageError(f"--to={self.name} needs {package}, which is not installed: {self.remedy}")

    def check_converter(self) -> None:
        """Raises UsageError where the installed jax is too new for what writes this format."""
        installed = importlib.metadata.version("jax")
        if self.below_jax and _release(installed) >= _release(self.below_jax):
            raise UsageError(
                f"--to={self.name}: its converter does not know jax {installed}; export it with a jax below "
                f"{self.below_jax} (Python 3.11 has one), or take --to=stablehlo"
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
    )
}


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def formats_named(words: str) -> list[Format]:
    """The formats that `--to=a,b` names, each once.

    Raises:
      UsageError: there is no such format, or its packages are not installed.
    """
    kinds = []
    for name in dict.fromkeys(words.split(",")):
        if name not in FORMATS:
            raise UsageError(f"--to={words}: there is no format '{name}'{nearest(name, FORMATS)}; {', '.join(FORMATS)}")
        FORMATS[name].check()
        FORMATS[name].check_converter()
        kinds.append(FORMATS[name])
    return kinds


def format_of(path: Path) -> Format:
    """The format of an exported file, by the end of its name, or of a folder, by what is in it.

    Raises:
      UsageError: it is none, or not there.
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
    raise UsageError(f"--file={path}: not what jaxvit export writes: {known}")
