"""`shardtune eval`: what a model folder makes of held-out conversations, by task, family and split."""
