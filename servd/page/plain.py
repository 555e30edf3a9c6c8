"""The page for whoever lets no script run: tables of how everything is at this moment. Pure.

A name or a message of an application may be anything: each goes through `html.escape`.
"""

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from servd.documents.control_plane import InstanceView
from servd.page.rows import LONGEST_TEXT

PLACE = "<!-- tables -->"
"""Where `index.html` has the deployments; with a script it shows them until that has more to show."""
PLACE_OF_REPLICAS = "<!-- replicas -->"

_DEPLOYMENTS = ("Application", "Deployment", "Status", "Replicas", "Requests running", "Message")
_REPLICAS = ("Replica", "State", "Pid", "Requests running", "Message")
_DEAD = ("Replica that is gone", "Exit", "Reason")


def with_tables(page: str, view: InstanceView) -> str:
    """`index.html` with its tables."""
    return page.replace(PLACE, _first(view), 1).replace(PLACE_OF_REPLICAS, _others(view), 1)


def _first(view: InstanceView) -> str:
    notice = f'<p class="notice">{escape(view.notice)}</p>' if view.notice else ""
    if not view.running:
        return f"{notice}<p>No application is deployed.</p>"
    return notice + _table("Deployments", _DEPLOYMENTS, _deployments(view))


def _others(view: InstanceView) -> str:
    replicas = [
        (replica.replica_id, replica.state, str(replica.pid or ""), str(replica.ongoing), replica.message)
        for app in view.applications
        for one in app.deployments
        for replica in one.replicas
    ]
    return _table("Replicas", _REPLICAS, replicas) + _table("Replicas that are gone", _DEAD, _dead(view))


def _deployments(view: InstanceView) -> Iterator[tuple[str, ...]]:
    for app in view.applications:
        yield app.name, "", app.standing, "", "", app.standing_message or app.message
        for one in app.deployments:
            running = sum(replica.state in ("RUNNING", "UPDATING") for replica in one.replicas)
            ongoing = sum(replica.ongoing for replica in one.replicas)
            counts = f"{running} of {one.target_num_replicas}"
            yield app.name, one.bare_name, one.standing, counts, str(ongoing), one.message


def _dead(view: InstanceView) -> Iterator[tuple[str, ...]]:
    for app in view.applications:
        for one in app.deployments:
            for dead in one.recent_dead:
                code = dead.exit_code
                how = "" if code is None else f"signal {-code}" if code < 0 else str(code)
                yield dead.replica_id, how, dead.reason


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"


def _text(text: str) -> str:
    return escape(text[:LONGEST_TEXT])
