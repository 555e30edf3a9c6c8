"""The library's connection of HTTP/2 with a cure: a client's farewell is no end of what is under way."""

from h2.connection import ConnectionInputs, ConnectionState, H2Connection, H2ConnectionStateMachine


class _LaneStates(H2ConnectionStateMachine):
    # the library takes it for the end of the connection, and all that comes and goes afterwards for an error
    _transitions = {
        **H2ConnectionStateMachine._transitions,
        (ConnectionState.SERVER_OPEN, ConnectionInputs.RECV_GOAWAY): (None, ConnectionState.SERVER_OPEN),
    }


class LaneH2Connection(H2Connection):
    """Goes on when its client has said that it begins nothing more, and waits for what it has begun (RFC 9113, 6.8)."""

    @classmethod
    def take_over(cls, connection: H2Connection) -> None:
        """Make it of what Hypercorn, which knows the library's own class only, has just made."""
        connection.__class__ = cls
        connection.state_machine = _LaneStates()

    def clear_outbound_data_buffer(self) -> None:
        """The base class would drop what it has to acknowledge when the farewell comes in the same read."""
