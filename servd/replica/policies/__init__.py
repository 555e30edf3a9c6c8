"""Autoscaling policies of user code, each deployment's in a process that its application's fork server forks for it.

Imports `documents`, `observability`, `wire` and what is below; used by the fork server alone.
"""
