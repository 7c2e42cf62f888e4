"""Encode the captions of an output: text embeddings beside the latents, one file for each shard."""
