"""What records spans with OpenTelemetry: loaded where an endpoint for them is named, or the application has loaded the library.

Imports `observability`, `wire` and `ground`. Nobody imports it: `observability.spans` loads it when it is needed.
"""
