"""Cached teacher outputs of a data set on disk: written once, read by every student."""
