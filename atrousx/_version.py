"""The version. It is defined only here; pyproject.toml reads it without importing the package."""

__version__ = "0.2.0"
