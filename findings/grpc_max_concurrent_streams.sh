#!/bin/bash
# Guess, before looking: a client of grpcio waits with the calls beyond a server's `grpc.max_concurrent_streams`, so that none is refused.
# Seen: it waits, and calls fail nevertheless, with UNAVAILABLE (RST_STREAM, REFUSED_STREAM = 7), though the client never has more streams
# open than it may. The server counts calls on that have ended until their memory is free (channel argument `grpc.http.overload_protection`,
# on by default), while the client has long begun the next ones. Without that protection none fails.
# Exits 0 as long as that is so.
set -eu
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" install -q grpcio==1.85.3
cat > "$directory/calls.py" <<'END'
import asyncio
import collections

import grpc
import grpc.aio

LIMIT, CALLS, ROUNDS = 100, 300, 4


class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        async def echo(message, context):
            await asyncio.sleep(0.1)
            return message

        return grpc.unary_unary_rpc_method_handler(echo)


async def outcomes(options):
    server = grpc.aio.server(options=[("grpc.max_concurrent_streams", LIMIT), *options])
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    found = collections.Counter()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:

        async def ask():
            for _ in range(ROUNDS):
                try:
                    await channel.unary_unary("/service/Echo")(b"x", timeout=60)
                    found["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    found[f"{error.code().name}: {error.details()}"] += 1

        await asyncio.gather(*(ask() for _ in range(CALLS)))
    await server.stop(0)
    return found


async def main():
    print(f"grpcio {grpc.__version__}, {CALLS} calls at a time, {LIMIT} streams allowed, {ROUNDS} rounds")
    by_default = await outcomes([])
    print("by default:", dict(by_default))
    without = await outcomes([("grpc.http.overload_protection", 0)])
    print("without overload protection:", dict(without))
    refused = sum(count for text, count in by_default.items() if "error code 7" in text)
    assert refused and sum(by_default.values()) == CALLS * ROUNDS
    assert without == {"OK": CALLS * ROUNDS}


asyncio.run(main())
END
"$directory/venv/bin/python" "$directory/calls.py"
