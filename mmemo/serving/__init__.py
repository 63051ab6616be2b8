"""The HTTP and WebSocket service of `mmemo serve`."""
