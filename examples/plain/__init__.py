"""The loops as they are without this library."""
