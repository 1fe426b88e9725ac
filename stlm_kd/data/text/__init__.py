"""Text as documents of ids in files, and these as rows: made once, in little memory, by several processes."""
