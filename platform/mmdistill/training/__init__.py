"""One epoch after another: batches, optimiser, loop, objectives and metrics; knows torch, not Ray."""
