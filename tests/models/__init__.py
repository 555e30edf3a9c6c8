"""Heavy libraries in real replicas: `make test-models`, in a virtual environment of its own."""
