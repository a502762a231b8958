"""Fine-tuning on packed token shards with DeepSpeed ZeRO-3 and offload."""
