"""Layer 2: requests that wait for an answer, over HTTP and gRPC."""
