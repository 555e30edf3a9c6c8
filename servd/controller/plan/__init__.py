"""What the controller decides: goal and facts in, actions out. Pure: no clock, no socket, no process, no file.

Imports `documents`, `wire.messages` and `ground`, and nothing that does anything. Used by `controller`, and by the simulator
of the tests, which plays thousands of histories against it.
"""
