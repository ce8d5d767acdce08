"""Classify many images: find them, send a few at a time, write a table, CSV or JSON.

Answers are written as they arrive, in the order of the images, so memory stays bounded.
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
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from handler.contract import MAX_BYTES, SUFFIXES
from serving.client import InferenceClient, NotServed, ServiceError, Unreachable

# Images per job that may be sent before the next answer is written.
AHEAD = 4
# Seconds between retries while the queue is full.
RETRY_DELAYS = (0.2, 1.0, 3.0)
# Wider than any table.
UNLIMITED_WIDTH = 10_000
# The first characters of a formula, also in their full-width forms.
FORMULA = frozenset("=+-@\uff1d\uff0b\uff0d\uff20")


@dataclass(frozen=True)
class Result:
    """The answer to one image, or an error as `{"type", "message"}`."""

    file: str
    answer: dict[str, Any] | None = None
    error: dict[str, str] | None = None

    def to_document(self) -> dict[str, Any]:
        """Return the result as a JSON document."""
        if self.error is None:
            return {"file": self.file, "answer": self.answer}
        return {"file": self.file, "error": self.error}


Ask = Callable[[Path], Result]
# Images and where their results go; None ends a thread.
Tasks = queue.SimpleQueue[tuple[Path, Future[Result]] | None]
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
    """Classify all images and write the results; return how many failed.

    Raises NotServed or Unreachable. A console shows a progress bar.
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

    write(with_progress(counted(), len(files), console), stream)
    return failed


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Return the files as given, and the images in folders, sorted.

    A folder that can't be listed is returned itself, so that reading it gives the error.
    """
    return [found for path in paths for found in (_images_in(path) if path.is_dir() else [path])]


def ask(client: InferenceClient, version: str | None, file: Path) -> Result:
    """Classify one image; raise Unreachable, since all others would fail as well."""
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
    """Yield the result of each image, in order, with `jobs` requests at a time."""
    tasks: Tasks = queue.SimpleQueue()
    ended = threading.Event()
    for _ in range(jobs):
        # Daemon threads: after Ctrl-C, Python would wait for the requests of a thread pool.
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


def with_progress(
    results: Iterable[Result], total: int, console: Console | None
) -> Iterator[Result]:
    """Yield the results, with a progress bar on the console."""
    if console is None:
        yield from results
        return
    columns = TextColumn("classifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    # Redirection would send standard output to standard error.
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as bar:
        yield from bar.track(results, total=total)


def write_table(results: Iterable[Result], stream: TextIO) -> None:
    """Write a table with a line for each image."""
    answered = []
    try:
        for result in results:
            answered.append(result)
    finally:
        # Also after Ctrl-C.
        console = Console(file=stream, highlight=False)
        if not stream.isatty():
            console.width = UNLIMITED_WIDTH
        console.print(_table(answered))


def write_csv(results: Iterable[Result], stream: TextIO) -> None:
    """Write CSV for spreadsheets: quoted text, and numbers.

    The first answer gives the columns of the classes. One version answers a run, unless a canary
    fails.
    """
    results = iter(results)
    first = _to_first_answer(results)
    classes = _classes(first)
    writer = csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(("file", "version", "label", "verdict", *classes, "error", "message"))
    for result in chain(first, results):
        answer, error = result.answer or {}, result.error or {}
        row = [
            result.file,
            *(answer.get(key) for key in ("version", "label", "verdict")),
            *(answer.get("probabilities", {}).get(name) for name in classes),
            *(error.get(key) for key in ("type", "message")),
        ]
        writer.writerow([_without_formula(cell) for cell in row])


def write_json(results: Iterable[Result], stream: TextIO) -> None:
    """Write a JSON list, with the `answer` or the `error` of an image on each line."""
    separator = "[\n"
    try:
        for result in results:
            stream.write(separator + json.dumps(result.to_document()))
            separator = ",\n"
    finally:
        # Also after Ctrl-C, so that the list is valid.
        stream.write("[]\n" if separator == "[\n" else "\n]\n")


FORMATS: dict[str, Write] = {"table": write_table, "csv": write_csv, "json": write_json}


def readable(path: Path) -> str:
    """Return a path as text; bytes that are not UTF-8 become \\xff."""
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
    # No pipes, since reading one may block. A dangling link stays, as an error.
    return path.is_file() or not path.exists()


def _read(file: Path) -> bytes:
    with file.open("rb") as opened:
        # The size of a file may change, and a pipe has none.
        image = opened.read(MAX_BYTES + 1)
    if len(image) > MAX_BYTES:
        raise ServiceError(413, "ImageTooLarge", "The image has too many bytes.")
    return image


def _predict(client: InferenceClient, image: bytes, version: str | None) -> dict[str, Any]:
    for delay in RETRY_DELAYS:
        try:
            return client.predict(image, version)
        except ServiceError as error:
            if error.type != "ServiceBusy":
                raise
        time.sleep(delay)
    return client.predict(image, version)


def _work(ask: Ask, tasks: Tasks, ended: threading.Event) -> None:
    while (task := tasks.get()) and not ended.is_set():
        file, future = task
        try:
            future.set_result(ask(file))
        except BaseException as error:
            future.set_exception(error)


def _to_first_answer(results: Iterator[Result]) -> list[Result]:
    """Take results up to the first answer."""
    taken = []
    for result in results:
        taken.append(result)
        if result.answer:
            break
    return taken


def _classes(results: Iterable[Result]) -> list[str]:
    """Return all classes of the answers, in their order."""
    answers = (result.answer for result in results if result.answer)
    return list(dict.fromkeys(name for answer in answers for name in answer["probabilities"]))


def _table(results: Sequence[Result]) -> Table:
    classes = _classes(results)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("file", "version", "label", "verdict"):
        table.add_column(column, overflow="fold")
    for name in classes:
        table.add_column(name[:4].lower(), justify="right", no_wrap=True)
    if any(result.error for result in results):
        table.add_column("error", overflow="fold")
    for result in results:
        # As Text, since a file name may look like markup.
        table.add_row(*(Text(_printable(cell)) for cell in _cells(result, classes)))
    return table


def _cells(result: Result, classes: Sequence[str]) -> Sequence[str]:
    if result.error is not None:
        return (result.file, *[""] * (3 + len(classes)), result.error["message"])
    answer = result.answer or {}
    shares = (answer["probabilities"].get(name) for name in classes)
    return (
        result.file,
        answer["version"],
        answer["label"] or "",
        answer["verdict"],
        *("" if share is None else f"{share:.1%}" for share in shares),
    )


def _printable(text: str) -> str:
    """Return text with control characters escaped."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _without_formula(cell: Any) -> Any:
    """Return a CSV cell that no spreadsheet runs as a formula.

    A file may be named `=HYPERLINK(...)`. After an apostrophe it is text. Some spreadsheets skip
    blanks before a formula.
    """
    if not isinstance(cell, str):
        return "" if cell is None else cell
    first = next((each for each in cell if each.isprintable() and not each.isspace()), "")
    return f"'{cell}" if first in FORMULA or cell.startswith(("\t", "\r")) else cell
