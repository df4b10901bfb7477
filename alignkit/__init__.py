"""AlignKit: the thin helper module of a reproducible report on preference alignment."""

__version__ = "0.1.0"
