"""Cameras for tests: a real RTSP server, endless HTTP streams, and addresses that misbehave."""
