"""Tables for people, and the same as JSON."""
