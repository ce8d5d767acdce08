"""Many images through the service: found, asked a few at a time, written as a table, CSV or JSON.

Each answer is written as it comes and in the order of the images, so neither many images nor long
runs fill the memory.
"""

from __future__ import annotations

import csv
import json
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from handler.contract import CLASSES, MAX_BYTES, SUFFIXES
from serving.client import InferenceClient, NotServed, ServiceError, Unreachable

# For each request at a time, so many images may be ahead of the one that is written next.
AHEAD = 4
# Seconds until the next try, when others have filled the queue: who has many images can wait.
PAUSES = (0.2, 1.0, 3.0)
# More than any line of a table that a program reads.
UNBOUNDED = 10_000
# What begins a formula; the latter four are the former of East Asian keyboards.
FORMULA = frozenset("=+-@\uff1d\uff0b\uff0d\uff20")


@dataclass(frozen=True)
class Result:
    """What one image came to: the service's answer, or an error as `{"type", "message"}`."""

    file: str
    answer: dict[str, Any] | None = None
    error: dict[str, str] | None = None

    def to_document(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        if self.error is None:
            return {"file": self.file, "answer": self.answer}
        return {"file": self.file, "error": self.error}


Ask = Callable[[Path], Result]
Write = Callable[[Iterable[Result], TextIO], None]


def run(
    client: InferenceClient,
    files: Sequence[Path],
    write: Write,
    stream: TextIO,
    *,
    version: str | None = None,
    jobs: int = 8,
    console: Console | None = None,
) -> int:
    """Ask for all images and write what they come to; return how many failed.

    Raises NotServed or Unreachable. On a console, a bar shows how far it is.
    """
    routing = client.routing.read()
    if version and routing and version not in routing.versions:
        raise NotServed(version)
    failed = 0

    def counted() -> Iterator[Result]:
        nonlocal failed
        for result in ask_all(partial(ask, client, version), files, jobs):
            failed += result.error is not None
            yield result

    write(watched(counted(), len(files), console), stream)
    return failed


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Return the files among these paths as they are, and the images in the folders, sorted.

    A folder that can't be looked into is returned itself: to read it will tell why.
    """
    return [found for path in paths for found in (_images_in(path) if path.is_dir() else [path])]


def ask(client: InferenceClient, version: str | None, file: Path) -> Result:
    """Return what an image comes to; raise Unreachable, since then all others are in vain."""
    name = readable(file)
    try:
        image = _read(file)
        return Result(name, answer=_predict(client, image, version))
    except Unreachable:
        raise
    except ServiceError as error:
        return Result(name, error={"type": error.type, "message": error.message})
    except OSError as error:
        why = error.strerror or type(error).__name__
        return Result(name, error={"type": "UnreadableFile", "message": f"{why}."})


def ask_all(ask: Ask, files: Iterable[Path], jobs: int) -> Iterator[Result]:
    """Yield what each image comes to, in order, while `jobs` of them are asked at a time."""
    tasks: queue.SimpleQueue[tuple[Path, Future[Result]] | None] = queue.SimpleQueue()
    ended = threading.Event()
    for _ in range(jobs):
        # Daemons, not a pool of concurrent.futures: Python would wait for that one's requests
        # when someone presses Ctrl-C.
        threading.Thread(target=_work, args=(ask, tasks, ended), daemon=True).start()
    waiting: deque[Future[Result]] = deque()
    try:
        for file in files:
            future: Future[Result] = Future()
            tasks.put((file, future))
            waiting.append(future)
            if len(waiting) >= jobs * AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        ended.set()
        for _ in range(jobs):
            tasks.put(None)


def watched(results: Iterable[Result], total: int, console: Console | None) -> Iterator[Result]:
    """Pass the results on, and show on a console how many there are."""
    if console is None:
        yield from results
        return
    columns = (
        TextColumn("asking"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    # Redirected, what others print to standard output would end up in standard error.
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as bar:
        yield from bar.track(results, total=total)


def write_table(results: Iterable[Result], stream: TextIO) -> None:
    """Write for people: a line for each image, the probabilities in percent."""
    answered = []
    try:
        for result in results:
            answered.append(result)
    finally:
        # Also what was answered before someone pressed Ctrl-C.
        console = Console(file=stream, highlight=False)
        if not stream.isatty():
            console.width = UNBOUNDED
        console.print(_table(answered))


def write_csv(results: Iterable[Result], stream: TextIO) -> None:
    """Write for spreadsheets: text in quotes, a probability as a number."""
    writer = csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(("file", "version", "label", "verdict", *CLASSES, "error", "message"))
    for result in results:
        answer, error = result.answer or {}, result.error or {}
        said = [answer.get(key) for key in ("version", "label", "verdict")]
        shares = [answer.get("probabilities", {}).get(name) for name in CLASSES]
        why = [error.get(key) for key in ("type", "message")]
        writer.writerow([_harmless(cell) for cell in (result.file, *said, *shares, *why)])


def write_json(results: Iterable[Result], stream: TextIO) -> None:
    """Write for programs: a list, with an image's `answer` or its `error` on each line."""
    separator = "[\n"
    try:
        for result in results:
            stream.write(separator + json.dumps(result.to_document()))
            separator = ",\n"
    finally:
        # Broken off, it is a list all the same.
        stream.write("[]\n" if separator == "[\n" else "\n]\n")


FORMATS: dict[str, Write] = {"table": write_table, "csv": write_csv, "json": write_json}


def readable(path: Path) -> str:
    """Return a path as text; bytes that are none (names may hold any) as \\xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _images_in(folder: Path) -> list[Path]:
    unreadable: list[Path] = []

    def note(error: OSError) -> None:
        unreadable.append(Path(error.filename))

    found = []
    for where, folders, files in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(where, name) for name in files if _is_image(Path(where, name))]
    return sorted(found + unreadable)


def _is_image(path: Path) -> bool:
    if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
        return False
    # Not a pipe, say, for which one would wait forever. A dangling link stays, as an error.
    return path.is_file() or not path.exists()


def _read(file: Path) -> bytes:
    with file.open("rb") as opened:
        # Not by its size, which may change, and which a pipe has not.
        image = opened.read(MAX_BYTES + 1)
    if len(image) > MAX_BYTES:
        raise ServiceError(413, "ImageTooLarge", "The image has too many bytes.")
    return image


def _predict(client: InferenceClient, image: bytes, version: str | None) -> dict[str, Any]:
    for pause in PAUSES:
        try:
            return client.predict(image, version)
        except ServiceError as error:
            if error.type != "ServiceBusy":
                raise
        time.sleep(pause)
    return client.predict(image, version)


def _work(
    ask: Ask,
    tasks: queue.SimpleQueue[tuple[Path, Future[Result]] | None],
    ended: threading.Event,
) -> None:
    while (task := tasks.get()) and not ended.is_set():
        file, future = task
        try:
            future.set_result(ask(file))
        except BaseException as error:
            future.set_exception(error)


def _table(results: Sequence[Result]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("file", "version", "label", "verdict"):
        table.add_column(column, overflow="fold")
    for name in CLASSES:
        table.add_column(name[:4].lower(), justify="right", no_wrap=True)
    if any(result.error for result in results):
        table.add_column("error", overflow="fold")
    for result in results:
        # As Text: the name of a file may look like rich's markup.
        table.add_row(*(Text(_visible(cell)) for cell in _cells(result)))
    return table


def _cells(result: Result) -> Sequence[str]:
    if result.error is not None:
        return (result.file, *[""] * (3 + len(CLASSES)), result.error["message"])
    answer = result.answer or {}
    shares = (answer["probabilities"][name] for name in CLASSES)
    return (
        result.file,
        answer["version"],
        answer["label"] or "",
        answer["verdict"],
        *(f"{share:.1%}" for share in shares),
    )


def _visible(text: str) -> str:
    """Return text without what a terminal would obey."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _harmless(cell: Any) -> Any:
    """Return a cell of CSV that no spreadsheet takes for a formula.

    Whoever names a file `=HYPERLINK(...)` could otherwise have it done by who opens the table.
    Spreadsheets take text behind one of FORMULA for that, some past blanks, too; behind an
    apostrophe it stays text. Programs that want names unchanged read the JSON. The quotes around
    all text keep a name with a semicolon in one cell where that is what separates.
    """
    if not isinstance(cell, str):
        return "" if cell is None else cell
    first = next((each for each in cell if each.isprintable() and not each.isspace()), "")
    return f"'{cell}" if first in FORMULA else cell
