"""Comparisons of the DeepLab papers: what is trained, how, and what is measured."""
