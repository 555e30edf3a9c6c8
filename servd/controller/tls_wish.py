"""What a document says of the data port's TLS, against the files that are there."""

from servd.controller.plan.goal import HttpGoal
from servd.daemon.data_tls import check_files, files_in_force, keep_passphrase, passphrase_of
from servd.documents.sent import HttpWish
from servd.exceptions import GoalNotSavedError
from servd.ground.settings import Settings


def check_tls(wish: HttpWish, http: HttpGoal | None, settings: Settings) -> None:
    """Refuse files that the port could not use; one that says nothing of them is not held up by theirs.

    Args:
        http: options after it, None = Serve shall not run.

    Raises:
        ConfigError: which file, and what is wrong with it.
    """
    if http is not None and (wish.names_tls or wish.grpc_servicers):
        files = files_in_force(http.tls_files, settings)
        said = wish.ssl_keyfile_password or passphrase_of(settings.state_dir, files.key)
        check_files(files, said, has_grpc=bool(http.grpc_port))


def keep_secrets(wish: HttpWish, settings: Settings) -> None:
    """Put the passphrase where the proxies find it.

    Raises:
        GoalNotSavedError: it could not be written.
    """
    if wish.ssl_keyfile_password is not None and wish.ssl_keyfile:
        try:
            keep_passphrase(settings.state_dir, wish.ssl_keyfile, wish.ssl_keyfile_password)
        except OSError as error:
            text = f"the passphrase of {wish.ssl_keyfile} was not saved in {settings.state_dir}: {error.strerror}"
            raise GoalNotSavedError(f"{text}; the accepted goal goes on") from error
