"""Numbered migrations of the schema, one file each. A file that was released is never changed."""
