"""What each command does: the only modules that know recipes and parts."""
