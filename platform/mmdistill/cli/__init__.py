"""The command line: parse, call one function, print. Nothing is decided here, and nobody imports it."""
