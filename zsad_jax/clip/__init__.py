"""The frozen CLIP: towers, tokenizer, weights, and the features that methods read from them."""
