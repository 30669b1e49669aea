"""The scheduler service: requests as token ids, queues, KV blocks, batches. It knows no text and no tensors."""
