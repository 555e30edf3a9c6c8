"""What replicas would share with the process that they are forked from, and with each other: what of it forbids to fork, and what
each child has anew.
"""

from collections.abc import Sequence, Set

from servd.ground.process import open_fds
from servd.replica.native.connections import Connection, end_inherited, let_end_in_children, open_connections
from servd.replica.native.open_files import let_open_in_children, open_files, open_inherited
from servd.replica.native.pipes import open_pipes
from servd.replica.native.process_pools import note_process_pools, renew_process_pools


def shared_lines(besides: Set[int]) -> list[Connection]:
    """By which this process hears of others, over the network or by a pipe.

    Args:
        besides: descriptors that were there before.

    Raises:
        OSError: there is no descriptor left to look with.
    """
    fds = open_fds() - besides
    return open_connections(fds) + open_pipes(fds)


def let_be_renewed(lines: Sequence[Connection], besides: Set[int]) -> None:
    """To be called in a process that replicas are forked from, before the first.

    Args:
        lines: as `shared_lines` has found them. besides: as there.
    """
    note_process_pools()
    let_end_in_children(lines)
    let_open_in_children(open_files(open_fds() - besides))


def renew() -> None:
    """To be called in a forked child, before any code of the user's."""
    renew_process_pools()
    end_inherited()
    open_inherited()
