"""Records as one HTML page that needs nothing else: no script, font or picture from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from glassformer_bench import tables
from glassformer_bench.charts import svg
from glassformer_bench.figures import figures

_STYLE = """
:root { color-scheme: light dark;
  --line: #8884; --soft: #8881; --bad: #b3261e; --good: #1b7f4f; --bar: #2a78d6; }
@media (prefers-color-scheme: dark) { :root { --bad: #f2b8b5; --good: #7fd8a8; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: 4px 7px; border-bottom: 1px solid var(--line); white-space: nowrap;
  text-align: right; }
th { font-weight: 600; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
tr.problem td { font-weight: 600; padding-top: 14px; background: var(--soft); }
tr.doubtful td:not(:first-child) { opacity: .75; }
tr.reason td { white-space: normal; padding-left: 2rem; opacity: .85; }
.ok { color: var(--good); }
.wrong, .oom, .timeout, .suspicious { color: var(--bad); font-weight: 600; }
.bar { display: inline-block; height: 9px; background: var(--bar); border-radius: 2px;
  margin-right: 6px; }
.charts { display: flex; flex-wrap: wrap; gap: 20px; }
figure { margin: 0; } figure svg { max-width: 100%; height: auto; color: inherit; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 2px 16px; }
dt { opacity: .75; } dd { margin: 0; overflow-wrap: anywhere; }
pre { font: 12px/1.45 ui-monospace, monospace; overflow-x: auto; white-space: pre-wrap; }
"""
_BAR = 70  # pixels of 100%


def page(records: Sequence[dict[str, Any]]) -> str:
    """Return the page: for each record the machine, the table, the charts, and the commands."""
    body = "\n".join(_section(record) for record in records)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # an icon of nothing, or a browser asks the server for one
        '<link rel="icon" href="data:,">'
        f"<title>attnbench</title><style>{_STYLE}</style></head>\n"
        f"<body>\n<h1>attnbench</h1>\n{body}\n</body></html>\n"
    )


def _section(record: dict[str, Any]) -> str:
    tag = f": {record['tag']}" if record.get("tag") else ""
    charts = "\n".join(f"<figure>{svg(c)}</figure>" for c in figures(record))
    warnings = [tables.doubt(record["rows"])]
    if record.get("interrupted"):
        warnings.append("The run was interrupted: these are the rows that were finished.")
    return "\n".join(
        [
            f"<h2>{escape(_machine(record) + tag)}</h2>",
            *(f"<p class='wrong'>{escape(text)}</p>" for text in warnings if text),
            _facts(record),
            f"<div class='scroll'>{_table(record['rows'])}</div>",
            f"<p>{escape(tables.LEGEND)}. {escape(record['convention'])}</p>",
            f"<h2>Curves</h2><div class='charts'>{charts}</div>" if charts else "",
            "<h2>To reproduce</h2>",
            f"<pre>{escape(record.get('command', ''))}</pre>",
            "<details><summary>each row by itself</summary><pre>"
            + escape("\n".join(row["command"] for row in record["rows"]))
            + "</pre></details>",
        ]
    )


def _machine(record: dict[str, Any]) -> str:
    environment = record["environment"]
    where = environment.get("gpu") if environment["device"] == "cuda" else environment["cpu"]
    return str(where)


def _facts(record: dict[str, Any]) -> str:
    e, ceilings = record["environment"], record["ceilings"]
    facts = {
        "cores, threads": f"{e['cores']}, {e['threads']}",
        "versions": ", ".join(f"{k} {v}" for k, v in e.get("versions", {}).items() if v),
        "BLAS": e.get("blas"),
        "driver, CUDA": f"{e['driver']}, {e['cuda']}" if e.get("driver") else None,
        "variables": " ".join(f"{k}={v}" for k, v in (e.get("variables") or {}).items()),
        "commit": e.get("git_commit"),
        "GPU before": _state(record.get("gpu_before")),
        "GPU after": _state(record.get("gpu_after")),
    }
    if ceilings:
        rates = [f"{dtype} {f / 1e12:.3g} TFLOP/s" for dtype, f in ceilings["flops"].items()]
        rates += [
            f"copy {ceilings['copy'] / 1e9:.3g} GB/s",
            f"read {ceilings['read'] / 1e9:.3g} GB/s",
        ]
        if ceilings.get("is_disturbed"):
            rates.append("too low: other processes had the cores")
        facts["measured ceilings"] = ", ".join(rates)
    if record.get("baseline"):
        facts["speed-up over"] = record["baseline"]
    listed = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
        for name, value in facts.items()
        if value
    )
    return f"<dl>{listed}</dl>"


def _state(state: dict[str, str] | None) -> str | None:
    return ", ".join(f"{k} {v}" for k, v in state.items()) if state else None


def _table(rows: Sequence[dict[str, Any]]) -> str:
    columns = tables.COLUMNS[1:]
    parts = ["<table><thead><tr>", *(f"<th>{escape(c)}</th>" for c in columns), "</tr></thead>"]
    last = None
    for row in rows:
        problem, *cells = tables.cells(row)
        if problem != last:
            last = problem
            parts.append(
                f"<tr class='problem'><td colspan='{len(columns)}'>{escape(problem)}</td></tr>"
            )
        # grey, so that nobody reads a time that others lengthened as a fact
        parts.append("<tr class='doubtful'>" if tables.is_disturbed(row) else "<tr>")
        for name, cell in zip(columns, cells, strict=True):
            if name == "status":
                parts.append(f"<td class='{escape(cell)}'>{escape(cell)}</td>")
            elif name == "peak %" and row["share"] is not None:
                width = min(row["share"], 1.0) * _BAR
                parts.append(
                    f"<td><span class='bar' style='width:{width:.0f}px'></span>{escape(cell)}</td>"
                )
            else:
                parts.append(f"<td>{escape(cell)}</td>")
        parts.append("</tr>")
        parts += [
            f"<tr class='reason'><td colspan='{len(columns)}'>{escape(reason)}</td></tr>"
            for reason in row["reasons"]
        ]
    return "".join([*parts, "</table>"])
