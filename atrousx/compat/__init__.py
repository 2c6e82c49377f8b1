"""Interfaces of other libraries, built on atrousx's operators."""
