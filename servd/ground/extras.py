"""Libraries that servd uses only where somebody asks for what they do."""

import importlib.util

GRPC_MISSING = "gRPC needs the package grpcio: pip install 'servd-serve[grpc]'"


def is_there(library: str) -> bool:
    """Whether a library could be imported; it is not, though packages around it are."""
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:
        return False
