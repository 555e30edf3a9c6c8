"""Which deployment serves a call of gRPC: by the application that its metadata names, or the only one that there is."""

from collections.abc import Iterable

from servd.calls.grpc_services import RAY_SERVE
from servd.exceptions import NoRouteError
from servd.wire.grpc.messages import GrpcMethod, GrpcRoute

LIST_APPLICATIONS = f"/{RAY_SERVE}/ListApplications"


class GrpcTable:
    """What a proxy knows of applications that speak gRPC.

    Attributes:
        methods: by name, of all applications; the first that has a method says of which kind it is.
    """

    def __init__(self) -> None:
        self.methods: dict[str, GrpcMethod] = {}
        self._routes: dict[str, GrpcRoute] = {}
        self._names: dict[str, frozenset[str]] = {}

    def __repr__(self) -> str:
        return f"GrpcTable({list(self._routes)}, methods={len(self.methods)})"

    def update(self, routes: Iterable[GrpcRoute]) -> None:
        """Replace the whole table."""
        self._routes = {route.app: route for route in routes}
        self.methods, self._names = {}, {}
        for route in self._routes.values():
            self._names[route.app] = frozenset(method.name for method in route.methods)
            for method in route.methods:
                self.methods.setdefault(method.name, method)

    def applications(self) -> list[str]:
        """Names of the applications, sorted."""
        return sorted(self._routes)

    def find(self, app: str | None) -> GrpcRoute:
        """The route of a call.

        Args:
            app: what its metadata names; None = nothing.

        Raises:
            NoRouteError: there is no such application, or there are several to choose from.

        Source: Ray Serve, gRPCProxy.
        """
        if app is None:
            if len(self._routes) == 1:
                return next(iter(self._routes.values()))
            there = "none is deployed" if not self._routes else f"there are {', '.join(self.applications())}"
            raise NoRouteError(
                f"the call's metadata names no `application`, and {there}; {LIST_APPLICATIONS} lists them"
            )
        route = self._routes.get(app)
        if route is None:
            raise NoRouteError(
                f"there is no application {app!r} that speaks gRPC; {LIST_APPLICATIONS} lists those that do"
            )
        return route

    def services(self) -> list[str]:
        """Full names of the applications' services, sorted."""
        return sorted({name.split("/")[1] for name in self.methods})

    def reflecting(self, app: str | None) -> GrpcRoute | None:
        """Who tells tools of message types: that application, or the first that does."""
        routes = self._routes.values() if app is None else [self._routes[app]] if app in self._routes else []
        return next((route for route in routes if route.reflects), None)

    def has(self, route: GrpcRoute, method: str) -> bool:
        """Whether the application has that method."""
        return method in self._names[route.app]
