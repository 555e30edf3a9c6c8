"""The library's connection of HTTP/2 with cures: what is one stream's business ends no other."""

from h2.connection import ConnectionInputs, ConnectionState, H2Connection, H2ConnectionStateMachine
from h2.errors import ErrorCodes
from h2.events import Event, StreamReset
from h2.exceptions import InvalidBodyLengthError, ProtocolError
from hyperframe.frame import DataFrame, Frame, HeadersFrame


class _LaneStates(H2ConnectionStateMachine):
    # the library takes it for the end of the connection, and all that comes and goes afterwards for an error
    _transitions = {
        **H2ConnectionStateMachine._transitions,
        (ConnectionState.SERVER_OPEN, ConnectionInputs.RECV_GOAWAY): (None, ConnectionState.SERVER_OPEN),
    }


class LaneH2Connection(H2Connection):
    """Goes on when its client has said that it begins nothing more, and waits for what it has begun (RFC 9113, 6.8), and when a
    request is malformed, as one whose body ends before its time: that stream is reset (8.1.1).

    The library takes both for the end of the connection, which may be that of a proxy in front, with requests of many clients.
    """

    @classmethod
    def take_over(cls, connection: H2Connection) -> None:
        """Make it of what Hypercorn, which knows the library's own class only, has just made."""
        connection.__class__ = cls
        connection.state_machine = _LaneStates()

    def clear_outbound_data_buffer(self) -> None:
        """The base class would drop what it has to acknowledge when the farewell comes in the same read."""

    def _receive_frame(self, frame: Frame) -> list[Event]:
        was_there = frame.stream_id in self.streams
        try:
            return super()._receive_frame(frame)
        except InvalidBodyLengthError:
            size = frame.flow_controlled_length if isinstance(frame, DataFrame) else 0
        except ProtocolError:
            # what could not be decoded has begun no stream
            if not isinstance(frame, HeadersFrame) or was_there or frame.stream_id not in self.streams:
                raise
            size = 0
        if size:
            # nobody will take what came with it
            self.increment_flow_control_window(size)
        self.reset_stream(frame.stream_id, ErrorCodes.PROTOCOL_ERROR)
        # releases of the library differ in what its making takes
        event = StreamReset.__new__(StreamReset)
        event.stream_id, event.error_code, event.remote_reset = frame.stream_id, ErrorCodes.PROTOCOL_ERROR, False
        return [event]
