"""Call graphs: `InputNode` to build them, `RayServeDAGHandle` to run them."""

from servd.app.graph_nodes import InputNode
from servd.dag import RayServeDAGHandle

__all__ = ["InputNode", "RayServeDAGHandle"]
