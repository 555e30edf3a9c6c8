"""The messages that docs/faq.md explains are messages that there are."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MESSAGES = re.findall(r"^### `(.*)`$", (ROOT / "docs" / "faq.md").read_text(), re.MULTILINE)
# what Python itself says, and the host
PYTHONS = {
    "Address already in use",
    "No module named '…'",
    "No such file or directory: '…'",
    "There is no current event loop in thread …",
    "no running event loop",
    "… has no attribute '…'",
}


@cache
def sources() -> str:
    """All code, as if literals that follow each other were one."""
    texts = [path.read_text() for path in (ROOT / "servd").rglob("*.py")] + [(ROOT / "servd_entry.py").read_text()]
    return re.sub(r'"\s*\n?\s*f?"', "", "\n".join(texts)).replace("`", "")


@pytest.mark.parametrize("message", [message for message in MESSAGES if message not in PYTHONS])
def test_a_message_is_one_of_servds(message: str) -> None:
    missing = [part for part in message.split("…") if part.strip(": ;") and part not in sources()]
    assert not missing, message


def test_there_are_messages() -> None:
    assert set(MESSAGES) > PYTHONS
