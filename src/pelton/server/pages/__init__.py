"""Everything beside inference: an ASGI application over the site."""
