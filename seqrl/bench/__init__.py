"""Benchmark suites: what to run as data, the runner, and the records that reports are made of.

::

    suites/NAME.json -> Suite -> cells -> worker processes (or Ray) -> cells/ROW/ENTRANT_sSEED.json

A cell is one entrant of one row under one seed. Its record is all that a report needs of it.
"""
