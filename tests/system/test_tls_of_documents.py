"""TLS of the data port from a document: its files, a key with a passphrase, certificates of clients, and changes of all that.

Its application has a directory for its log files, too.
"""

import errno
import os
import shutil
import signal
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from servd.controller.snapshots import keep_secrets
from servd.daemon.data_tls import PASSPHRASES, TlsFiles, check_files, keep_passphrase, passphrase_of
from servd.daemon.tls import Certificate
from servd.documents.sent import HttpWish
from servd.exceptions import ConfigError, StateError
from servd.schema import HTTPOptionsSchema
from tests.core.build import HTTP, some_settings
from tests.fakes import make_certificate
from tests.system.running_daemon import RunningDaemon, a_daemon, eventually, settings_in

SECRET = "open sesame 7"
SCHEME = """
from servd import deployment

@deployment
class Scheme:
    async def __call__(self, request):
        return request.scope["scheme"] + " " + request.scope["http_version"]

app = Scheme.bind()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("certificates")
    for name in ("server", "client", "other"):
        make_certificate(made, name)
    command = ["openssl", "ec", "-aes256", "-in", made / "server.key", "-out", made / "locked.key"]
    subprocess.run([*command, "-passout", f"pass:{SECRET}"], check=True, capture_output=True, timeout=30)
    (made / "text").write_text("no PEM")
    return made


@pytest.mark.parametrize(
    ("files", "passphrase", "fragment"),
    [
        (("server.crt", "server.key", ""), None, ""),
        (("server.crt", "locked.key", "client.crt"), SECRET, ""),
        (("server.crt", "gone.key", ""), None, r"ssl_keyfile: the daemon cannot read .*gone.key: No such file"),
        (("text", "server.key", ""), None, "ssl_certfile: .*text holds no certificate"),
        (("server.crt", "text", ""), None, "ssl_keyfile: .*text holds no private key"),
        (("server.crt", "other.key", ""), None, "ssl_keyfile: .*other.key is not the key of the certificate"),
        (("server.crt", "locked.key", ""), "wrong", "ssl_keyfile_password: it does not open the key"),
        (("server.crt", "locked.key", ""), None, "ssl_keyfile_password: the key .* has a passphrase; give it"),
        (("server.crt", "server.key", "text"), None, "ssl_ca_certs: .*text holds no certificate"),
        (("", "", "client.crt"), None, "ssl_ca_certs: .* over TLS only"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    files: tuple[str, ...], passphrase: str | None, fragment: str, folder: Path
) -> None:
    paths = TlsFiles(*(str(folder / name) if name else "" for name in files))
    if not fragment:
        check_files(paths, passphrase)
        return
    with pytest.raises(ConfigError, match=rf"http_options\.{fragment}") as refusal:
        check_files(paths, passphrase)
    assert not passphrase or passphrase not in str(refusal.value)


@pytest.mark.parametrize("name", ["ssl_certfile", "ssl_keyfile", "ssl_ca_certs"])
def test_a_pipe_is_not_waited_for(folder: Path, tmp_path: Path, name: str) -> None:
    named = {"ssl_certfile": folder / "server.crt", "ssl_keyfile": folder / "server.key", "ssl_ca_certs": ""}
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    named[name] = pipe
    said: list[str] = []

    def check() -> None:
        try:
            check_files(TlsFiles(*map(str, named.values())), None)
        except ConfigError as error:
            said.append(str(error))

    thread = threading.Thread(target=check, daemon=True)
    thread.start()
    thread.join(5.0)
    assert said == [f"http_options.{name}: {pipe} is not a file"]


def test_a_certificate_that_is_too_weak_is_not_called_a_bad_key(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program to make certificates")
    files = TlsFiles(str(tmp_path / "weak.crt"), str(tmp_path / "weak.key"))
    command = ["openssl", "req", "-x509", "-newkey", "rsa:512", "-nodes", "-subj", "/CN=weak"]
    subprocess.run(
        [*command, "-keyout", files.key, "-out", files.certificate], check=True, capture_output=True, timeout=30
    )
    with pytest.raises(ConfigError, match=r"http_options\.ssl_certfile: .*weak\.crt is too weak"):
        check_files(files, None)


def test_grpc_takes_no_key_with_a_passphrase(folder: Path) -> None:
    with pytest.raises(ConfigError, match="gRPC"):
        check_files(TlsFiles(str(folder / "server.crt"), str(folder / "locked.key")), SECRET, has_grpc=True)


def names_of(certificate: Certificate) -> list[Any]:
    """Who vouches for clients."""
    return [one["subject"][0][0][1] for one in certificate.context.get_ca_certs()]


def test_who_vouches_for_clients_changes_though_the_key_comes_later(folder: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("chain", "key", "clients")}
    stamp = iter(range(1, 9))

    def copy(name: str, target: str) -> None:
        shutil.copy(folder / name, files[target])
        now = next(stamp)
        os.utime(files[target], (now, now))

    for name, target in (("server.crt", "chain"), ("server.key", "key"), ("client.crt", "clients")):
        copy(name, target)
    certificate = Certificate(str(files["chain"]), str(files["key"]), "--http-tls", str(files["clients"]))
    assert (certificate.refresh(), names_of(certificate)) == (False, ["client"])
    # one file after the other, with a look before the last one
    copy("other.crt", "clients")
    copy("other.crt", "chain")
    assert (certificate.refresh(), names_of(certificate)) == (False, ["client"])
    copy("other.key", "key")
    assert (certificate.refresh(), names_of(certificate)) == (True, ["other"])
    assert not certificate.refresh()


def test_a_passphrase_is_its_owners_alone(tmp_path: Path) -> None:
    for number in range(20):
        keep_passphrase(str(tmp_path), f"/key{number}", f"secret{number}")
    assert [passphrase_of(str(tmp_path), f"/key{number}") for number in (3, 4, 19)] == [None, "secret4", "secret19"]
    assert (tmp_path / PASSPHRASES).stat().st_mode & 0o777 == 0o600


def test_a_passphrase_can_be_forgotten(tmp_path: Path) -> None:
    settings, http = some_settings(state_dir=str(tmp_path)), replace(HTTP, ssl_certfile="/c", ssl_keyfile="/k")

    def send(**options: Any) -> None:
        keep_secrets(HTTPOptionsSchema(**options).http_wish(None), http, settings)

    send(ssl_certfile="/c", ssl_keyfile="/k", ssl_keyfile_password=SECRET)
    send(ssl_certfile="/c", ssl_keyfile="/other", ssl_keyfile_password=SECRET)
    send(ssl_certfile="/c", ssl_keyfile="/k")
    assert passphrase_of(str(tmp_path), "/k") == SECRET
    # of the key in force
    send(ssl_keyfile_password=None)
    assert [passphrase_of(str(tmp_path), key) for key in ("/k", "/other")] == [None, SECRET]
    send(ssl_certfile="/c", ssl_keyfile="/other", ssl_keyfile_password=None)
    assert passphrase_of(str(tmp_path), "/other") is None


def test_what_cannot_be_read_is_not_taken_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_passphrase(str(tmp_path), "/k", SECRET)

    def refuse(_: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(OSError, match="Too many"):
            keep_passphrase(str(tmp_path), "/other", "x")
        with pytest.raises(StateError, match=r"cannot read .*passphrases.json: Too many"):
            passphrase_of(str(tmp_path), "/k")
    assert passphrase_of(str(tmp_path), "/k") == SECRET


def test_nothing_shows_a_passphrase() -> None:
    assert SECRET not in repr(HttpWish(ssl_keyfile_password=SECRET))


def test_a_passphrase_is_read_when_something_has_changed(folder: Path, tmp_path: Path) -> None:
    keep_passphrase(str(tmp_path), "/other", "x")
    said = iter([SECRET, SECRET, "wrong", "wrong"])
    kept = tmp_path / PASSPHRASES
    pair = str(folder / "server.crt"), str(folder / "locked.key")
    certificate = Certificate(*pair, "--http-tls", "", lambda: next(said), str(kept))
    assert not any(certificate.refresh() for _ in range(3))
    assert next(said) == SECRET


def document(code: Path, **options: Any) -> dict[str, Any]:
    app: dict[str, Any] = {"name": "default", "import_path": "scheme:app", "runtime_env": {"working_dir": str(code)}}
    app["logging_config"] = {"logs_dir": str(code.parent / "own" / "logs")}
    return {"applications": [app], "http_options": options}


def asked(daemon: RunningDaemon, folder: Path, *more: Any) -> str:
    """What curl gets, or why it gets nothing."""
    url = f"https://127.0.0.1:{daemon.settings.http_port}/"
    command = ["curl", "-sS", "--http1.1", "--max-time", "5", "--cacert", folder / "server.crt", *more, url]
    done = subprocess.run(command, capture_output=True, timeout=20, text=True)
    return done.stdout or done.stderr


def written(directory: Path) -> bytes:
    """All files of a state directory but the one for passphrases."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != PASSPHRASES)
    return b"".join(path.read_bytes() for path in files)


def check_logs(daemon: RunningDaemon, logs_dir: Path) -> None:
    """The replica's file lies there, and is found by who asks for its lines; a directory that cannot be is refused."""
    [file] = logs_dir.iterdir()
    eventually(lambda: b"__call__ OK" in file.read_bytes())
    status, found = daemon.ask("GET", "/api/servd/v1/logs?application=default")
    assert status == 200
    assert any("__call__ OK" in line["text"] for line in found["lines"]), found
    wrong = document(logs_dir)
    wrong["applications"][0]["logging_config"] = {"logs_dir": f"{file}/below"}
    status, text = daemon.ask("PUT", "/api/serve/applications/", wrong)
    assert (status, "logs_dir of application 'default': the daemon cannot make" in str(text)) == (400, True), text


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_document_brings_tls_and_asks_clients_for_certificates(tmp_path: Path, folder: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "scheme.py").write_text(SCHEME)
    clients = tmp_path / "clients.pem"
    shutil.copy(folder / "client.crt", clients)
    tls = {"ssl_certfile": str(folder / "server.crt"), "ssl_keyfile": str(folder / "locked.key")}
    settings = settings_in(tmp_path)
    mine = ("--cert", folder / "client.crt", "--key", folder / "client.key")
    others = ("--cert", folder / "other.crt", "--key", folder / "other.key")
    with a_daemon(settings) as daemon:

        def put(**options: Any) -> tuple[int, Any]:
            return daemon.ask("PUT", "/api/serve/applications/", document(code, **options))

        assert put() == (200, "")
        daemon.wait_until_running()
        assert daemon.get() == (200, "http 1.1")
        check_logs(daemon, tmp_path / "own" / "logs")
        status, text = put(**tls, ssl_keyfile_password="wrong word")
        assert status == 400
        assert "it does not open the key" in str(text)
        assert "wrong word" not in str(text)
        assert daemon.get() == (200, "http 1.1")
        # while the application runs
        assert put(**tls, ssl_keyfile_password=SECRET, ssl_ca_certs=str(clients)) == (200, "")
        eventually(lambda: asked(daemon, folder, *mine) == "https 1.1")
        # the proxy of before accepts until the new one does
        eventually(lambda: len(daemon.pids("proxy")) == 1)
        assert asked(daemon, folder, "--http2", *mine) == "https 2"
        assert "https" not in asked(daemon, folder)
        assert "https" not in asked(daemon, folder, *others)
        # a proxy that has to start again
        [proxy] = daemon.pids("proxy")
        os.kill(proxy, signal.SIGKILL)
        eventually(lambda: asked(daemon, folder, *mine) == "https 1.1")
        # others vouch from now on, and nobody else
        shutil.copy(folder / "other.crt", tmp_path / "new")
        os.replace(tmp_path / "new", clients)
        eventually(lambda: asked(daemon, folder, *others) == "https 1.1")
        assert "https" not in asked(daemon, folder, *mine)
        answers = [daemon.ask("GET", path) for path in ("/api/servd/v1/status", "/api/servd/v1/revisions/2")]
        answers.append(daemon.ask("GET", "/api/serve/applications/?dialect=today"))
        assert all(status == 200 and SECRET not in str(body) for status, body in answers), answers
        assert answers[0][1]["http"]["tls"]
        assert answers[2][1]["http_options"]["ssl_ca_certs"] == str(clients)
        # what is left out stays, what is null goes
        assert put(ssl_ca_certs=None) == (200, "")
        eventually(lambda: asked(daemon, folder) == "https 1.1")
        assert put(ssl_certfile=None, ssl_keyfile=None) == (200, "")
        eventually(lambda: len(daemon.pids("proxy")) == 1 and "https" not in asked(daemon, folder))
        assert daemon.get() == (200, "http 1.1")
    assert SECRET.encode() not in written(tmp_path / "state")
