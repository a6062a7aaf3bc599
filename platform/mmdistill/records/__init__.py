"""What a study leaves on disk: immutable records, and the Arrow tables derived from them.

Truth are the files that are written once (``study.json``, decisions, selections, openings, attempts, finals
and their side files). ``compact/``, ``manifest/`` and ``tensorboard/`` are derived and may be deleted.

Start reading at :mod:`mmdistill.records.rows` (the tables) and :mod:`mmdistill.records.study` (the folder).
"""
