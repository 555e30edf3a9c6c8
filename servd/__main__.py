"""Entry of the `servd` command and of `python -m servd`."""

import importlib
import io
import os
import signal
import sys


def main() -> None:
    """Run the command; Ctrl-C while its code is still being loaded ends it without a word."""
    if os.getpid() == 1:
        # of a container: the kernel drops what process 1 has no handler for, and whoever stops it would wait in vain
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _prepare_streams()
    cli = importlib.import_module("servd.cli")
    if is_ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


def _prepare_streams() -> None:
    """What the encoding of stdout has no letters for is shown as escapes; what is printed on a closed stream goes nowhere."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    for fd, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_WRONLY)
            # for those that are started too: a socket must not get the number
            os.dup2(null, fd)
            os.set_inheritable(fd, True)
            if null != fd:
                os.close(null)
            setattr(sys, name, open(fd, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 - for as long as we live


if __name__ == "__main__":
    main()
