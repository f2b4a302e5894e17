"""Prints the description of a compiled step: on a terminal, and as a row of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jaxvit.shown import terminal

_KINDS = ("all_gather", "all_reduce", "reduce_scatter", "all_to_all", "collective_permute")


def amount(number: float | None, unit: str = "B") -> str:
    """A number with a prefix of 1,000: '1.24 GB'; '-' for none."""
    if number is None:
        return "-"
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < 1000 or prefix == "T":
            return f"{number:.0f} {unit}" if not prefix else f"{number:.3g} {prefix}{unit}"
        number /= 1000
    return ""


def show(found: Mapping[str, Any]) -> None:
    """Prints the result of `jaxvit.ahead.compiling.compile_ahead`."""
    memory, chips = found["memory"], found["chips"]
    each = f"{found['batch'] // chips} on each of {chips} chips" if chips > 1 else "on one chip"
    print(
        terminal(
            f"{found['model']} for {found['topology']}: {found['params']:,} parameters, {found['dtype']}, "
            f"batch {found['batch']}, {each}" + (f", fsdp {found['fsdp']}" if found["fsdp"] > 1 else "")
        )
    )
    print("compiled, not run; all numbers are for one chip and one step")
    limit = memory["limit"]
    if not found["fits"]:
        over = f" by {amount(memory['peak'] - limit)}" if memory["peak"] else ""
        print(f"memory        does not fit into {amount(limit)}{over}")
        if found.get("refusal"):
            print(terminal(f"              {found['refusal']}"))
            return
    else:
        print(f"memory        fits: {amount(limit - memory['peak'])} of {amount(limit)} are left")
    print(
        f"              arguments {amount(memory['arguments'])}, temporaries {amount(memory['temporaries'])}, "
        f"peak {amount(memory['peak'])}"
    )
    share = f" ({found['flops'] / found['flops_counted']:.2f} of the model's count)" if found["flops_counted"] else ""
    print(f"products      {amount(found['flops'], 'FLOP')}{share}")
    print(f"memory access {amount(found['bytes'])}")
    print(f"kernels       {found['kernels']:,}, of which {found['copies']:,} only copy")
    for origin, part in sorted(found["parts"].items(), key=lambda item: -item[1]["bytes"]):
        print(
            f"  {origin:<12}{part['kernels']:>6,} kernels {part['copies']:>5,} copies "
            f"{amount(part['bytes']):>9} {amount(part['flops'], 'FLOP'):>12}"
        )
    for kind in _KINDS:
        if found["collectives"][kind]["count"]:
            one = found["collectives"][kind]
            print(f"{kind.replace('_', '-'):<19} {one['count']:>4} of {amount(one['bytes'])} in all")
    for line in found["collectives_of"][:12]:
        print(terminal(f"  {line['count']:>4} {line['kind']:<15} {amount(line['bytes']):>9}  {line['scope']}"))
    e = found["estimate"]
    print(
        f"estimate      at least {found['estimate_ms']:.3g} ms a step, by published rates: arithmetic "
        f"{e['compute_ms']:.3g}, memory {e['memory_ms']:.3g}, interconnect {e['interconnect_ms']:.3g}"
    )
    print(f"compiling     {found['compile_s']:.1f} s here, {found['trace_s']:.1f} of them tracing")


COLUMNS = (
    "model", "chips", "batch", "fsdp", "arguments", "temporaries", "limit", "FLOP counted", "FLOP compiled", "bytes",
    "kernels", "copies", "all-gather", "all-reduce", "reduce-scatter", "other", "compile s", "estimate ms",
)  # fmt: skip


def markdown(lines: Iterable[Mapping[str, Any]]) -> str:
    """The table of a page, a row for each line."""
    rows = [COLUMNS, tuple("---" for _ in COLUMNS), *(_row(line) for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(f: Mapping[str, Any]) -> tuple[str, ...]:
    memory = f["memory"]
    options = "".join(f" {name}" for name in ("scan",) if f.get("attributes", {}).get(name))

    def moved(*kinds: str) -> str:
        if f["collectives"] is None:
            return "-"
        times = sum(f["collectives"][kind]["count"] for kind in kinds)
        return f"{times}: {amount(sum(f['collectives'][kind]['bytes'] for kind in kinds))}" if times else "0"

    return (
        f"`{f['model']}`{options}",
        f["topology"],
        str(f["batch"]),
        str(f["fsdp"]),
        amount(memory["arguments"]),
        amount(memory["temporaries"]) + ("" if f["fits"] else ", does not fit"),
        amount(memory["limit"]),
        amount(f["flops_counted"], ""),
        amount(f["flops"], ""),
        amount(f["bytes"]),
        "-" if f["kernels"] is None else f"{f['kernels']:,}",
        "-" if f["copies"] is None else f"{f['copies']:,}",
        moved("all_gather"),
        moved("all_reduce"),
        moved("reduce_scatter"),
        moved("all_to_all", "collective_permute"),
        f"{f['compile_s']:.0f}",
        "-" if f["estimate_ms"] is None else f"{f['estimate_ms']:.3g}",
    )
