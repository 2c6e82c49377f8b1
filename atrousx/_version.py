"""The version, written here alone: pyproject.toml reads it without importing anything."""

__version__ = "0.1.0"
