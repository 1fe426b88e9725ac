"""The command ``report``: collects the data of runs and renders it as one HTML file."""
