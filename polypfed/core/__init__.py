"""The nouns of a federation: numpy, safetensors and the standard library only."""
