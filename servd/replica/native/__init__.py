"""Native threads of a process that is to fork, or has: which there are, what a child can do without, what it waits for in vain.
And the pools of processes, the connections and the files that it has opened.

Imports `observability` and `ground`. Used by fork servers, and by replicas as they start and end and by their wardens.
"""
