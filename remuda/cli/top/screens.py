"""What opens above the tables: a question, some sentences, a job's output as it comes."""

from __future__ import annotations

import codecs
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen, Screen
from textual.widgets import Footer, RichLog, Static

from remuda.cli.output import printable
from remuda.errors import RemudaError

if TYPE_CHECKING:
    from remuda.cli.top.app import Top
    from remuda.client import Client

MAX_LINES = 10_000  # of a job's output that can be scrolled back to


class Confirm(ModalScreen[bool]):
    """A question that is answered with y or n."""

    CSS = """
    Confirm { align: center middle; }
    Confirm > Vertical { width: auto; height: auto; padding: 1 2; border: round $warning;
                         background: $surface; }
    Confirm Static { width: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape,q", "answer(False)", "No"),
    ]

    def __init__(self, question: str) -> None:
        """Ask this."""
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """Show the question."""
        with Vertical():
            yield Static(Text(f"{self._question}  y / n"))

    def action_answer(self, yes: bool) -> None:
        """Give the answer back."""
        self.dismiss(yes)


class Words(ModalScreen[None]):
    """A few sentences."""

    CSS = """
    Words { align: center middle; }
    Words > Vertical { width: 80%; height: auto; max-height: 80%; padding: 1 2;
                       border: round $primary; background: $surface; overflow-y: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,q", "dismiss", "Close")]

    def __init__(self, title: str, sentences: Sequence[str]) -> None:
        """Show these below a title."""
        super().__init__()
        self._heading, self._sentences = title, sentences

    def compose(self) -> ComposeResult:
        """Show them, one a line."""
        with Vertical() as box:
            box.border_title = printable(self._heading)
            yield Static(Text("\n".join(printable(line) for line in self._sentences)))


class Log(Screen[None]):
    """A job's stdout and stderr, as they come."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "dismiss", "Close")]

    def __init__(self, top: Top, client: Client, job_id: int) -> None:
        """Follow this job."""
        super().__init__()
        self._top, self._client, self._job_id = top, client, job_id
        self._over = threading.Event()

    def compose(self) -> ComposeResult:
        """Show the lines."""
        yield Static(Text(f"output of job {self._job_id} (stderr in yellow)"))
        yield RichLog(max_lines=MAX_LINES, wrap=True)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to follow."""
        self.query_one(RichLog).focus()
        self._top.beside(self._follow)

    def on_unmount(self) -> None:
        """Stop following."""
        self._over.set()

    def _follow(self) -> None:
        """Read what comes, a whole line at a time; what is no UTF-8 is shown as such."""
        streams = {"stdout": _Lines(), "stderr": _Lines()}
        try:
            for name, data in self._client.follow(self._job_id, over=self._over):
                self._write(name, streams[name].more(data))
        except RemudaError as error:
            self._write("stderr", [str(error)])
        for name, lines in streams.items():
            self._write(name, lines.rest())
        self._write("", ["— the job has ended —"])

    def _write(self, stream: str, lines: Sequence[str]) -> None:
        if lines and not self._over.is_set():
            colour = {"stderr": "yellow", "": "dim"}.get(stream, "")
            self._top.tell(self._show, [Text(line, style=colour) for line in lines])

    def _show(self, lines: Sequence[Text]) -> None:
        if self._over.is_set():
            return
        log = self.query_one(RichLog)
        for line in lines:
            log.write(line)


class _Lines:
    """Bytes that come in pieces, as whole printable lines."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def more(self, data: bytes) -> list[str]:
        *lines, self._rest = (self._rest + self._decoder.decode(data)).split("\n")
        return [_shown(line) for line in lines]

    def rest(self) -> list[str]:
        last = self._rest + self._decoder.decode(b"", final=True)
        self._rest = ""
        return [_shown(last)] if last else []


def _shown(line: str) -> str:
    return printable(line.removesuffix("\r").expandtabs())
