"""The tables of the DeepLab papers in kind: what is trained, how, and what is measured."""
