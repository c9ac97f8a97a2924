"""Organizations that may not share their text train one BERT together: preparation, private training, export."""

__version__ = "0.1.0"
