"""Files of the data port's TLS: which are in force, whether they can be used, and where a key's passphrase is kept.

A passphrase goes from the document into one file of the state directory, mode 0600, and from there into the proxies; it is in no
goal, revision, message, log line or answer.
"""

import json
import os
import ssl
import stat
from pathlib import Path

from servd.daemon.tls import answer_of
from servd.exceptions import ConfigError, StateError
from servd.ground.durable import sync_directory
from servd.ground.quick_dataclass import dataclass
from servd.ground.settings import Settings

PASSPHRASES = "http_key_passphrases.json"
"""In the state directory: path of a key -> its passphrase."""
_KEPT = 16


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files, "" = none: certificate with its chain, its key, and what vouches for clients, which need one then."""

    certificate: str = ""
    key: str = ""
    client_ca: str = ""


def files_in_force(given: tuple[str, ...], settings: Settings) -> TlsFiles:
    """Those that documents gave, over those of the flags.

    Args:
        given: `HttpGoal.tls_files`.
    """
    certificate, key, client_ca = given or ("", "", "")
    if certificate:
        return TlsFiles(certificate, key, client_ca)
    return TlsFiles(settings.http_tls_cert or "", settings.http_tls_key or "", client_ca)


def passphrase_of(state_dir: str, key: str) -> str | None:
    """What opens that key, if a document said it.

    Raises:
        StateError: what is kept cannot be read.
    """
    path = Path(state_dir, PASSPHRASES)
    try:
        return _kept(path).get(key)
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}") from error


def _kept(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def keep_passphrase(state_dir: str, key: str, passphrase: str) -> None:
    """Remember what opens a key, for proxies that start later; the latest 16 keys are remembered.

    Args:
        passphrase: "" = forget the one of before.

    Raises:
        OSError: it was not kept.
    """
    path = Path(state_dir, PASSPHRASES)
    known = _kept(path)
    if known.get(key, "") == passphrase:
        return
    known.pop(key, None)
    if passphrase:
        known[key] = passphrase
    beside = path.with_suffix(".new")
    beside.unlink(missing_ok=True)
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(dict(list(known.items())[-_KEPT:]), file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_directory(state_dir)


def check_files(files: TlsFiles, passphrase: str | None, *, has_grpc: bool = False) -> None:
    """Check that a port can speak TLS with these. Blocks, for as long as the disk does.

    Args:
        has_grpc: the port of gRPC, whose library takes no passphrase, uses them too.

    Raises:
        ConfigError: says which file, what is wrong with it and what to do; never the passphrase.
    """
    if not files.certificate:
        if files.client_ca:
            raise ConfigError(
                "http_options.ssl_ca_certs: clients can show certificates over TLS only; give ssl_certfile and ssl_keyfile too"
            )
        return
    named = {"ssl_certfile": files.certificate, "ssl_keyfile": files.key, "ssl_ca_certs": files.client_ca}
    for option, path in named.items():
        if path:
            _check_readable(option, path)
    for option in ("ssl_certfile", "ssl_ca_certs"):
        if named[option]:
            _check_certificates(option, named[option])
    if _is_locked(files, passphrase) and has_grpc:
        raise ConfigError(
            f"http_options.ssl_keyfile: {files.key} has a passphrase, which gRPC's library does not take, and the port of gRPC "
            "speaks TLS with the same files; give a key without a passphrase, or no grpc_servicer_functions"
        )


def check_kept(files: TlsFiles, state_dir: str, *, has_grpc: bool) -> None:
    """As `check_files`, with the passphrase that is kept for the key."""
    check_files(files, passphrase_of(state_dir, files.key) if files.key else None, has_grpc=has_grpc)


def _check_readable(option: str, path: str) -> None:
    try:
        # before it is opened: a pipe would be waited for
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ConfigError(f"http_options.{option}: {path} is not a file")
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        raise ConfigError(f"http_options.{option}: the daemon cannot read {path}: {error.strerror}") from None


def _check_certificates(option: str, path: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"http_options.{option}: {path} holds no certificate in PEM form ({error})") from None


def _is_locked(files: TlsFiles, passphrase: str | None) -> bool:
    asked: list[bool] = []
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            files.certificate, files.key, password=answer_of(passphrase, asked)
        )
    except (OSError, ssl.SSLError, ValueError) as error:
        reason = str(getattr(error, "reason", ""))
        if reason.endswith(("_TOO_SMALL", "_TOO_WEAK")):
            said = f"ssl_certfile: {files.certificate} is too weak for OpenSSL ({error}); make it with a longer key and SHA-256"
        elif reason == "KEY_VALUES_MISMATCH":
            said = f"ssl_keyfile: {files.key} is not the key of the certificate {files.certificate}"
        elif asked and passphrase is None:
            said = f"ssl_keyfile_password: the key {files.key} has a passphrase; give it"
        elif asked:
            said = f"ssl_keyfile_password: it does not open the key {files.key}"
        else:
            said = f"ssl_keyfile: {files.key} holds no private key in PEM form ({error})"
        raise ConfigError(f"http_options.{said}") from None
    return bool(asked)
