"""The floors of the house: who may import whom. `python -m tests.house.floors` draws them into `docs/architecture.md`.

A room imports rooms on the floors below it, and public modules on its own floor or below. A public module imports
rooms and public modules on its own floor or below. Nothing imports in a circle.
"""

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
_BEGIN, _END = "<!-- floors: made by `python -m tests.house.floors` -->", "<!-- end of floors -->"
_WIDTH = 118


@dataclass(frozen=True)
class Floor:
    """rooms: folders. public: modules at the root of the package that stand on this floor."""

    rooms: tuple[str, ...] = ()
    public: tuple[str, ...] = ()


# from the ground up
FLOORS = (
    Floor(("ground",), ("exceptions",)),
    Floor(("wire.grpc",)),
    Floor(("wire",)),
    Floor(("documents", "observability", "daemon", "wire.websocket"), ("config", "schema")),
    Floor(("calls.routes", "observability.otel")),
    Floor(("calls",), ("handle", "metrics", "client", "context", "grpc_util")),
    Floor(
        ("app", "compat", "page", "proxy.grpc"),
        ("batching", "multiplex", "dag", "deployment_graph", "drivers", "http_adapters"),
    ),
    Floor(("proxy", "rest", "commands")),
    Floor(("controller.plan", "proxy.hypercorn", "replica.code", "replica.grpc", "replica.native", "replica.policies")),
    Floor(("controller.shown",)),
    Floor(("controller", "replica")),
    Floor(("local",)),
    Floor((), ("api", "run_targets", "testing")),
    Floor(("engines.ray",)),
    Floor(("engines.on_ray",)),
    Floor(("engines",), ("cli", "__main__", "")),
)
FLOOR_OF = {name: number for number, floor in enumerate(FLOORS) for name in (*floor.rooms, *floor.public)}
ROOMS = {room for floor in FLOORS for room in floor.rooms}


def room_of(module: str) -> str:
    """The room that a module (without `servd.`) stands in; for a public module its own name, "" for the package."""
    parts = module.split(".")
    for size in (2, 1):
        room = ".".join(parts[:size])
        if room in ROOMS and (len(parts) > size or room == module):
            return room
    return module


def may_import(module: str, other: str) -> bool:
    """Whether the floors let a module import another."""
    mine, its = room_of(module), room_of(other)
    if mine == its:
        return True
    is_room = mine in ROOMS and its in ROOMS
    return FLOOR_OF[its] < FLOOR_OF[mine] + (0 if is_room else 1)


def picture() -> str:
    """The floors as a picture, the highest first."""
    inner = _WIDTH - 4
    line = "+" + "-" * (inner + 2) + "+"
    rows = [line]
    for number in reversed(range(len(FLOORS))):
        floor = FLOORS[number]
        rooms = "   ".join(f"[ {room.replace('.', '/')} ]" for room in floor.rooms)
        public = ", ".join(name or "servd" for name in floor.public)
        first = f"{number}  {rooms}"
        if len(first) + len(public) < inner:
            rows.append(f"| {first:<{inner - len(public)}}{public} |")
        else:
            rows += [f"| {first:<{inner}} |", f"| {public:>{inner}} |"]
        rows.append(line)
    return "\n".join(rows)


def drawn(page: str) -> str:
    """The page with today's picture in its place."""
    block = f"{_BEGIN}\n```\n{picture()}\n```\n{_END}"
    return re.sub(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", lambda _: block, page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text()))
