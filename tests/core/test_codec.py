"""Messages to bytes and back, whatever a user's JSON holds."""

from typing import Any

import pytest

from servd.codec import decode_message, encode_message
from servd.messages import BuildOrder


@pytest.mark.parametrize("value", [0, -1, 2**63, -(2**63) - 1, 2**64, 10**300, -(10**300), 1.5, None, "ü", {"a": True}])
def test_values_of_documents_survive(value: Any) -> None:
    order = BuildOrder("f", "b", "app", "m:a", {"x": value}, {})
    assert decode_message(encode_message(order)) == order
