"""The processes that run user code: fork servers and replicas, from the fork to the last answer.

Imports `replica.code`, `app`, `calls` and what is below. Started by the controller; `local` runs its user callable in the
caller's process.
"""
