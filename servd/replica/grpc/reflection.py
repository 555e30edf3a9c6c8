"""Answers what tools ask of the message types that this process has imported: reflection."""

import sys
from typing import Any

from servd.calls.grpc_services import error_answer, extensions_answer, files_answer
from servd.exceptions import ProtocolError
from servd.wire.grpc.codes import Code
from servd.wire.grpc.protobuf import fields

_FILE, _SYMBOL, _EXTENSION, _EXTENSIONS_OF = 3, 4, 5, 6


def reflected(request: bytes) -> bytes:
    """The `ServerReflectionResponse` to a `ServerReflectionRequest`, the one for all services excepted."""
    pools = sys.modules.get("google.protobuf.descriptor_pool")
    if pools is None:
        return error_answer(request, Code.UNIMPLEMENTED, "the messages of this application are not protobuf's")
    try:
        return _answer(request, pools.Default())
    except KeyError as error:
        return error_answer(request, Code.NOT_FOUND, str(error.args[0] if error.args else error))
    except (ProtocolError, UnicodeDecodeError) as error:
        return error_answer(request, Code.INVALID_ARGUMENT, str(error))


def _answer(request: bytes, pool: Any) -> bytes:
    for number, value in fields(request):
        if not isinstance(value, bytes):
            continue
        if number == _FILE:
            return files_answer(request, _with_dependencies(pool.FindFileByName(value.decode())))
        if number == _SYMBOL:
            return files_answer(request, _with_dependencies(pool.FindFileContainingSymbol(value.decode())))
        if number == _EXTENSION:
            about = dict(fields(value))
            base = pool.FindMessageTypeByName(_text(about.get(1)))
            return files_answer(request, _with_dependencies(pool.FindExtensionByNumber(base, about.get(2)).file))
        if number == _EXTENSIONS_OF:
            name = value.decode()
            found = pool.FindAllExtensions(pool.FindMessageTypeByName(name))
            return extensions_answer(request, name, sorted(extension.number for extension in found))
    raise ProtocolError("the request asks for nothing that is known here")


def _text(value: int | bytes | None) -> str:
    return value.decode() if isinstance(value, bytes) else ""


def _with_dependencies(file: Any) -> list[bytes]:
    """The file and all that it imports, each once."""
    found: dict[str, bytes] = {}
    waiting = [file]
    while waiting:
        one = waiting.pop()
        if one.name not in found:
            found[one.name] = one.serialized_pb
            waiting += one.dependencies
    return list(found.values())
