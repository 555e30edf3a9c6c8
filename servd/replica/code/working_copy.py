"""Directories that an application may write to: copies of the stored code, which others use too."""

import fcntl
import os
import shutil
import tempfile

from servd.exceptions import DeployError
from servd.ground.settings import work_dir
from servd.replica.code.code_cache import cache_dir
from servd.wire.build_messages import BuildOrder

_FICLONE = 0x40049409


def working_copy(directory: str, order: BuildOrder, name: str = "") -> str:
    """A copy of `directory` for all processes of this order, if that is stored code; else `directory` itself.

    With a `name` the copy has it, and a directory of its own around it. It is made once and ends with those processes (the
    controller removes it).

    Raises:
        DeployError: it cannot be written.
    """
    stored = os.path.realpath(cache_dir(order.state_dir)) + os.sep
    if not order.state_dir or not os.path.realpath(directory).startswith(stored):
        return directory
    home, stored_name = copies_of(order), os.path.basename(directory)
    if name:
        home = os.path.join(home, f"{stored_name}.package")
    target = os.path.join(home, name or stored_name)
    if os.path.isdir(target):
        return target
    try:
        os.makedirs(home, 0o700, exist_ok=True)
        draft = tempfile.mkdtemp(dir=home, prefix=".draft-")
        try:
            shutil.copytree(directory, draft, symlinks=True, copy_function=_copy, dirs_exist_ok=True)
            os.chmod(draft, 0o700)
            os.rename(draft, target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except (OSError, shutil.Error) as error:
        # another process of this order may have been faster
        if not os.path.isdir(target):
            raise DeployError(f"cannot copy {directory} to {target}: {error}") from error
    return target


def copies_of(order: BuildOrder) -> str:
    """The directory that holds all copies for this order."""
    return os.path.join(work_dir(order.state_dir), order.fork_server_id)


def _copy(source: str, target: str) -> str:
    with open(source, "rb") as reader, open(target, "wb") as writer:
        try:
            # costs nothing where the file system can share blocks
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError:
            shutil.copyfileobj(reader, writer, 1024 * 1024)
        # stored files are read-only, these are the application's
        os.fchmod(writer.fileno(), os.fstat(reader.fileno()).st_mode & 0o777 | 0o600)
    return target
