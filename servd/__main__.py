"""Entry of the `servd` command and of `python -m servd`."""

import importlib
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
    cli = importlib.import_module("servd.cli")
    if is_ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


if __name__ == "__main__":
    main()
