"""Pure functions from batches to one scalar per lane, one file per family.

Each is registered under its key with its source, what it needs and the ranges of its settings (``@loss``).

Students and teachers come as tensors with any leading axes; a setting is one number, or one per lane. No
function detaches the teacher unless its formula does: whoever calls decides what gets a gradient.
"""
