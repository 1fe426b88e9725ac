"""What a teacher says of a data set, on disk: written once, read by every student.

``layout`` says what is kept, ``sampling`` makes it of logits, ``shards`` are the files, ``writing`` fills
them, ``reading`` opens them, and ``answering`` is the teacher that reads.
"""
