"""The report of a run: one page of what was run, what it learnt, where it fails, and how sure it is.

Needs the extra ``report`` (Jinja2, Matplotlib, Pillow).
"""
