"""From raw instruction datasets to packed token shards; on CPU, without torch."""
