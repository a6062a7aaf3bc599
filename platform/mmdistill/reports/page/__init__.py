"""The page of a study: one module for the file, one for its charts, and the sections by what answers them."""
