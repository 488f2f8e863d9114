"""The live view: three tables that are looked at anew every interval, and what keys do there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import (
    DataTable,
    Footer,
    Input,
    Sparkline,
    Static,
    TabbedContent,
    TabPane,
)

from remuda.cli.output import Row, cell, style
from remuda.cli.top.screens import Confirm, Log, Words
from remuda.cli.top.tables import TABLES, Table, headline
from remuda.errors import RemudaError

if TYPE_CHECKING:
    from remuda.client import Client
    from remuda.client.overview import Overview


_SLICE_S = 0.1  # of waiting: a change of what is looked at is seen that soon


@dataclass(frozen=True, slots=True)
class Scope:
    """What of the system is shown: all, or one pool, or one VM of it; only names with `part`."""

    pool_id: int | None = None
    pool: str | None = None
    vm_id: int | None = None
    vm: str | None = None
    part: str = ""

    def __str__(self) -> str:
        steps = [("pool", self.pool), ("VM", self.vm), ("name", self.part or None)]
        return " › ".join(["all", *(f"{what} {name}" for what, name in steps if name is not None)])

    def shows(self, table: str, row: Row) -> bool:
        """Return whether the row of that table is of what is looked at."""
        if self.part and self.part.lower() not in str(row["name"]).lower():
            return False
        return not (table == "pools" and self.pool_id not in (None, row["id"]))


class Top(App[None]):
    """`remuda top`."""

    TITLE = "remuda top"
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = "#pools-table"
    CSS = """
    #head { height: 1; background: $panel; }
    #scope { height: 1; color: $text-muted; }
    #rate { height: 2; margin: 0 1; }
    #find { display: none; height: 3; }
    #find.open { display: block; }
    TabbedContent, TabPane { height: 1fr; padding: 0; }
    DataTable { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "tab('pools')", "Pools"),
        Binding("2", "tab('vms')", "VMs"),
        Binding("3", "tab('jobs')", "Jobs"),
        Binding("escape", "back", "Back"),
        Binding("l", "log", "Output"),
        Binding("e", "explain", "Why"),
        Binding("c", "cancel", "Cancel"),
        Binding("d", "drain", "Drain"),
        Binding("slash", "find", "Find"),
        Binding("space", "pause", "Pause"),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(
        self,
        client: Client,
        *,
        interval_s: float = 1.0,
        pool_id: int | None = None,
        pool: str | None = None,
    ) -> None:
        """Watch through `client` every `interval_s` seconds, at first one pool if it is given."""
        super().__init__()
        self._client = client
        self._interval_s = interval_s
        self._scope = Scope(pool_id=pool_id, pool=pool)
        self._seen: Overview | None = None
        self._paused = False
        self._over = threading.Event()

    def compose(self) -> ComposeResult:
        """Lay out the headline, the rate, the tables and the keys."""
        yield Static(id="head")
        yield Static(id="scope")
        yield Sparkline(id="rate", summary_function=max)
        yield Input(id="find", placeholder="a part of the name; Enter keeps it, Esc drops it")
        with TabbedContent(initial="pools"):
            for table in TABLES:
                with TabPane(table.title, id=table.name):
                    yield DataTable(id=f"{table.name}-table", cursor_type="row", zebra_stripes=True)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        for table in TABLES:
            widget = self._widget(table.name)
            for column in table.columns:
                heading = Text(column.heading, justify="right" if column.right else "left")
                widget.add_column(heading, key=column.heading)
        self._focus("pools")
        self.beside(self._watch)

    def on_unmount(self) -> None:
        """Let the watching thread end."""
        self._over.set()

    # ---- looking

    def _watch(self) -> None:
        """Look every interval, in a thread of its own, until the view is over."""
        with self._client.lookout() as lookout:
            while True:
                scope = self._scope
                try:
                    seen = lookout.look(pool_id=scope.pool_id, vm_id=scope.vm_id, part=scope.part)
                except RemudaError as error:
                    self.tell(self._trouble, error)
                else:
                    self.tell(self._show, seen, scope)
                until = time.monotonic() + self._interval_s
                while self._scope == scope and (left := until - time.monotonic()) > 0:
                    if self._over.is_set():
                        return
                    lookout.wait(min(left, _SLICE_S))

    def beside(self, work: Callable[[], None]) -> None:
        """Run it in a thread, which the view does not wait for when it is left."""

        def run() -> None:
            try:
                work()
            except (
                Exception
            ) as error:  # a thread that ends in silence would look like a system at rest
                self.tell(self._complain, f"unexpected {type(error).__name__}: {error}")

        threading.Thread(target=run, daemon=True).start()

    def tell(self, function: Any, *arguments: Any) -> None:
        """Have it called in the thread that draws, unless the view is over."""
        if not self._over.is_set():
            self.call_from_thread(function, *arguments)

    def _complain(self, message: str) -> None:
        self.notify(message, severity="error", markup=False)

    def _trouble(self, error: RemudaError) -> None:
        self.query_one("#head", Static).update(Text(f"{error}; trying again", style="red"))

    def _show(self, seen: Overview, scope: Scope) -> None:
        if self._paused or scope != self._scope:
            return
        self._seen = seen
        self._draw()

    def _draw(self) -> None:
        seen = self._seen
        if seen is None:
            return
        self.query_one("#head", Static).update(Text(headline(seen)))
        paused = "  (paused)" if self._paused else ""
        self.query_one("#scope", Static).update(Text(f"{self._scope}{paused}"))
        self.query_one("#rate", Sparkline).data = list(seen.ends)
        with self.batch_update():
            for table in TABLES:
                self._fill(table, seen)

    def _fill(self, table: Table, seen: Overview) -> None:
        """Write a table anew; the cursor stays on its row, wherever that is now."""
        widget = self._widget(table.name)
        chosen, at, scrolled = self._chosen(table.name), widget.cursor_row, widget.scroll_y
        widget.clear()
        for row in table.rows(seen):
            if self._scope.shows(table.name, row):
                cells = [
                    cell(c.value(row) if callable(c.value) else row[c.value]) for c in table.columns
                ]
                widget.add_row(
                    *(
                        Text(part, style=style(part.partition(" ")[0]), justify="right")
                        if column.right
                        else Text(part, style=style(part.partition(" ")[0]))
                        for column, part in zip(table.columns, cells, strict=True)
                    ),
                    key=str(row["id"]),
                )
        # At the top one watches what comes there; further down, the row one went to.
        if at and chosen is not None and chosen in {key.value for key in widget.rows}:
            at = widget.get_row_index(chosen)
        widget.move_cursor(row=min(at, max(widget.row_count - 1, 0)), scroll=False)
        widget.scroll_to(y=scrolled, animate=False)

    def _widget(self, name: str) -> DataTable[Text]:
        return self.query_one(f"#{name}-table", DataTable)

    def _focus(self, name: str) -> None:
        self.query_one(TabbedContent).active = name
        self._widget(name).focus()

    def _chosen(self, name: str) -> str | None:
        """Return the id of the row under the cursor."""
        widget = self._widget(name)
        if not widget.row_count:
            return None
        return widget.coordinate_to_cell_key(widget.cursor_coordinate).row_key.value

    def _here(self) -> tuple[str, Row | None]:
        """Return the open table's name and the row under its cursor."""
        name = self.query_one(TabbedContent).active
        chosen = self._chosen(name)
        table = next(table for table in TABLES if table.name == name)
        found = table.rows(self._seen) if self._seen is not None else []
        return name, next((row for row in found if str(row["id"]) == chosen), None)

    # ---- keys

    def action_tab(self, name: str) -> None:
        """Open a table."""
        self._focus(name)

    def on_data_table_row_selected(self, _event: DataTable.RowSelected) -> None:
        """Look into the row: a pool's VMs, a VM's jobs, all about a job."""
        name, row = self._here()
        if row is None:
            return
        if name == "pools":
            self._look(replace(self._scope, pool_id=row["id"], pool=row["name"]), "vms")
        elif name == "vms":
            self._look(replace(self._scope, vm_id=row["id"], vm=row["name"]), "jobs")
        else:
            self._explain_job(row["id"])

    def _look(self, scope: Scope, table: str) -> None:
        self._scope = replace(scope, part="")
        self._draw()
        self._focus(table)

    async def action_back(self) -> None:
        """Widen what is looked at by one step."""
        scope = self._scope
        self.query_one("#find").remove_class("open")
        self._focus(self.query_one(TabbedContent).active)
        if scope.part:
            self._scope = replace(scope, part="")
            self._draw()
        elif scope.vm_id is not None:
            self._look(replace(scope, vm_id=None, vm=None), "vms")
        elif scope.pool_id is not None:
            self._look(Scope(), "pools")

    def action_pause(self) -> None:
        """Stop, or go on with, showing what is new."""
        self._paused = not self._paused
        self._draw()

    def action_find(self) -> None:
        """Ask for a part of a name."""
        box = self.query_one("#find", Input)
        box.add_class("open")
        box.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Show what has the part in its name."""
        self._scope = replace(self._scope, part=event.value)
        self._draw()

    def on_input_submitted(self, _event: Input.Submitted) -> None:
        """Keep the part."""
        self.query_one("#find").remove_class("open")
        self._focus(self.query_one(TabbedContent).active)

    def action_log(self) -> None:
        """Follow the job's output."""
        name, row = self._here()
        if name == "jobs" and row is not None:
            self.push_screen(Log(self, self._client, row["id"]))

    def action_explain(self) -> None:
        """Tell why a job is where it is, or why a pool has its size."""
        name, row = self._here()
        if row is None:
            return
        if name == "jobs":
            self._explain_job(row["id"])
        else:
            pool = row["name"] if name == "pools" else row["pool"]
            self._read(f"pool {pool}", lambda: self._client.pool(pool).explain())

    def _explain_job(self, job_id: int) -> None:
        self._read(f"job {job_id}", lambda: self._client.explain(job_id))

    def action_cancel(self) -> None:
        """Cancel the job, once that was confirmed."""
        name, row = self._here()
        if name == "jobs" and row is not None and row["state"] != "TERMINATED":
            job_id = row["id"]
            self._ask(f"Cancel job {job_id}?", lambda: self._client.cancel(job_id))

    def action_drain(self) -> None:
        """Drain the VM, once that was confirmed."""
        name, row = self._here()
        if name == "vms" and row is not None:
            vm_id = row["id"]
            self._ask(f"Drain VM {row['name']}?", lambda: self._client.drain_vm(vm_id))

    # ---- asking the system, never in the thread that draws

    def _read(self, title: str, question: Any) -> None:
        def ask() -> None:
            try:
                said = question()
            except RemudaError as error:
                self.tell(self._complain, str(error))
            else:
                self.tell(self.push_screen, Words(title, said))

        self.beside(ask)

    def _ask(self, question: str, action: Any) -> None:
        def act() -> None:
            try:
                action()
            except RemudaError as error:
                self.tell(self._complain, str(error))

        def answered(yes: bool | None) -> None:
            if yes:
                self.beside(act)

        self.push_screen(Confirm(question), answered)
