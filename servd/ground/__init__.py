"""What every process loads: identities, states, the clock, settings, files that last, processes by number.

Imports the standard library, uvloop and setproctitle where a process becomes one of ours, and `servd.exceptions`; of servd
nothing else. Everybody uses it. Whatever is added here is paid for at the start of every process.
"""
