"""Several processes that share the port."""
