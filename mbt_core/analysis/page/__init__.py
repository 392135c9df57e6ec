"""What the pages share: one file each with everything in it, light and dark, for phones and desks.

Needs the extra ``explain`` (Jinja2, Pillow).
"""
