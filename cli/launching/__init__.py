"""Starting a command again in several processes, on one node or several."""
