"""Where the daemon's process begins. Every process that it spawns imports this module as its main module, so it loads nothing."""

import sys


def main(arguments: list[str]) -> int:
    """`python -m servd.daemon.main SETTINGS_JSON [--tied-to=FD]`."""
    from servd.daemon.boot import begin

    return begin(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
