"""One file, one kind of run: `f(out, settings, ...)` writes into the folder `out` and returns what it measured."""
