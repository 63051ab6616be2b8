"""The HTTP and WebSocket service, `mmemo serve`."""
