"""The output of `jaxvit benchmark`: lines on a terminal, a Markdown page, and CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxvit.files import write_csv, write_text
from jaxvit.pages.terminal import print_lines
from jaxvit.shown import markdown as markdown_text
from jaxvit.speed.steps import Effort


def images_of(facts: dict[str, Any]) -> str:
    """Data set and image shape, from the dict of `jaxvit.speed.steps.facts_of`."""
    return f"{facts['data']}, {'×'.join(map(str, facts['input_shape']))}"


def device_of(facts: dict[str, Any]) -> str:
    """Number and kind of devices, from the same dict."""
    return facts["device"] if facts["devices"] == 1 else f"{facts['devices']} × {facts['device']}"


def in_ms(value: float) -> str:
    """Formats milliseconds, with the unit."""
    return f"{value:,.4g} ms" if value < 1e4 else f"{value:,.0f} ms"


def _share(value: float) -> str:
    return f"{value:.1%}"


def show(found: dict[str, Any]) -> None:
    """Prints the results of one model."""

    def quartiles(name: str) -> str:
        s = found["spread"][name]
        return f"({s['q1']:,.4g} to {s['q3']:,.4g} ms, {s['count']} timed)"

    batch = str(found["batch"])
    memory = {"device": "on the device at most", "program": "for the compiled step"}[found["memory_of"]]
    print_lines(
        {
            "model": f"{found['model']}, {found['params']:,} parameters",
            "images": f"{images_of(found)}, batch {batch}, {found['dtype']}, {found['optimizer']}",
            "device": device_of(found),
            "training step": f"{in_ms(found['train_ms_per_step'])} {quartiles('train')}, "
            f"{found['images_per_s']:,.4g} images/s",
            **{
                f"inference, {size}": f"{in_ms(ms)} {quartiles(f'infer_{size}')}"
                for size, ms in found["infer_ms_per_batch"].items()
            },
            "latency of 1": f"{in_ms(found['infer_latency_ms'])} {quartiles('infer_latency')}",
            "compiling": f"{found['compile_s']:.3g} s, {found['compile_cached_s']:.3g} s from the cache; "
            f"{found['trace_s']:.3g} s of it tracing",
            "arithmetic": f"{found['tflops']:.4g} TFLOP/s in training, {_share(found['peak_share'])} of the "
            f"{found['peak_tflops']:.4g} of large matrix products in {found['dtype']}",
            "memory": f"{found['memory_mb']:,.4g} MB {memory}; {found['process_mb']:,.4g} MB for the process",
            "waiting for input": f"{_share(found['input_share'])}; "
            f"{in_ms(found['input_device_ms'])} per step to gather and augment",
            "training loop": f"{_share(found['loop_overhead'])} of the time, besides the steps",
        }
    )


def show_plan(facts: dict[str, Any], effort: Effort) -> None:
    """Prints what would be measured, from the dict of `jaxvit.speed.steps.facts_of`."""
    sizes = sorted({1, facts["batch"]})
    of = {"document": "as in its document", "defaults": "the defaults", "config": "from the config"}[facts["workload"]]
    print_lines(
        {
            "model": f"{facts['model']}, {facts['params']:,} parameters, {facts['macs']:,} multiply-adds an image",
            "images": f"{images_of(facts)}, {facts['classes']} classes, feed {facts['feed']}",
            "training": f"batch {facts['batch']}, {facts['optimizer']}: {of}",
            "dtype": facts["dtype"],
            "device": device_of(facts),
            "inference": f"batches of {' and '.join(map(str, sizes))}",
            "effort": f"{effort.rounds} rounds, {effort.seconds:g} s for each measurement",
        }
    )


def in_short(found: dict[str, Any]) -> str:
    """The result of one model in one line."""
    return f"{found['model']}: {in_ms(found['train_ms_per_step'])} a step, {found['images_per_s']:,.4g} images/s"


_COLUMNS = (
    "model",
    "batch",
    "dtype",
    "training step, ms",
    "images/s",
    "inference of 1, ms",
    "inference of a batch, ms",
    "compiling, s",
    "from the cache, s",
    "TFLOP/s",
    "share of the peak",
    "memory, MB",
    "waiting for input",
    "training loop",
)


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """A page with a row for each model, and the hardware, versions and date."""

    def cell(one: dict[str, Any], name: str) -> str:
        s = one["spread"][name]
        return f"{s['median']:,.4g} ({s['q1']:,.4g}–{s['q3']:,.4g})"

    def all_of(values: Iterator[str]) -> str:
        return "; ".join(dict.fromkeys(values))

    facts = {
        "device": all_of(device_of(one) for one in found),
        **{key: all_of(one["machine"][key] for one in found) for key in found[0]["machine"]},
        "versions": all_of(", ".join(f"{k} {v}" for k, v in one["versions"].items()) for one in found),
        "date": all_of(one["date"] for one in found),
        "images": all_of(f"{images_of(one)}, feed {one['feed']}" for one in found),
        "rounds": f"{found[0]['rounds']}, {found[0]['seconds']:g} s for each measurement",
    }
    lines = [
        "# Speed",
        "",
        "Medians (quartiles), measured by `jaxvit benchmark`; docs/performance.md explains each figure.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {markdown_text(value)} |" for name, value in facts.items()),
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---|" + "--:|" * (len(_COLUMNS) - 1),
    ]
    for one in found:
        cells = [
            f"`{one['model']}`",
            str(one["batch"]),
            one["dtype"],
            cell(one, "train"),
            f"{one['images_per_s']:,.4g}",
            cell(one, "infer_1"),
            cell(one, f"infer_{one['batch']}"),
            f"{one['compile_s']:.3g}",
            f"{one['compile_cached_s']:.3g}",
            f"{one['tflops']:.4g}",
            _share(one["peak_share"]),
            f"{one['memory_mb']:,.4g} ({one['memory_of']})",
            _share(one["input_share"]),
            _share(one["loop_overhead"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_tables(found: Sequence[dict[str, Any]], folder: Path) -> None:
    """Writes benchmark.md, and benchmark.csv with every number and string of the results."""
    write_text(folder / "benchmark.md", markdown(found))
    rows = []
    for one in found:
        row = {name: value for name, value in one.items() if not isinstance(value, dict | list)}
        row["input_shape"] = "x".join(map(str, one["input_shape"]))
        row |= {"infer_1_ms": one["infer_ms_per_batch"]["1"]}
        row |= {"infer_batch_ms": one["infer_ms_per_batch"][str(one["batch"])]}
        row |= {f"train_{key}_ms": one["spread"]["train"][key] for key in ("q1", "q3")}
        rows.append(row | one["machine"] | one["versions"])
    write_csv(folder / "benchmark.csv", list(rows[0]), rows)
