"""Identities: frozen, ordered, printable."""

import os
import random
import string

from servd.ground.quick_dataclass import dataclass

SYSTEM: random.Random = random.SystemRandom()
"""Draws from the kernel. The generator of the module `random` itself is the application's: it may seed it for the same numbers
each time, so nobody else may draw from it, and no ids may be made of it."""

_LETTERS = string.ascii_letters


@dataclass(frozen=True, slots=True, order=True)
class DeploymentID:
    """A deployment of an application, by its bare name. `str()` is the full name `<app>_<name>`."""

    app: str
    name: str

    def __init__(self, name: str, app_name: str = "default") -> None:
        # the order of Ray's, in which policies of users write it
        object.__setattr__(self, "app", app_name)
        object.__setattr__(self, "name", name)

    @property
    def app_name(self) -> str:
        """`app`, by its name in later releases."""
        return self.app

    @property
    def full_name(self) -> str:
        """`<app>_<name>`, or the bare name when the application has none."""
        return full_name_of(self.app, self.name)

    def __str__(self) -> str:
        return self.full_name

    def __repr__(self) -> str:
        return f"DeploymentID(name={self.name!r}, app_name={self.app!r})"


def full_name_of(app: str, name: str) -> str:
    """`<app>_<name>`, or the bare name when the application has none."""
    return f"{app}_{name}" if app else name


@dataclass(frozen=True, slots=True, order=True)
class ReplicaID:
    """One replica process of a deployment. `str()` is the replica tag `<full name>#<6 letters>`."""

    deployment: DeploymentID
    suffix: str

    def __str__(self) -> str:
        return f"{self.deployment.full_name}#{self.suffix}"

    @classmethod
    def of_tag(cls, deployment: DeploymentID, tag: str) -> "ReplicaID":
        """The id behind a replica tag of that deployment."""
        return cls(deployment, tag.rpartition("#")[2])

    @property
    def unique_id(self) -> str:
        """The six letters, by their name in later releases."""
        return self.suffix

    @property
    def deployment_id(self) -> DeploymentID:
        """`deployment`, by its name in later releases."""
        return self.deployment

    def to_full_id_str(self) -> str:
        """`SERVE_REPLICA::<app>#<name>#<6 letters>`: what later releases call the replica's actor."""
        parts = (self.deployment.app, self.deployment.name, self.suffix)
        return f"SERVE_REPLICA::{'#'.join(part for part in parts if part)}"


@dataclass(frozen=True, slots=True)
class ReplicaRank:
    """Place of a replica among those of its deployment, 0, 1, 2, ...: of all, of its node's among nodes, and on its node."""

    rank: int
    node_rank: int = 0
    local_rank: int = 0


def random_letters(count: int, rng: random.Random = SYSTEM) -> str:
    """`count` random ASCII letters."""
    return "".join(rng.choices(_LETTERS, k=count))


def node_id_of(state_dir: str) -> str:
    """Id of the node, 56 hexadecimal digits: the node is the state directory, so it is the same over restarts."""
    return random_hex(56, random.Random(os.path.realpath(state_dir)))


def random_uuid() -> str:
    """A random UUID, version 4."""
    digits = random_hex(30)
    return f"{digits[:8]}-{digits[8:12]}-4{digits[12:15]}-8{digits[15:18]}-{digits[18:]}"


def random_hex(digits: int, rng: random.Random = SYSTEM) -> str:
    """`digits` random lower-case hexadecimal digits."""
    return f"{rng.getrandbits(digits * 4):0{digits}x}"
