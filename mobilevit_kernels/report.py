"""What runs where: the Report of an optimized model or of replaced blocks."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilevit_kernels.accuracy import Accuracy

__all__ = ["Report", "Row"]


@dataclass(frozen=True)
class Row:
    """One stage.

    Attributes:
        name: dotted path of the stage in its model.
        shape: its sizes in a few words.
        backend: the backend that serves it; "stock" for a module that was left as it is.
        variant: the kernel variants it chooses among, with the boundaries between them; "" for a stock module.
        reason: why this backend, or why the module was left as it is.
    """

    name: str
    shape: str
    backend: str
    variant: str
    reason: str


@dataclass
class Report:
    """Rows, one a stage; ``str(report)`` is a table.

    Attributes:
        rows: in the order the stages run.
        notes: sentences on the whole, such as the compute dtype.
        accuracy: what ``optimize(…, accuracy_check=…)`` measured on the user's images; None where it was not asked for.
    """

    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    accuracy: Accuracy | None = None

    @property
    def replaced(self) -> list[Row]:
        """The rows of stages that this library serves."""
        return [row for row in self.rows if row.backend != "stock"]

    @property
    def not_replaced(self) -> list[Row]:
        """The rows of modules that were left as they are, each with its reason."""
        return [row for row in self.rows if row.backend == "stock"]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, ready for JSON."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "notes": list(self.notes),
            "accuracy": None if self.accuracy is None else self.accuracy.to_dict(),
        }

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for column in ("stage", "shape", "backend", "variant", "reason"):
            table.add_column(column, overflow="fold")
        for row in self.rows:
            table.add_row(row.name, row.shape, row.backend, row.variant, row.reason)
        text = io.StringIO()
        console = Console(file=text, width=160, color_system=None)
        console.print(table, markup=False, highlight=False)
        for note in (*self.notes, *([] if self.accuracy is None else [f"accuracy: {self.accuracy}"])):
            console.print(note, markup=False, highlight=False, soft_wrap=True)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
