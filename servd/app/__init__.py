"""What application code is made of before it runs: deployments, applications, graphs, ASGI ingresses, their options.

Imports `calls` and what is below. Used by the public decorators, by fork servers that flatten an application and by
replicas that run a part of one. Knows nothing of processes.
"""
