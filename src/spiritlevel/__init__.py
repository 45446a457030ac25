"""Spirit Level: model alignment traced to a charter."""

__version__ = "0.1.0"
