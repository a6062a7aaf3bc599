"""What a study leaves on disk: immutable records, and the Arrow tables derived from them.

Truth are the files that are written once (``study.json`` and its revisions, decisions, selections, openings,
attempts, finals, their side files and withdrawals). ``compact/``, ``manifest/`` and ``tensorboard/`` are
derived and may be deleted. ``lease/`` says who may drive the study.

Start reading at :mod:`mmdistill.records.rows` (the tables) and :mod:`mmdistill.records.study` (the folder).
"""
