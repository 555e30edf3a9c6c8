"""The one rule for names of applications and deployments, and how any name is shown on a line or in a file name."""

import hashlib
import re

LONGEST_NAME = 256
"""Characters of a name. Ray Serve has no bound; people type these."""

_FILE_BYTES = 110
_DIGEST_DIGITS = 16

PATTERN = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"
"""The rule for the characters, as a JSON Schema says it."""

# C0 and C1 controls with DEL, the two separators that end a line, and lone surrogates, which no file or wire holds
_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# a tab and the end of a line are text; the two separators end a line for some readers
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def check_name(name: str) -> str:
    """The name itself. Spaces, slashes, `#`, `%` and every script are fine.

    Raises:
        ValueError: it is longer than `LONGEST_NAME` characters, or holds a control character or the end of a line.
    """
    if len(name) > LONGEST_NAME:
        raise ValueError(f"a name has at most {LONGEST_NAME} characters, this one has {len(name)}: {name[:20]!r}...")
    found = _BREAKS.search(name)
    if found:
        raise ValueError(f"a name must not hold control characters or ends of lines, this one has {found[0]!r}")
    return name


def on_one_line(text: str) -> str:
    """`text` with what would end or break a line spelled as in Python; other text as it is.

    Names that were stored before there was a rule, and paths of requests, may hold anything.
    """
    return _BREAKS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def without_controls(text: str) -> str:
    """`text` with control characters spelled as in Python, all but tabs and ends of lines: nothing in it commands a terminal."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def in_file_name(name: str) -> str:
    """A part of a file name for `name`: itself as far as a file name can hold it; at most 110 bytes, the end a digest then."""
    plain = on_one_line(name).replace("/", "_")
    if len(plain.encode()) <= _FILE_BYTES:
        return plain
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:_DIGEST_DIGITS]
    kept = plain.encode()[: _FILE_BYTES - 1 - len(digest)].decode(errors="ignore")
    return f"{kept}~{digest}"
