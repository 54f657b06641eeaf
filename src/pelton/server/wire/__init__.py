"""The HTTP side: sockets, bytes, requests and answers; knows no model."""
