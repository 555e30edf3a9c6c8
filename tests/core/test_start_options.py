"""What options of `servd start` mean."""

import pytest

from servd.commands.cli_options import HttpPlace, location_of


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (None, None),
        ("NoServer", "NoServer"),
        ("Disabled", "NoServer"),
        ("HeadOnly", "HeadOnly"),
        ("EveryNode", "EveryNode"),
    ],
)
def test_where_proxies_run_is_said_in_the_words_of_either_ray(given: str | None, meant: str | None) -> None:
    assert location_of(HttpPlace(given) if given else None) == meant
