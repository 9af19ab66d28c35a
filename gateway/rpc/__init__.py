"""Thin gRPC services, interceptors and conversions."""
