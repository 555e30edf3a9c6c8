"""What application code logs and prints becomes lines, and its own logging stays as it set it up."""

import io
import logging
import logging.config
import logging.handlers
import os
import queue
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from servd.observability import logs
from servd.observability.application_lines import LONGEST_PRINTED, PrintedLines
from servd.observability.tracebacks import show_as

shop = logging.getLogger("shop.till")


class Outlet:
    """Shows lines on a stream of a test's."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream

    def write(self, lines: bytes | str) -> None:
        self._stream.buffer.write(lines.encode() if isinstance(lines, str) else lines)

    def flush(self) -> None:
        pass


class Process:
    """This process as if it were a replica's: its log, and what its standard streams show."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._path = folder / "serve" / "x.log"
        self._folder = folder
        self.request_id = "rid"
        self.streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for name in ("stdout", "stderr")}

    def begin(self, component: str = "replica") -> None:
        if not isinstance(sys.stdout, PrintedLines):
            # not in the fixture: pytest sets its own when the test begins
            self._monkeypatch.setattr(logging.getLogger(), "handlers", [])
            for name, stream in self.streams.items():
                self._monkeypatch.setattr(sys, name, stream)
            outlets = {name: Outlet(stream) for name, stream in self.streams.items()}
            self._monkeypatch.setattr(logs, "outlets_of", lambda _: outlets)
        logs.setup(
            component,
            "r",
            str(self._folder),
            "x.log",
            request_fields=lambda: (self.request_id, "", "", "", "", ""),
            runs_application=True,
        )

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Level and message of each line of the log, and that it has the request's id."""
        text = self._path.read_text()
        heads = [line.partition(" - ") for line in text.splitlines()]
        assert all(f" r {self.request_id} " in head for head, mark, _ in heads if mark), text
        return [(head.split()[0], message) if mark else ("", head) for head, mark, message in heads]

    def shown(self, name: str) -> list[str]:
        """What a stream showed."""
        buffer = self.streams[name].buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode().splitlines()


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    process = Process(tmp_path, monkeypatch)
    monkeypatch.setenv("SERVD_LOG_TO_STDERR", "0")
    monkeypatch.setattr(logging.Logger, "callHandlers", logging.Logger.callHandlers)
    monkeypatch.setattr(logging.Handler, "handle", logging.Handler.handle)
    monkeypatch.setattr(logging, "basicConfig", logging.basicConfig)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(logs, "_application_lines", None)
    # a test before may have made it another name of servd's own logger, which a configuration that names one of them silences
    monkeypatch.delitem(logging.Logger.manager.loggerDict, "ray.serve", raising=False)
    # another test's configuration may have silenced them
    shop.disabled = False
    _forget_configurations()
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.WARNING)
    yield process
    logging.captureWarnings(False)
    root.setLevel(level)
    shop.handlers.clear()
    shop.propagate = True
    shop.disabled = False
    shop.setLevel(logging.NOTSET)
    _forget_configurations()


def _forget_configurations() -> None:
    logs._own_levels.clear()
    for name in logs.LOGGER_NAMES:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.disabled = False
        logger.setLevel(logging.NOTSET)


def _raises() -> None:
    try:
        raise KeyError("apple")
    except KeyError:
        shop.exception("sold out")


def _own_handler() -> None:
    shop.addHandler(logging.StreamHandler())
    shop.propagate = False
    shop.warning("once")


def _own_level() -> None:
    shop.addHandler(logging.StreamHandler())
    shop.setLevel(logging.DEBUG)
    shop.debug("once")


def _own_configuration() -> None:
    logging.basicConfig(format="MINE %(message)s")
    shop.warning("once")


def _replaced_configuration() -> None:
    logging.config.dictConfig(
        {"version": 1, "disable_existing_loggers": False, "root": {"level": "ERROR", "handlers": []}}
    )
    shop.warning("below what the application wants")
    shop.error("once")


def _configured_serve() -> None:
    logging.config.dictConfig({"version": 1, "loggers": {"ray.serve": {"handlers": [], "propagate": False}}})
    logging.getLogger("ray.serve").warning("once")


class Passing(logging.Handler):
    """Gives records to another library, which wants to know who logged: the first frame that is not in logging's file."""

    def __init__(self) -> None:
        super().__init__()
        self.callers: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        frame = sys._getframe(1)
        while frame.f_code.co_filename == logging.__file__:
            assert frame.f_back is not None
            frame = frame.f_back
        self.callers.append((frame.f_code.co_name, record.funcName))


def test_a_handler_finds_who_logged_by_the_frames(process: Process) -> None:
    process.begin()
    passing = Passing()
    shop.addHandler(passing)
    shop.warning("of a logger")
    through_queue: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    shop.addHandler(logging.handlers.QueueHandler(through_queue))
    shop.warning("of a logger with a queue")
    passing.handle(through_queue.get())
    name = "test_a_handler_finds_who_logged_by_the_frames"
    assert passing.callers == [(name, name)] * 3


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda: shop.info("sold %s", "apple"), [("INFO", "sold apple")]),
        (lambda: shop.debug("too little"), []),
        (lambda: logging.warning("of the root"), [("WARNING", "of the root")]),
        (lambda: logging.getLogger("ray.serve").info("of Serve"), [("INFO", "of Serve")]),
        (lambda: print("one\n\ntwo", 3), [("INFO", "one"), ("INFO", "two 3")]),
        (lambda: print("to", "stderr", file=sys.stderr), [("WARNING", "to stderr")]),
        (lambda: [print(part, end="") for part in ("a", "b", "c\n")], [("INFO", "abc")]),
        (lambda: [print(f"\r{part} %", end="", flush=True) for part in (1, 50, 100)] + [print()], [("INFO", "100 %")]),
        (lambda: sys.stdout.write("dos\r\n"), [("INFO", "dos")]),
        (lambda: sys.stdout.writelines(["x\n", "y\n"]), [("INFO", "x"), ("INFO", "y")]),
        (_own_handler, [("WARNING", "once")]),
        (_own_level, [("DEBUG", "once")]),
        (_own_configuration, [("WARNING", "once")]),
        (_configured_serve, [("WARNING", "once")]),
        (_replaced_configuration, [("ERROR", "once")]),
    ],
)  # fmt: skip
def test_what_an_application_says_is_a_line(
    process: Process, act: Callable[[], object], expected: list[tuple[str, str]]
) -> None:
    process.begin()
    act()
    assert process.lines == expected
    # nobody looks at the streams of a daemon in the background: they are the file
    assert (process.shown("stdout"), process.shown("stderr")) == ([], [])


@pytest.mark.parametrize(("wish", "shown"), [("0", 0), ("1", 2), ("WARNING", 6)])
def test_what_a_handler_prints_behind_a_queue_is_no_line_of_its_own(
    process: Process, monkeypatch: pytest.MonkeyPatch, wish: str, shown: int
) -> None:
    monkeypatch.setenv("SERVD_LOG_TO_STDERR", wish)
    process.begin()
    waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    outputs = [logging.StreamHandler(), logging.StreamHandler()]
    listener = logging.handlers.QueueListener(waiting, *outputs)
    sender = logging.handlers.QueueHandler(waiting)
    monkeypatch.setattr(shop, "handlers", [sender])
    monkeypatch.setattr(shop, "propagate", False)
    monkeypatch.setattr(shop, "level", logging.DEBUG)
    listener.start()
    shop.info("once")
    shop.error("%s", "again")
    listener.stop()
    assert process.lines == [("INFO", "once"), ("ERROR", "again")]
    assert len(process.shown("stderr")) == shown
    # no logger has handed on this one
    outputs[0].handle(logging.makeLogRecord({"msg": "by itself"}))
    assert process.lines[2:] == [("WARNING", "by itself")]


class Wordless:
    def __repr__(self) -> str:
        raise KeyError("no words")


@pytest.mark.parametrize(
    ("say", "expected"),
    [
        (lambda: shop.info("%d apples", "no"), "%d apples [arguments not shown: TypeError: "),
        (lambda: shop.info("%r", Wordless()), "%r [arguments not shown: KeyError: 'no words']"),
        (lambda: shop.info("one", 2), "one [arguments not shown: TypeError: "),
        (lambda: shop.info(Wordless()), "<exception str() failed> [arguments not shown: KeyError: 'no words']"),
    ],
)
def test_a_record_that_cannot_be_formatted_is_one_line(
    process: Process, say: Callable[[], object], expected: str
) -> None:
    process.begin()
    say()
    ((level, message),) = process.lines
    assert level == "INFO"
    assert message.startswith(expected)


def test_paths_are_those_of_the_users_own_files(process: Process) -> None:
    process.begin()
    show_as({str(Path(__file__).parent): "/home/me"})
    try:
        _raises()
        shop.info("here", stack_info=True)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old apples", FutureWarning, stacklevel=1)
        traceback.print_stack(limit=1)
        print(__file__)
    finally:
        show_as({})
    named = [text for _, text in process.lines if "test_application_lines.py" in text]
    assert [text for text in named if "/home/me/test_application_lines.py" not in text] == [__file__]
    assert len(named) >= 5


def test_exceptions_and_warnings_have_their_text(process: Process) -> None:
    process.begin()
    _raises()
    assert (process.lines[0], process.lines[-1]) == (("ERROR", "sold out"), ("", "KeyError: 'apple'"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old apples", FutureWarning, stacklevel=1)
    assert "FutureWarning: old apples" in process.lines[-2][1]
    assert process.lines[-2][0] == "WARNING"
    traceback.print_exception(ValueError("printed"))
    assert process.lines[-1] == ("WARNING", "ValueError: printed")


@pytest.mark.parametrize(
    ("wish", "stdout", "stderr"),
    [
        ("0", [], []),
        ("1", [], ["printed", "MINE own", "plain"]),
        ("WARNING", ["printed"], ["MINE own", "plain"]),
    ],
)
def test_people_see_each_line_once(
    process: Process, monkeypatch: pytest.MonkeyPatch, wish: str, stdout: list[str], stderr: list[str]
) -> None:
    monkeypatch.setenv("SERVD_LOG_TO_STDERR", wish)
    process.begin()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("MINE %(message)s"))
    shop.addHandler(handler)
    print("printed")
    shop.info("own")
    logging.getLogger("plain").info("plain")
    assert [text for _, text in process.lines] == ["printed", "own", "plain"]
    assert process.shown("stdout") == stdout
    assert [line.rpartition(" - ")[2] for line in process.shown("stderr")] == stderr
    # with a header where lines of all kinds come together
    assert wish != "1" or process.shown("stderr")[0].startswith("INFO ")


@pytest.mark.parametrize("wish", ["1", "WARNING"])
def test_a_word_to_the_root_makes_no_handler(process: Process, monkeypatch: pytest.MonkeyPatch, wish: str) -> None:
    monkeypatch.setenv("SERVD_LOG_TO_STDERR", wish)
    process.begin()
    logging.info("first")
    shop.info("second")
    assert logging.getLogger().handlers == []
    assert [line[:5] for line in process.shown("stderr")] == ["INFO "] * 2
    # who asks for one gets it
    logging.basicConfig()
    logging.info("third")
    assert process.shown("stderr")[2:] == ["INFO:root:third"]
    assert process.lines == [("INFO", "first"), ("INFO", "second"), ("INFO", "third")]


def test_handlers_of_an_import_write_for_the_replica_that_is_forked(process: Process) -> None:
    process.begin("fork_server")
    logging.basicConfig(format="MINE %(message)s")
    print("half of", end="")
    assert logging.getLogger().level == logging.INFO
    process.request_id = "another"
    stream = sys.stdout
    process.begin()
    assert sys.stdout is stream
    print("whole")
    shop.info("once")
    assert process.lines == [("INFO", "whole"), ("INFO", "once")]


def test_a_level_that_the_application_chose_stays(process: Process) -> None:
    process.begin("fork_server")
    logging.getLogger().setLevel(logging.WARNING)
    process.begin()
    logs.configure({"log_level": "DEBUG"})
    shop.info("no")
    shop.setLevel(logging.DEBUG)
    shop.debug("yes")
    logs.configure({"log_level": "ERROR"})
    shop.warning("no")
    print("printed in any case")
    shop.setLevel(logging.NOTSET)
    assert process.lines == [("DEBUG", "yes"), ("INFO", "printed in any case")]


def test_lines_of_several_threads_do_not_mix_and_the_last_ones_are_not_lost(process: Process) -> None:
    process.begin()
    print("of main", end="")
    thread = threading.Thread(target=lambda: (print("of another"), print("its last", end="")))
    thread.start()
    thread.join()
    print(" thread")
    assert process.lines == [("INFO", "of another"), ("INFO", "of main thread")]
    logs.finish()
    assert process.lines[2:] == [("INFO", "its last")]


def test_a_printed_line_without_an_end_is_bounded(process: Process) -> None:
    process.begin()
    for _ in range(3):
        sys.stdout.write("x" * LONGEST_PRINTED)
    assert isinstance(sys.stdout, PrintedLines)
    assert sum(map(len, sys.stdout.rests.values())) <= LONGEST_PRINTED
    assert process.lines


def test_streams_are_still_streams(process: Process) -> None:
    process.begin()
    with pytest.raises(TypeError):
        sys.stdout.write(b"bytes")  # type: ignore[arg-type]
    sys.stderr.buffer.write(b"as it is\n")
    sys.stderr.flush()
    assert process.shown("stderr") == ["as it is"]
    assert not sys.stdout.isatty()


PRINTS_A_LOT = """
import os, sys
from servd.observability import logs
logs.setup("replica", "r", sys.argv[1], "x.log", runs_application=True)
print("so far", end="", flush=True)
print(", so good")
for number in range(3000):
    print(number, "x" * 100)
os._exit(0)
"""


def test_nothing_that_is_printed_waits_for_a_terminal_that_is_stopped(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    environment = {**os.environ, "SERVD_LOG_TO_STDERR": "WARNING"}
    with subprocess.Popen(
        [sys.executable, "-c", PRINTS_A_LOT, str(tmp_path)], stdout=writer, stderr=writer, env=environment
    ) as printing:
        os.close(writer)
        try:
            assert printing.wait(60.0) == 0
        finally:
            printing.kill()
    with open(reader, "rb") as stream:
        shown = stream.read().splitlines()
    assert shown[0] == b"so far, so good"
    numbers = [line.split()[0] for line in shown[1:]]
    assert numbers == [b"%d" % number for number in range(len(numbers))]
    assert 0 < len(numbers) < 3000
    assert len((tmp_path / "serve" / "x.log").read_text().splitlines()) == 3001
