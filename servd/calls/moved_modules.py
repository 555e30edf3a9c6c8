"""Modules under the names that earlier versions gave them, for pickles in a state directory that such a version wrote.

Only what an application that is shipped by value can name has a line here.
"""

MOVED = {
    # written by 0.1.0 before its modules got rooms
    "servd.application": "servd.app.deployment",
    "servd.arguments": "servd.calls.arguments",
    "servd.asgi_calls": "servd.app.asgi_calls",
    "servd.asgi_ingress": "servd.app.ingress",
    "servd.batch_options": "servd.app.batch_options",
    "servd.built_application": "servd.app.built",
    "servd.class_routes": "servd.app.class_routes",
    "servd.deployment_options": "servd.app.options",
    "servd.document": "servd.documents.checked",
    "servd.driver_app": "servd.app.driver_routes",
    "servd.encoders": "servd.app.encoders",
    "servd.ids": "servd.ground.ids",
    "servd.pickling": "servd.calls.pickling",
    "servd.quick_dataclass": "servd.ground.quick_dataclass",
    "servd.response": "servd.calls.response",
    "servd.runtime_env": "servd.documents.runtime_env",
    "servd.settings": "servd.ground.settings",
    "servd.states": "servd.ground.states",
}
"""Name in the pickle -> name now."""

MOVED_NAMES = {
    # as above
    "servd.context": {
        "RequestContext": "servd.calls.request_context",
        "current_request": "servd.calls.request_context",
        "Process": "servd.calls.process",
        "replica_context": "servd.calls.replica_context",
    },
    "servd.deployment_graph": dict.fromkeys(
        ("GraphNode", "InputPart", "MethodNode", "UnboundMethod", "RawInput", "graph_input", "input_part"),
        "servd.app.graph_nodes",
    ),
}
"""Single names that left a module which is still there."""

RENAMED = {
    # as above
    ("servd.batching", "_End"): ("servd.app.batch_queue", "StreamEnd"),
}
"""(Module, name) in the pickle -> (module, name) now."""


def home_of(module: str, name: str) -> tuple[str, str]:
    """Module and name that now have what was `name` in `module`."""
    return RENAMED.get((module, name)) or (MOVED_NAMES.get(module, {}).get(name) or MOVED.get(module, module), name)
