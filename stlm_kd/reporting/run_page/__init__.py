"""The command ``report``: what is known of runs, gathered into plain values, drawn as one HTML file."""
