"""Pure functions from batches to one scalar per lane, one file per family.

Students and teachers come as tensors with any leading axes; a setting is one number, or one per lane. No
function detaches the teacher: whoever calls decides what gets a gradient.
"""
