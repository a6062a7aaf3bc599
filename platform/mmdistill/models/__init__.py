"""Networks whose parameters carry a leading lane axis: K runs of one shape are one program."""
