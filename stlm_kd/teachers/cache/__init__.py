"""Cached teacher outputs of a data set on disk: written once, read by every student.

``format`` defines layout and manifest, ``sampling`` compresses logits, ``shards`` reads and writes the files,
``writer`` fills a cache, ``reader`` opens it, and ``merge`` combines several caches.
"""
