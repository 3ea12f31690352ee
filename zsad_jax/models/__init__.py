"""CLIP in Flax Linen: towers, weights, tokenizer and preprocessing. The only room that knows Flax."""
