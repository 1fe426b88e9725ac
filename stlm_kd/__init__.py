"""Distil one or several large teachers into a tiny language model."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("stlm-kd")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"
