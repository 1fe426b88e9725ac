"""Agreement of a student classifier with its teacher."""
