"""`python -m serving predict`: finding images, asking in parallel, the three ways of writing."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import free_settings
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
    made = InferenceClient(stand_in.settings, timeout=(1, 1), patience=0.1)
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
    def test_folders_are_searched_through_and_sorted(self, folder: Path) -> None:
        write_images(folder, "b.PNG", "a.jpg", "c/d/e.Tiff", "c/f.txt", ".g.png", ".h/i.png", "j")
        found = predict.find_images([folder])
        assert found == [folder / name for name in ("a.jpg", "b.PNG", "c/d/e.Tiff")]

    @pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "bmp", "tif", "tiff", "webp", "WebP"])
    def test_every_kind_of_image_is_found(self, folder: Path, suffix: str) -> None:
        assert predict.find_images([folder]) == []
        assert predict.find_images([folder]) != write_images(folder, f"a.{suffix}")
        assert predict.find_images([folder]) == [folder / f"a.{suffix}"]

    def test_arguments_keep_their_order_and_files_are_taken_as_they_are(self, folder: Path) -> None:
        last, first = write_images(folder, "a.png", "z.dat")
        assert predict.find_images([first, folder, Path("nowhere")]) == [
            first,
            last,
            Path("nowhere"),
        ]

    def test_what_would_block_is_passed_over(self, folder: Path) -> None:
        os.mkfifo(folder / "a.png")
        (folder / "b.png").symlink_to(folder / "a.png")
        (folder / "c.png").symlink_to(folder / "nowhere")
        assert predict.find_images([folder]) == [folder / "c.png"]

    def test_a_folder_that_cant_be_read_is_not_forgotten(
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
    def test_an_answer_comes_with_the_name(
        self, client: InferenceClient, stand_in: StandIn, folder: Path
    ) -> None:
        (file,) = write_images(folder, "a.png")
        assert predict.ask(client, "2.0", file) == predict.Result(str(file), answer=ANSWER)
        assert stand_in.asked == ["2.0"]

    @pytest.mark.parametrize(("size", "sent"), [(0, True), (1, False)])
    def test_what_is_too_large_is_not_sent(
        self, client: InferenceClient, stand_in: StandIn, folder: Path, size: int, sent: bool
    ) -> None:
        file = folder / "a.png"
        file.write_bytes(bytes(predict.MAX_BYTES + size))
        result = predict.ask(client, None, file)
        assert (len(stand_in.requests) == 1) is sent
        assert (result.error is None) is sent
        if result.error:
            assert result.error["type"] == "ImageTooLarge"

    def test_no_more_than_the_limit_is_read_of_what_has_no_end(
        self, client: InferenceClient
    ) -> None:
        result = predict.ask(client, None, Path("/dev/zero"))
        assert result.error == {"type": "ImageTooLarge", "message": "The image has too many bytes."}

    def test_what_cant_be_read_is_an_error(self, client: InferenceClient, folder: Path) -> None:
        for path, why in (
            (folder / "nowhere.png", "No such file or directory."),
            (folder, "Is a directory."),
        ):
            result = predict.ask(client, None, path)
            assert result.error == {"type": "UnreadableFile", "message": why}

    def test_the_services_error_is_kept(
        self, client: InferenceClient, stand_in: StandIn, folder: Path
    ) -> None:
        (file,) = write_images(folder, "a.png")
        stand_in.refuse(415, "UnsupportedImage", "no image")
        error = {"type": "UnsupportedImage", "message": "no image"}
        assert predict.ask(client, None, file) == predict.Result(str(file), error=error)
        assert len(stand_in.requests) == 1

    def test_a_full_queue_is_waited_for(
        self,
        client: InferenceClient,
        stand_in: StandIn,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(predict, "PAUSES", (0.01, 0.01))
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

    def test_without_a_service_nothing_goes_on(
        self, client: InferenceClient, stand_in: StandIn, folder: Path
    ) -> None:
        (file,) = write_images(folder, "a.png")
        stand_in.routing.withdraw()
        with pytest.raises(Unreachable):
            predict.ask(client, None, file)


class TestAskAll:
    def test_results_keep_the_order_of_the_files(self) -> None:
        def ask(file: Path) -> predict.Result:
            # The earlier, the slower.
            time.sleep(0.02 * (7 - int(file.name) % 8))
            return predict.Result(file.name)

        names = [str(number) for number in range(40)]
        results = predict.ask_all(ask, map(Path, names), jobs=8)
        assert [result.file for result in results] == names

    def test_so_many_are_asked_at_a_time(self) -> None:
        now, most, lock = 0, 0, threading.Lock()

        def ask(file: Path) -> predict.Result:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.02)
            with lock:
                now -= 1
            return predict.Result(file.name)

        assert len(list(predict.ask_all(ask, [Path("a")] * 30, jobs=3))) == 30
        assert most == 3

    def test_few_are_ahead_of_the_one_that_is_written(self) -> None:
        taken = 0

        def files() -> Iterator[Path]:
            nonlocal taken
            for taken in range(1, 1000):
                yield Path(str(taken))

        results = predict.ask_all(lambda file: predict.Result(file.name), files(), jobs=2)
        assert [next(results).file for _ in range(5)] == ["1", "2", "3", "4", "5"]
        assert taken <= 5 + 2 * predict.AHEAD

    def test_one_error_ends_it_all(self) -> None:
        asked = []

        def ask(file: Path) -> predict.Result:
            asked.append(file.name)
            if file.name == "3":
                raise Unreachable("gone")
            time.sleep(0.01)
            return predict.Result(file.name)

        results = predict.ask_all(ask, (Path(str(number)) for number in range(1000)), jobs=2)
        with pytest.raises(Unreachable):
            list(results)
        assert len(asked) < 50

    def test_no_thread_stays(self) -> None:
        before = threading.active_count()
        results = predict.ask_all(lambda file: predict.Result("a"), [Path("a")] * 99, jobs=4)
        next(results)
        results.close()  # type: ignore[attr-defined]
        deadline = time.monotonic() + 5
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() <= before


def written(form: str, *results: predict.Result) -> str:
    stream = io.StringIO()
    predict.FORMATS[form](results, stream)
    return stream.getvalue()


class TestCsv:
    def test_has_a_column_for_everything(self) -> None:
        error = {"type": "CorruptImage", "message": "It is cut off."}
        text = written(
            "csv",
            predict.Result("a.png", answer=ANSWER),
            predict.Result("b.png", error=error),
            predict.Result("c.png", answer=REJECTED),
        )
        first, second, third = csv.DictReader(io.StringIO(text))
        nothing = dict.fromkeys(first, "")
        shares = {name: str(share) for name, share in SHARES.items()}
        answered = {"file": "a.png", "version": "1.0", "label": "NEUTROPHIL"}
        assert first == nothing | shares | answered | {"verdict": "uncertain"}
        assert second == nothing | {"file": "b.png", "error": error["type"]} | {
            "message": error["message"]
        }
        assert (third["label"], third["verdict"]) == ("", "rejected")

    @pytest.mark.parametrize(
        "name",
        [
            "=1+1.png",
            "+a.png",
            "-a.png",
            "@SUM(A1).png",
            " =1.png",
            "\t=1.png",
            "\r\n=1.png",
            "\ufeff=1.png",
            "\uff1d1.png",
        ],
    )
    def test_a_name_is_no_formula(self, name: str) -> None:
        (row,) = csv.DictReader(io.StringIO(written("csv", predict.Result(name, answer=ANSWER))))
        assert row["file"] == f"'{name}"

    @pytest.mark.parametrize("name", ["a=1.png", "a;=1.png", 'a",=1.png', "a\n=1.png", "é.png", ""])
    def test_other_names_stay_as_they_are(self, name: str) -> None:
        text = written("csv", predict.Result(name, answer=ANSWER))
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [row["file"] for row in rows] == [name]
        # Where a semicolon separates, too.
        assert text.splitlines()[1].startswith('"')

    def test_probabilities_are_numbers(self) -> None:
        assert ",0.1,0.2,0.3,0.4," in written("csv", predict.Result("a", answer=ANSWER))


class TestJson:
    def test_is_a_list_of_answers_and_errors(self) -> None:
        error = {"type": "CorruptImage", "message": "It is cut off."}
        text = written(
            "json", predict.Result("=a", answer=ANSWER), predict.Result("b", error=error)
        )
        assert json.loads(text) == [{"file": "=a", "answer": ANSWER}, {"file": "b", "error": error}]

    @pytest.mark.parametrize("count", [0, 1, 2])
    def test_is_a_list_when_broken_off_as_well(self, count: int) -> None:
        def results() -> Iterator[predict.Result]:
            yield from [predict.Result("a", answer=ANSWER)] * count
            raise KeyboardInterrupt

        stream = io.StringIO()
        with pytest.raises(KeyboardInterrupt):
            predict.write_json(results(), stream)
        assert len(json.loads(stream.getvalue())) == count


class TestTable:
    def test_tells_what_is_there(self) -> None:
        error = {"type": "CorruptImage", "message": "It is cut off."}
        text = written(
            "table",
            predict.Result("a.png", answer=ANSWER),
            predict.Result("b.png", error=error),
            predict.Result("c.png", answer=REJECTED),
        )
        _, first, second, third = text.splitlines()
        assert first.split() == (
            ["a.png", "1.0", "NEUTROPHIL", "uncertain", "10.0%", "20.0%", "30.0%", "40.0%"]
        )
        assert second.split(maxsplit=1)[1].strip() == "It is cut off."
        assert third.split()[:3] == ["c.png", "1.0", "rejected"]

    def test_names_are_neither_markup_nor_orders_to_the_terminal(self) -> None:
        text = written("table", predict.Result("[red]\x1b[2J\n.png", answer=ANSWER))
        assert r"[red]\x1b[2J\n.png" in text
        assert "\x1b" not in text

    def test_a_line_is_not_folded_where_no_terminal_is(self) -> None:
        assert "a" * 300 in written("table", predict.Result("a" * 300, answer=ANSWER))


def test_a_name_that_is_no_text_is_shown_all_the_same(folder: Path) -> None:
    path = Path(os.fsdecode(b"a\xff\xc3\xa9.png"))
    assert predict.readable(path) == "a\\xff\u00e9.png"
    for form in predict.FORMATS:
        written(form, predict.Result(predict.readable(path), answer=ANSWER)).encode()


class TestCommand:
    def test_all_answered(self, stand_in: StandIn, folder: Path) -> None:
        write_images(folder, "b.png", "a.png")
        done = invoke(stand_in.settings, folder, "--format", "json")
        assert done.exit_code == 0
        assert [each["file"] for each in json.loads(done.stdout)] == [
            str(folder / "a.png"),
            str(folder / "b.png"),
        ]
        assert done.stderr == ""

    def test_some_failed(self, stand_in: StandIn, folder: Path) -> None:
        (file,) = write_images(folder, "a.png")
        done = invoke(stand_in.settings, file, folder / "nowhere", "--format", "csv")
        assert done.exit_code == 1
        assert len(done.stdout.splitlines()) == 3
        assert done.stderr == "error: 1 of 2 images got no answer.\n"

    def test_the_version_that_is_named_is_asked(self, stand_in: StandIn, folder: Path) -> None:
        (file,) = write_images(folder, "a.png")
        assert invoke(stand_in.settings, file, "--version", "2.0").exit_code == 0
        assert stand_in.asked == ["2.0"]
        done = invoke(stand_in.settings, file, "--version", "3.0")
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr == f"error: {NotServed('3.0')}\n"

    def test_one_run_asks_one_version(self, stand_in: StandIn, folder: Path) -> None:
        """Also during a canary: a table of two versions would compare nothing."""
        routing = stand_in.routing.read()
        assert routing
        stand_in.routing.publish(type(routing)("1.0", ("1.0", "2.0"), "2.0", 50.0))
        write_images(folder, *(f"{number}.png" for number in range(20)))
        assert invoke(stand_in.settings, folder).exit_code == 0
        assert len(stand_in.asked) == 20
        assert len(set(stand_in.asked)) == 1

    def test_a_file_takes_the_results(self, stand_in: StandIn, folder: Path) -> None:
        (file,) = write_images(folder, "a.png")
        target = folder / "results.json"
        done = invoke(stand_in.settings, file, "--format", "json", "--output", target)
        assert (done.exit_code, done.stdout) == (0, "")
        assert json.loads(target.read_text())[0]["answer"] == ANSWER

    def test_a_file_that_cant_be_written_is_said_before_anything_is_asked(
        self, stand_in: StandIn, folder: Path
    ) -> None:
        (file,) = write_images(folder, "a.png")
        done = invoke(stand_in.settings, file, "--output", folder / "no" / "where")
        assert done.exit_code == 1
        assert "No such file or directory" in done.stderr
        assert stand_in.requests == []

    @pytest.mark.parametrize(
        "wrong",
        [[], ["--jobs", "0"], ["--jobs", "65"], ["--format", "xml"], ["{empty}"]],
    )
    def test_what_is_mistyped(self, stand_in: StandIn, folder: Path, wrong: list[str]) -> None:
        empty = folder / "empty"
        empty.mkdir()
        arguments = [each.format(empty=empty) for each in wrong]
        if len(arguments) == 2:
            arguments += map(str, write_images(folder, "a.png"))
        assert invoke(stand_in.settings, *arguments).exit_code == 2
        assert stand_in.requests == []

    def test_no_service(self, tmp_path: Path, folder: Path) -> None:
        (file,) = write_images(folder, "a.png")
        target = folder / "results"
        target.write_text("of another day")
        done = invoke(free_settings(tmp_path / "run"), file, "--output", target)
        assert (done.exit_code, done.stdout) == (3, "")
        assert done.stderr.startswith("error: The service does not run")
        assert target.read_text() == "of another day"

    def test_a_service_that_goes_away_in_between(
        self, stand_in: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(InferenceClient.__init__.__kwdefaults__, "patience", 0.1)
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

    def test_ctrl_c_does_not_wait_for_what_is_asked(self, stand_in: StandIn, folder: Path) -> None:
        write_images(folder, "a.png", "b.png", "c.png")
        released = threading.Event()

        def hang(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
            if body != b"a.png":
                released.wait(30)
            return 200, json.dumps(ANSWER).encode()

        stand_in.answer = hang
        stand_in.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        process = subprocess.Popen(
            [sys.executable, "-m", "serving", "predict", str(folder), "--format", "json"],
            cwd=ROOT,
            env=environment_of(stand_in.settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # What runs the tests may ignore it, as a shell's background jobs do.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            deadline = time.monotonic() + 30
            while len(stand_in.requests) < 3 and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            printed, said = process.communicate(timeout=60)
        finally:
            process.kill()
            released.set()
        assert process.returncode == 1
        # Had it waited, the others would stand there, too: as having taken too long.
        assert [each["file"] for each in json.loads(printed)] == [str(folder / "a.png")]
        assert "Traceback" not in said


class TestRealService:
    """Through `python -m serving predict`, as a person calls it."""

    def ask(self, service: Service, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "serving", "predict", "serving/samples", *arguments],
            cwd=ROOT,
            env=environment_of(service.settings),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def test_json_and_csv_tell_the_known_answers(self, service: Service) -> None:
        version = "1.0"
        known = known_answers.answers(service.settings.archives / f"bloodcells-{version}.mar")
        told = json.loads(self.ask(service, "--format", "json", "--version", version))
        assert [Path(each["file"]).name for each in told] == sorted(known)
        rows = list(csv.DictReader(self.ask(service, "--format", "csv").splitlines()))
        assert [row["file"] for row in rows] == [each["file"] for each in told]
        for each in told:
            answer = each["answer"]
            assert answer["version"] == version
            assert known_answers.agree(answer["probabilities"], known[Path(each["file"]).name])

    def test_the_table_has_a_line_for_each(self, service: Service) -> None:
        lines = self.ask(service, "--jobs", "2").splitlines()
        assert [line.split()[0] for line in lines[1:]] == [
            f"serving/samples/{name}.png"
            for name in ("eosinophil", "lymphocyte", "monocyte", "neutrophil")
        ]
