"""What to run, as plain data: the study file, arm designs, and the protocol as a pure state machine."""
