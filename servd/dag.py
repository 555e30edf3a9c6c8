"""Graphs at work: `InputNode` to build them, `RayServeDAGHandle` to run them."""

from typing import Any

from servd.app.built import InputValue, Step, StepResult, map_containers
from servd.app.graph_nodes import InputNode, graph_input, input_part
from servd.calls.response import DeploymentResponse
from servd.ground.ids import DeploymentID
from servd.handle import bound_handle

__all__ = ["InputNode", "RayServeDAGHandle"]


class RayServeDAGHandle:
    """A call graph: `ref = await h.remote(x)` runs it with `x` as its input, `await ref` gives its result.

    Every node runs at most once per call. All calls are started at once, so independent nodes run at the same
    time; a call that needs the result of another waits for it before it leaves.
    """

    def __init__(self, steps: tuple[Step, ...]) -> None:
        self._steps = steps

    async def remote(self, *args: Any, **kwargs: Any) -> DeploymentResponse:
        """Start the graph.

        Returns:
            The response of the last node; the error of a node is its error.
        """
        source = graph_input(args, kwargs)
        responses: list[DeploymentResponse] = []
        for step in self._steps:
            method = step.handle.options(method_name=step.method)
            filled = [_filled(item, source, responses) for item in step.args]
            named = {key: _filled(item, source, responses) for key, item in step.kwargs.items()}
            responses.append(method.remote(*filled, **named))
        return responses[-1]

    def __repr__(self) -> str:
        calls = ", ".join(f"{step.handle.deployment_name}.{step.method}" for step in self._steps)
        return f"RayServeDAGHandle({calls})"


def _filled(value: Any, source: Any, responses: list[DeploymentResponse]) -> Any:
    """A step's argument for one request."""
    if isinstance(value, InputValue):
        if value.key is None:
            return source
        return input_part(source, value.key, is_attribute=value.is_attribute)
    if isinstance(value, StepResult):
        return responses[value.index]
    return map_containers(value, lambda item: _filled(item, source, responses))


class HandleMaker:
    """Makes the handles and graphs of a built application; see `built_application.Maker`."""

    def handle(self, target: DeploymentID, style: str) -> Any:
        """A lazy handle of the style that the constructor asks for."""
        return bound_handle(target, style)

    def graph(self, steps: tuple[Step, ...]) -> RayServeDAGHandle:
        """The handle that runs the steps."""
        return RayServeDAGHandle(steps)
