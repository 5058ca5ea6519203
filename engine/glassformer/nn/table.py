"""The table that `repr(module)` prints: one line a module, its tensors' shapes and their sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from glassformer.tensor import Parameter

if TYPE_CHECKING:
    from glassformer.nn.module import Module


class _Row(NamedTuple):
    indent: int
    name: str
    layer: str
    tensors: str
    parameters: int
    copies: int = 1


def module_table(module: Module) -> str:
    """Return the tree below `module`, like neighbours in a list folded into one line.

    The last column counts parameters, those of everything below a line included. A tied parameter
    counts where it first stands; after that it is shown as `weight = name`.
    """
    rows = _rows(module, "", "", 0, {})
    columns = [(_label(row), row.tensors, _count(row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*columns, strict=True)]
    lines = [
        f"{label:<{widths[0]}}  {tensors:<{widths[1]}}  {count:>{widths[2]}}".rstrip()
        for label, tensors, count in columns
    ]
    frozen = rows[0].parameters - module.num_parameters(only_trainable=True)
    note = f" ({frozen:,} frozen)" if frozen else ""
    return "\n".join([*lines, f"{rows[0].parameters:,} parameters{note}"])


def _label(row: _Row) -> str:
    name = f"{row.name}: " if row.name else ""
    copies = f"{row.copies} x " if row.copies > 1 else ""
    return f"{'  ' * row.indent}{name}{copies}{row.layer}"


def _count(row: _Row) -> str:
    if not row.parameters or not row.indent:  # the sum of all stands below the table
        return ""
    return f"{f'{row.copies} x ' if row.copies > 1 else ''}{row.parameters:,}"


def _rows(module: Module, path: str, name: str, indent: int, seen: dict[int, str]) -> list[_Row]:
    """Return the lines of `module`, its own first; `seen` names the tensors met so far."""
    tensors: list[str] = []
    count = 0
    for own_name, tensor in module.own_tensors():
        if own_name.startswith("_"):  # scratch of the layer's own, which is not saved either
            continue
        full_name = path + own_name
        first_name = seen.setdefault(id(tensor), full_name)
        if first_name == full_name:
            tensors.append(f"{own_name} {tensor.shape}")
            count += tensor.numel() if isinstance(tensor, Parameter) else 0
        else:
            tensors.append(f"{own_name} = {first_name}")
    below: list[list[_Row]] = []
    for child_name, child in module.named_children():
        rows = _rows(child, f"{path}{child_name}.", child_name, indent + 1, seen)
        count += rows[0].parameters
        if below and _alike(below[-1], rows):
            head = below[-1][0]
            first_item = head.name.split(" to ")[0]
            last_item = child_name.rpartition(".")[2]
            below[-1][0] = head._replace(
                name=f"{first_item} to {last_item}", copies=head.copies + 1
            )
        else:
            below.append(rows)
    layer = f"{type(module).__name__}({module.extra_repr()})"
    own = _Row(indent, name, layer, ", ".join(tensors), count)
    return [own, *(row for rows in below for row in rows)]


def _alike(before: list[_Row], rows: list[_Row]) -> bool:
    """Whether two neighbours are items of one list that differ in nothing but their number."""
    names = before[0].name, rows[0].name
    same_list = "." in names[1] and names[0].partition(".")[0] == names[1].partition(".")[0]
    first, second = before[0]._replace(name="", copies=1), rows[0]._replace(name="")
    return same_list and first == second and before[1:] == rows[1:]
