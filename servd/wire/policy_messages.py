"""What the control lines say of autoscaling policies in user code, beside `messages`."""

from dataclasses import field

from servd.ground.quick_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class PolicyAsk:
    """Controller -> fork server: ask a policy, in a process forked for it.

    function: import path. kwargs: JSON text. contexts: JSON text, a list of `AutoscalingContext`s as `context_of` reads them.
    of_application: it is asked about all of them at once. deadline_s: after so long the process is ended. deployment: whose
    policy it is, a bare name; "" for the application's: each has a process of its own.
    """

    ask_id: str
    function: str
    kwargs: str
    contexts: str
    of_application: bool = False
    deadline_s: float = 5.0
    deployment: str = ""


@dataclass(frozen=True, slots=True)
class PolicyAnswer:
    """Fork server -> controller. wanted: bare name -> replicas, not rounded; error: why there are none, "" if there are."""

    ask_id: str
    wanted: dict[str, float] = field(default_factory=dict)
    error: str = ""
