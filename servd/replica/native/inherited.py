"""What replicas would share with the process that they are forked from, and with each other: what of it forbids to fork, and what
each child has anew.
"""

from collections.abc import Sequence, Set

from servd.ground.process import open_fds
from servd.replica.native.connections import Connection, end_inherited, let_end_in_children, open_connections
from servd.replica.native.open_files import let_open_in_children, open_files, open_inherited
from servd.replica.native.pipes import open_pipes
from servd.replica.native.process_pools import note_process_pools, renew_process_pools
from servd.replica.native.shared_locks import note_shared_locks, renew_shared_locks
from servd.replica.native.waiting_sets import note_waiting_sets, renewed_waiting_sets
from servd.replica.native.wakers import note_wakers, renew_wakers


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
    note_shared_locks()
    let_end_in_children(lines)
    opened = open_fds() - besides
    let_open_in_children(open_files(opened))
    note_wakers(opened)
    note_waiting_sets(opened)


def renew() -> None:
    """To be called in a forked child, before any code of the user's."""
    renew_process_pools()
    with renewed_waiting_sets():
        end_inherited()
        open_inherited()
        renew_wakers()
    renew_shared_locks()
