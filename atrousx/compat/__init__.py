"""Interfaces of other libraries over atrousx's operators."""
