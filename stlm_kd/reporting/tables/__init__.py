"""Tables for display, and the same content as JSON."""
