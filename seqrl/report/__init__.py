"""Reports: what benchmark records and training runs say, as a page, a text, tables and pictures.

::

    folders -> records.load -> Cells -> scores.row_scores -> sections -> Page -> HTML, Markdown, CSV

Everything between loading and writing is plain data; only ``figures`` needs matplotlib (extra
``plot``), and only where pictures are asked for.
"""
