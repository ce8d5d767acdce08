"""`python -m serving predict`: find images, classify them in parallel, write three formats."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import free_settings
from edges import wait
from stand_in import StandIn

from serving import files, predict
from serving.cli import main
from serving.client import InferenceClient, NotServed, Unreachable
from serving.deployment import known_answers
from serving.settings import ROOT, Settings
from testing.service import Service, environment_of

SHARES = {"EOSINOPHIL": 0.1, "LYMPHOCYTE": 0.2, "MONOCYTE": 0.3, "NEUTROPHIL": 0.4}
ANSWER = {
    "model": "bloodcells",
    "version": "1.0",
    "label": "NEUTROPHIL",
    "verdict": "uncertain",
    "probabilities": SHARES,
}
REJECTED = ANSWER | {"label": None, "verdict": "rejected"}


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandIn]:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with StandIn(run_dir) as running, files.lock(run_dir / "pid", str(os.getpid())):
        running.answer = lambda request, body: (200, json.dumps(ANSWER).encode())
        yield running


@pytest.fixture
def client(stand_in: StandIn) -> Iterator[InferenceClient]:
    made = InferenceClient(stand_in.settings, timeout=(60, 60), patience=0)
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    made.mkdir()
    return made


def write_images(folder: Path, *names: str) -> list[Path]:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return [folder / name for name in names]


def invoke(settings: Settings, *arguments: str | Path) -> Result:
    return CliRunner().invoke(
        main, ["predict", *map(str, arguments)], env=environment_of(settings), prog_name="serving"
    )


class TestFind:
    def test_folders_are_searched_and_sorted(self, folder: Path) -> None:
        kinds = ["a.jpg", "b.PNG", "c/a.jpeg", "c/b.bmp", "c/c.tif", "c/d/e.Tiff", "c/f.webp"]
        write_images(folder, *reversed(kinds), "c/f.txt", ".g.png", ".h/i.png", "j")
        os.mkfifo(folder / "pipe.png")
        (folder / "linked.png").symlink_to(folder / "pipe.png")
        (folder / "lost.png").symlink_to(folder / "nowhere")
        found = predict.find_images([folder])
        assert found == [folder / name for name in [*kinds, "lost.png"]]

    def test_arguments_keep_their_order_and_files_any_name(self, folder: Path) -> None:
        last, first = write_images(folder, "a.png", "z.dat")
        nowhere = Path("nowhere")
        assert predict.find_images([first, folder, nowhere]) == [first, last, nowhere]

    def test_a_folder_that_cant_be_listed_is_an_error(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_images(folder, "a.png", "shut/b.png")
        scan = os.scandir

        def scandir(path: str) -> Any:
            if os.path.basename(path) == "shut":
                raise PermissionError(13, "Permission denied", path)
            return scan(path)

        monkeypatch.setattr(os, "scandir", scandir)
        assert predict.find_images([folder]) == [folder / "a.png", folder / "shut"]


class TestAsk:
    def test_returns_an_answer_or_an_error(
        self, client: InferenceClient, stand_in: StandIn, folder: Path
    ) -> None:
        (file,) = write_images(folder, "a.png")
        assert predict.ask(client, "3.0", file) == predict.Result(str(file), answer=ANSWER)
        stand_in.refuse(415, "UnsupportedImage", "no image")
        error = {"type": "UnsupportedImage", "message": "no image"}
        assert predict.ask(client, "1.0", file) == predict.Result(str(file), error=error)
        assert stand_in.asked == ["3.0", "1.0"]

    def test_a_large_file_is_not_sent(
        self, client: InferenceClient, stand_in: StandIn, folder: Path
    ) -> None:
        file = folder / "a.png"
        file.write_bytes(bytes(predict.MAX_BYTES))
        assert predict.ask(client, None, file).answer == ANSWER
        with file.open("ab") as more:
            more.write(b"x")
        error = {"type": "ImageTooLarge", "message": "The image has too many bytes."}
        for path in (file, Path("/dev/zero")):
            assert predict.ask(client, None, path).error == error
        assert len(stand_in.requests) == 1

    def test_an_unreadable_file_is_an_error(self, client: InferenceClient, folder: Path) -> None:
        for path, why in (
            (folder / "nowhere.png", "No such file or directory."),
            (folder, "Is a directory."),
        ):
            result = predict.ask(client, None, path)
            assert result.error == {"type": "UnreadableFile", "message": why}

    def test_retries_while_the_queue_is_full(
        self,
        client: InferenceClient,
        stand_in: StandIn,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(predict, "RETRY_DELAYS", (0, 0))
        (file,) = write_images(folder, "a.png")

        def full(times: int) -> None:
            stand_in.requests.clear()
            busy = b'{"code": 503, "type": "ServiceUnavailableException", "message": "full"}'
            fine = json.dumps(ANSWER).encode()
            stand_in.answer = lambda request, body: (
                (503, busy) if len(stand_in.requests) <= times else (200, fine)
            )

        full(times=2)
        assert predict.ask(client, "1.0", file).answer == ANSWER
        full(times=3)
        error = predict.ask(client, "1.0", file).error
        assert error
        assert error["type"] == "ServiceBusy"


class TestAskAll:
    def test_results_keep_the_order_of_the_files(self) -> None:
        """Each of three files is answered only after the next two."""
        answered = [threading.Event() for _ in range(12)]

        def ask(file: Path) -> predict.Result:
            number = int(file.name)
            for later in answered[number + 1 : number // 3 * 3 + 3]:
                assert later.wait(60)
            answered[number].set()
            return predict.Result(file.name)

        names = [str(number) for number in range(12)]
        results = predict.ask_all(ask, map(Path, names), jobs=3)
        assert [result.file for result in results] == names

    def test_an_exception_stops_all_jobs(self) -> None:
        taken = 0

        def files() -> Iterator[Path]:
            nonlocal taken
            for taken in range(1000):
                yield Path(str(taken))

        def ask(file: Path) -> predict.Result:
            if file.name == "3":
                raise Unreachable("gone")
            return predict.Result(file.name)

        before = threading.active_count()
        with pytest.raises(Unreachable):
            list(predict.ask_all(ask, files(), jobs=2))
        # Few files are read ahead.
        assert taken <= 4 + 2 * predict.AHEAD
        wait(lambda: threading.active_count() <= before)


def written(form: str, *results: predict.Result) -> str:
    stream = io.StringIO()
    predict.FORMATS[form](results, stream)
    return stream.getvalue()


class TestCsv:
    def test_has_a_column_for_each_field_as_the_table_has(self) -> None:
        error = {"type": "CorruptImage", "message": "It is cut off."}
        results = [
            predict.Result("a.png", answer=ANSWER),
            predict.Result("b.png", error=error),
            predict.Result("c.png", answer=REJECTED),
        ]
        text = written("csv", *results)
        first, second, third = csv.DictReader(io.StringIO(text))
        nothing = dict.fromkeys(first, "")
        shares = {name: str(share) for name, share in SHARES.items()}
        answered = {"file": "a.png", "version": "1.0", "label": "NEUTROPHIL"}
        assert first == nothing | shares | answered | {"verdict": "uncertain"}
        assert second == nothing | {
            "file": "b.png",
            "error": error["type"],
            "message": error["message"],
        }
        assert (third["label"], third["verdict"]) == ("", "rejected")
        # Numbers stand without quotes.
        assert ",0.1,0.2,0.3,0.4," in text
        _, *lines = written("table", *results).splitlines()
        assert lines[0].split() == (
            ["a.png", "1.0", "NEUTROPHIL", "uncertain", "10.0%", "20.0%", "30.0%", "40.0%"]
        )
        assert lines[1].split(maxsplit=1)[1].strip() == "It is cut off."
        assert lines[2].split()[:3] == ["c.png", "1.0", "rejected"]

    def test_the_first_answer_gives_the_classes(self) -> None:
        """Whatever they are, and also after an error; without an answer there are none."""
        error = predict.Result("a.png", error={"type": "CorruptImage", "message": "It is cut."})
        shares = {"BLAST": 0.25, "BASOPHIL": 0.75}
        answered = predict.Result("b.png", answer=ANSWER | {"probabilities": shares})
        text = written("csv", error, answered)
        assert text.splitlines()[0].split(",")[4:6] == ['"BLAST"', '"BASOPHIL"']
        first, second = csv.DictReader(io.StringIO(text))
        assert (first["error"], first["BLAST"]) == ("CorruptImage", "")
        assert (second["BLAST"], second["BASOPHIL"]) == ("0.25", "0.75")
        [header, line] = written("csv", error).splitlines()
        assert header.split(",")[3:5] == ['"verdict"', '"error"']
        assert "It is cut." in line

    def test_a_file_name_is_not_a_formula(self) -> None:
        signs = ["=1+1", "+a", "-a", "@SUM(A1)", " =1", "\t=1", "\r\n=1", "\ufeff=1", "\uff1d1"]
        for name in (*signs, "\uff0ba", "\uff0da", "\uff20a", "\ta", "\ra", "\u200b\uff1d1"):
            text = written("csv", predict.Result(name, answer=ANSWER))
            (row,) = csv.DictReader(io.StringIO(text))
            assert row["file"] == f"'{name}"

    def test_other_names_are_unchanged(self) -> None:
        for name in ("a=1.png", "a;=1.png", 'a",=1.png', "a\n=1.png", "é.png", ""):
            text = written("csv", predict.Result(name, answer=ANSWER))
            rows = list(csv.DictReader(io.StringIO(text)))
            assert [row["file"] for row in rows] == [name]
            # For spreadsheets that split at semicolons.
            assert text.splitlines()[1].startswith('"')


@pytest.mark.parametrize("count", [0, 1, 2])
def test_json_is_a_valid_list_of_answers_also_after_ctrl_c(count: int) -> None:
    def results() -> Iterator[predict.Result]:
        yield from [predict.Result("=a", answer=ANSWER)] * count
        raise KeyboardInterrupt

    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        predict.write_json(results(), stream)
    assert json.loads(stream.getvalue()) == [{"file": "=a", "answer": ANSWER}] * count


class TestTable:
    def test_has_the_classes_of_all_answers(self) -> None:
        """The default version may answer for a canary that fails."""
        more = ANSWER | {"probabilities": {"BASOPHIL": 0.5, **SHARES}}
        results = [predict.Result(name, answer=each) for name, each in (("a", ANSWER), ("b", more))]
        header, first, second = written("table", *results).splitlines()
        assert header.split()[4:] == ["eosi", "lymp", "mono", "neut", "baso"]
        assert first.split()[4:] == ["10.0%", "20.0%", "30.0%", "40.0%"]
        assert second.split()[4:] == ["10.0%", "20.0%", "30.0%", "40.0%", "50.0%"]

    def test_names_are_neither_markup_nor_terminal_commands(self) -> None:
        name = "[red]\x1b[2J\n.png" + "a" * 300
        text = written("table", predict.Result(name, answer=ANSWER))
        # Without a terminal, lines are not wrapped.
        assert r"[red]\x1b[2J\n.png" + "a" * 300 in text
        assert "\x1b" not in text


def test_a_file_name_that_is_not_utf_8(folder: Path) -> None:
    path = Path(os.fsdecode(b"a\xff\xc3\xa9.png"))
    assert predict.readable(path) == "a\\xff\u00e9.png"
    for form in predict.FORMATS:
        written(form, predict.Result(predict.readable(path), answer=ANSWER)).encode()


class TestCommand:
    def test_some_images_fail(self, stand_in: StandIn, folder: Path) -> None:
        (file,) = write_images(folder, "a.png")
        done = invoke(stand_in.settings, file, folder / "nowhere", "--format", "csv")
        assert done.exit_code == 1
        assert len(done.stdout.splitlines()) == 3
        assert done.stderr == "error: 1 of 2 images failed.\n"

    def test_options(self, stand_in: StandIn, folder: Path) -> None:
        write_images(folder, "b.png", "a.png")
        target = folder / "results.json"
        options: list[str | Path] = ["--version", "3.0", "--format", "json", "--output", target]
        done = invoke(stand_in.settings, folder, *options)
        assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
        results = json.loads(target.read_text())
        assert [Path(each["file"]).name for each in results] == ["a.png", "b.png"]
        assert [each["answer"] for each in results] == [ANSWER] * 2
        assert stand_in.asked == ["3.0"] * 2
        done = invoke(stand_in.settings, folder, "--version", "4.0")
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr == f"error: {NotServed('4.0')}\n"

    def test_one_run_uses_one_version(self, stand_in: StandIn, folder: Path) -> None:
        """Also during a canary: results of two versions can't be compared."""
        routing = stand_in.routing.read()
        assert routing
        stand_in.routing.publish(type(routing)("1.0", ("1.0", "3.0"), "3.0", 50.0))
        write_images(folder, *(f"{number}.png" for number in range(20)))
        assert invoke(stand_in.settings, folder).exit_code == 0
        assert len(stand_in.asked) == 20
        assert len(set(stand_in.asked)) == 1

    @pytest.mark.parametrize(
        "wrong",
        [
            [],
            ["{folder}"],
            ["{image}", "--jobs", "0"],
            ["{image}", "--jobs", "65"],
            ["{image}", "--format", "xml"],
            ["{image}", "--output", "{folder}/no/where"],
        ],
    )
    def test_usage_errors(self, stand_in: StandIn, folder: Path, wrong: list[str]) -> None:
        empty = folder / "empty"
        empty.mkdir()
        (image,) = write_images(folder, "a.png")
        done = invoke(
            stand_in.settings, *(each.format(folder=empty, image=image) for each in wrong)
        )
        assert done.exit_code == (1 if "--output" in wrong else 2)
        assert done.stderr
        assert stand_in.requests == []

    def test_no_service(self, tmp_path: Path, folder: Path) -> None:
        (file,) = write_images(folder, "a.png")
        target = folder / "results"
        target.write_text("of another day")
        done = invoke(free_settings(tmp_path / "run"), file, "--output", target)
        assert (done.exit_code, done.stdout) == (3, "")
        assert done.stderr.startswith("error: The service does not run")
        assert target.read_text() == "of another day"

    def test_a_service_that_stops_meanwhile(
        self, stand_in: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(InferenceClient.__init__.__kwdefaults__, "patience", 0)
        names = [f"{number:02}.png" for number in range(30)]
        write_images(folder, *names)

        def leave(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
            if len(stand_in.requests) == 10:
                stand_in.routing.withdraw()
            return 200, json.dumps(ANSWER).encode()

        stand_in.answer = leave
        done = invoke(stand_in.settings, folder, "--format", "json", "--jobs", "1")
        assert done.exit_code == 3
        assert [Path(each["file"]).name for each in json.loads(done.stdout)] == names[:10]

    def test_ctrl_c_does_not_wait_for_requests_in_flight(
        self, stand_in: StandIn, folder: Path
    ) -> None:
        write_images(folder, "a.png", "b.png", "c.png")
        released = threading.Event()

        def hang(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
            if body != b"a.png":
                released.wait(60)
            return 200, json.dumps(ANSWER).encode()

        stand_in.answer = hang
        process = subprocess.Popen(
            [sys.executable, "-m", "serving", "predict", str(folder), "--format", "json"],
            cwd=ROOT,
            env=environment_of(stand_in.settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # What runs the tests may ignore SIGINT, as a shell's background jobs do.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            wait(lambda: len(stand_in.requests) == 3)
            process.send_signal(signal.SIGINT)
            printed, errors = process.communicate(timeout=60)
        finally:
            process.kill()
            released.set()
        assert process.returncode == 1
        # The others would be there as timeouts.
        assert {each["file"] for each in json.loads(printed)} <= {str(folder / "a.png")}
        assert "Traceback" not in errors


class TestRealService:
    def test_gives_the_known_answers(self, service: Service) -> None:
        samples = ROOT / "serving" / "samples"
        known = known_answers.answers(service.settings.archives / "bloodcells-1.0.mar")
        done = invoke(service.settings, samples, "--format", "json", "--version", "1.0")
        assert (done.exit_code, done.stderr) == (0, "")
        results = json.loads(done.stdout)
        assert [Path(each["file"]).name for each in results] == sorted(known)
        for each in results:
            assert each["answer"]["version"] == "1.0"
            expected = known[Path(each["file"]).name]
            assert known_answers.agree(each["answer"]["probabilities"], expected)
