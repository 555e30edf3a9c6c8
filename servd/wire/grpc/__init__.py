"""What processes say to each other about gRPC: methods, routes, codes, and as much of protobuf's form as names and places need.

Imports `ground`. What uses the library `grpc` itself stands in the proxy.
"""
