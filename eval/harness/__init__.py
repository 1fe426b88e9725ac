"""lm-evaluation-harness on a model in memory: its tasks and prompts, our log-likelihoods and tie handling."""
