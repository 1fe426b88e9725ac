"""What a recipe will take, before it runs: parameters, FLOPs, memory and time, without any weights."""
