"""What documents name on this host. Directories of code become snapshots by content hash: builds, replicas and restarts use
these, never the live directory. Directories for log files and files of TLS are tried.
"""

import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

from servd.controller.file_store import FileStore
from servd.controller.plan.goal import HttpGoal
from servd.daemon.data_tls import check_files, check_kept, files_in_force, keep_passphrase
from servd.documents.code_entries import code_entries
from servd.documents.control_plane import ApplicationDocument
from servd.documents.runtime_env import is_local_directory, local_path, local_uris
from servd.documents.sent import HttpWish
from servd.exceptions import ConfigError, GoalNotSavedError, HostLimitError, StateError
from servd.ground.durable import sync_directory, sync_tree
from servd.ground.host_limits import host_limit_in, told
from servd.ground.settings import Settings, make_private_dir
from servd.observability.log_file import directory_trouble

MAX_SNAPSHOT_BYTES = 512 * 1024 * 1024
_DIGEST = re.compile("[0-9a-f]{64}")


def take_snapshots(
    documents: Iterable[ApplicationDocument], code_dir: str, config_file: str = ""
) -> dict[str, dict[str, str]]:
    """Snapshot every local directory that the documents name. Blocks; has no other effect than new directories.

    Args:
        config_file: absolute path of the file that the documents were read from: it is no code, and left out; "" = unknown.

    Returns:
        Application name -> local directory as written -> directory of its snapshot.

    Raises:
        ConfigError: a directory is missing, unreadable or too large; names application and directory.
        GoalNotSavedError: the state directory takes no file.
        HostLimitError: no descriptor is left for it.
    """
    found: dict[str, dict[str, str]] = {}
    for document in documents:
        for env in _environments(document):
            excludes = tuple(env.get("excludes") or ())
            for uri in local_uris(env):
                if is_local_directory(uri):
                    where = f'application "{document.name}": runtime_env: {uri}'
                    found.setdefault(document.name, {})[uri] = snapshot(
                        local_path(uri), excludes, code_dir, where, config_file
                    )
    return found


def _environments(document: ApplicationDocument) -> Iterator[Mapping[str, Any]]:
    yield document.runtime_env
    for override in document.deployments:
        yield (override.get("ray_actor_options") or {}).get("runtime_env") or {}


def snapshot(directory: str, excludes: Sequence[str], code_dir: str, where: str, left_out: str = "") -> str:
    """Copy a directory to `<code_dir>/<sha256 of its content>`, unless that is there; gives its path.

    Args:
        excludes: patterns as `fnmatch` has them, for a name or for a path relative to `directory`.
        where: what to begin error texts with.
        left_out: absolute path of one more file that is excluded; "" = none.

    Raises:
        ConfigError: it is missing, unreadable, or larger than 512 MiB after `excludes`.
        GoalNotSavedError: the copy cannot be written.
        HostLimitError: no descriptor is left for it.
    """
    if not os.path.isdir(directory):
        raise ConfigError(f"{where}: there is no directory {directory}")
    try:
        make_private_dir(code_dir, with_parents=False)
        draft = tempfile.mkdtemp(dir=code_dir, prefix=".draft-")
    except (OSError, StateError) as error:
        raise GoalNotSavedError(f"{where}: cannot write a snapshot in {code_dir}: {told(error)}") from error
    try:
        digest = _copy(directory, draft, excludes, where, left_out)
        target = os.path.join(code_dir, digest)
        if not os.path.isdir(target):
            # on disk before its name is, and that before the goal that names it
            sync_tree(draft)
            os.rename(draft, target)
            sync_directory(code_dir)
            sync_directory(os.path.dirname(code_dir))
        return target
    except ConfigError:
        shutil.rmtree(draft, ignore_errors=True)
        _files_of(code_dir).drop_unused()
        raise
    except StateError as error:
        raise GoalNotSavedError(f"{where}: cannot write a snapshot in {code_dir}: {told(error)}") from error
    except OSError as error:
        if limit := host_limit_in(error):
            raise HostLimitError(f"{where}: cannot take a snapshot of {directory}: {limit}") from error
        if error.filename2 is None and error.filename and str(error.filename).startswith(directory):
            raise ConfigError(f"{where}: cannot read {error.filename}: {error.strerror}") from error
        raise GoalNotSavedError(f"{where}: cannot write a snapshot in {code_dir}: {error.strerror}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _files_of(code_dir: str) -> FileStore:
    return FileStore(os.path.join(os.path.dirname(code_dir), "files"))


def _copy(directory: str, draft: str, excludes: Sequence[str], where: str, left_out: str) -> str:
    total = 0
    content = hashlib.sha256()
    files = _files_of(os.path.dirname(draft))
    # never the daemon's own files: the copy would contain itself, and differ each time
    state_dir = os.path.realpath(os.path.join(draft, os.pardir, os.pardir))
    for entry in code_entries(directory, excludes, beside=state_dir, left_out=left_out):
        target = os.path.join(draft, entry.path)
        content.update(f"{entry.path}\0{entry.is_directory:d}{entry.is_executable:d}\0{entry.target}\0".encode())
        if entry.is_directory:
            os.mkdir(target, 0o700)
        elif entry.target:
            os.symlink(entry.target, target)
        else:
            source = os.path.join(directory, entry.path)
            digest, size = files.link(source, target, entry.is_executable, MAX_SNAPSHOT_BYTES - total)
            content.update(digest)
            total += size
            if total > MAX_SNAPSHOT_BYTES:
                limit = MAX_SNAPSHOT_BYTES // 1024**2
                raise ConfigError(
                    f"{where}: {directory} has more than {limit} MiB; leave data out with runtime_env excludes"
                )
    return content.hexdigest()


def prune(code_dir: str, kept: Set[str], *, dry_run: bool) -> tuple[list[str], int]:
    """Remove snapshots and shipped applications that nobody needs, and the files that only they had. Blocks.

    Args:
        kept: names in `code_dir` that stay.
        dry_run: only say what would go.

    Returns:
        Names of what goes, and bytes that this frees (in a dry run those of files that no other snapshot has now).
    """
    gone: list[str] = []
    freed = 0
    for entry in os.scandir(code_dir) if os.path.isdir(code_dir) else ():
        name = entry.name.removesuffix(".pkl")
        if entry.name in kept or not _DIGEST.fullmatch(name):
            continue
        gone.append(entry.name)
        freed += _own_bytes(entry.path)
        if dry_run:
            continue
        if entry.is_dir(follow_symlinks=False):
            # at once out of the way: half a snapshot would be taken for a whole one
            draft = os.path.join(code_dir, f".draft-{entry.name}")
            os.rename(entry.path, draft)
            shutil.rmtree(draft)
        else:
            os.unlink(entry.path)
    if not dry_run and gone:
        _files_of(code_dir).drop_unused()
    return sorted(gone), freed


def _own_bytes(path: str) -> int:
    """Bytes of files that nothing else links to but the store."""
    if os.path.isfile(path):
        return os.stat(path).st_size
    sizes = [os.lstat(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names]
    return sum(about.st_size for about in sizes if stat.S_ISREG(about.st_mode) and about.st_nlink <= 2)


def check_log_directories(documents: Iterable[ApplicationDocument]) -> None:
    """Look at each `logs_dir` of the applications and their overrides. Replicas make what is not there.

    Raises:
        ConfigError: lists those in which no file could be written, and whose they are.
    """
    problems = []
    for document in documents:
        wanted = [(f"application {document.name!r}", document.logging_config)]
        wanted += [(f"deployment {one['name']!r}", one.get("logging_config")) for one in document.deployments]
        for whose, config in wanted:
            logs_dir = (config or {}).get("logs_dir")
            if logs_dir and (trouble := directory_trouble(logs_dir)):
                problems.append(f"logging_config.logs_dir of {whose}: the daemon {trouble}")
    if problems:
        raise ConfigError("\n".join(problems))


def check_tls(wish: HttpWish, http: HttpGoal | None, settings: Settings) -> None:
    """Refuse files that the port could not use; one that says nothing of them is not held up by theirs.

    Args:
        http: options after it, None = Serve shall not run.

    Raises:
        ConfigError: which file, and what is wrong with it.
    """
    if http is not None and (wish.names_tls or wish.grpc_servicers):
        files = files_in_force(http.tls_files, settings)
        said, has_grpc = wish.ssl_keyfile_password, bool(http.grpc_port)
        if said is None:
            check_kept(files, settings.state_dir, has_grpc=has_grpc)
        else:
            check_files(files, said or None, has_grpc=has_grpc)


def keep_secrets(wish: HttpWish, http: HttpGoal | None, settings: Settings) -> None:
    """Put the passphrase where the proxies find it, or take it away from there.

    Args:
        http: options after it, None = Serve shall not run.

    Raises:
        GoalNotSavedError: it could not be written.
    """
    key = wish.ssl_keyfile or (files_in_force(http.tls_files, settings).key if http is not None else "")
    if wish.ssl_keyfile_password is not None and key:
        try:
            keep_passphrase(settings.state_dir, key, wish.ssl_keyfile_password)
        except OSError as error:
            text = f"the passphrase of {key} was not saved in {settings.state_dir}: {error.strerror}"
            raise GoalNotSavedError(f"{text}; the accepted goal goes on") from error
