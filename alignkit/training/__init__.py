"""One file, one kind of run: `f(out, settings, ...)` writes into the folder `out` and returns what it measured."""

from alignkit import world as world  # first: it sets what the Hub's libraries read as they are imported
