"""Tessera: train, improve, monitor and serve open language models on your own Delta tables."""

__version__ = "0.1.0"
