"""Commands: the only modules that combine recipes with the library's parts."""
