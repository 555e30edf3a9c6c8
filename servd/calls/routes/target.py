"""The target of a request where it is no path. Pure."""


def unusual_target(url: bytes) -> tuple[bytes, bytes]:
    """Path and query of a request target that does not begin with a slash.

    The asterisk form is its own path: nothing is routed there but the application at the root.
    """
    scheme, found, rest = url.partition(b"://")
    if not found or not scheme.isalnum():
        return url, b""
    place, _, query = rest.partition(b"?")
    return b"/" + place.partition(b"/")[2], query
