"""What a replica says of itself to the code that it runs."""

import pytest

from servd import context as public
from servd.calls.replica_context import ReplicaContext, set_replica_context
from servd.ground.ids import DeploymentID, ReplicaID


@pytest.mark.parametrize(
    ("switch", "app", "deployment", "tag"),
    [
        ("0", "shop", "Cart", "aBcDeF"),
        ("0", "", "Cart", "aBcDeF"),
        ("1", "shop", "shop_Cart", "shop_Cart#aBcDeF"),
        ("1", "", "Cart", "Cart#aBcDeF"),
    ],
)
def test_names_are_bare_unless_the_application_is_of_before(
    monkeypatch: pytest.MonkeyPatch, switch: str, app: str, deployment: str, tag: str
) -> None:
    monkeypatch.setenv("SERVD_LEGACY_HANDLES", switch)
    context = ReplicaContext(ReplicaID.of_tag(DeploymentID("Cart", app), "shop_Cart#aBcDeF"))
    assert (context.app_name, context.deployment, context.replica_tag) == (app, deployment, tag)
    assert (context.replica_id.unique_id, context.replica_id.deployment_id.name) == ("aBcDeF", "Cart")


def test_the_replica_is_read_under_ray_serves_private_name_too() -> None:
    assert public._get_internal_replica_context() is None
    context = ReplicaContext(ReplicaID.of_tag(DeploymentID("Cart", "shop"), "shop_Cart#aBcDeF"))
    set_replica_context(context)
    try:
        assert public._get_internal_replica_context() is context
    finally:
        set_replica_context(None)


@pytest.mark.parametrize(
    ("app", "name"), [("shop", "SERVE_REPLICA::shop#Cart#aBcDeF"), ("", "SERVE_REPLICA::Cart#aBcDeF")]
)
def test_the_name_of_its_actor(app: str, name: str) -> None:
    assert ReplicaID(DeploymentID("Cart", app), "aBcDeF").to_full_id_str() == name
