"""What leaves the tool: models in other programs' formats."""
